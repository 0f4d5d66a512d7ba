"""What the troubleshooting page quotes is what the code says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.docs.test_docs import DOCS, ROOT


def quoted() -> list[str]:
    """The messages in the first column of the page's tables."""
    page = (DOCS / "troubleshooting.md").read_text()
    sections = re.split(r"^## ", page, flags=re.MULTILINE)
    wanted = ("What the pod reads", "What the agent says", "What the server says", "After the move")
    rows = [
        line
        for section in sections
        if section.startswith(wanted)
        for line in section.splitlines()
        if line.startswith("| ")
    ]
    return [message for row in rows for message in re.findall(r"`([^`]+)`", row.split("|")[1])]


def fragments(message: str) -> list[str]:
    """A message without what changes in it."""
    return [part for part in message.split("…") if len(part.strip()) > 2]


def spoken(directory: Path) -> str:
    """Every piece of text in the code, with a break where a value goes in."""
    texts = []
    for path in directory.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                texts.append(
                    "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(re.sub(r"%[a-z]|%\.\df", "\0", node.value))
    return "\n".join(texts)


SPOKEN = spoken(ROOT / "kiam")


@pytest.mark.parametrize("message", quoted())
def test_quoted_message_is_in_the_code(message: str) -> None:
    pattern = ".*".join(map(re.escape, fragments(message)))
    assert fragments(message)
    assert re.search(pattern, SPOKEN), message


def test_the_page_quotes_messages() -> None:
    assert len(quoted()) > 15
