"""The fenced code blocks of the documentation, and the marker that says how each is tested.

A marker is an HTML comment on the line above the fence, so a reader of the site doesn't see it::

    <!-- doctest: run -->
    ```bash
    kiam --version
    ```

``run``
    Run by bash (``-euo pipefail``) in the page's own folder, which starts as a copy of docs/*.json, with the blocks
    before it on the page already run. Exit status 0 is wanted; ``run exit=1`` wants another one.
``run node``
    The same inside the node of a sandbox, as root: with a Kubernetes API (``admin.conf``), STS, instance metadata,
    ``kiam-server:443`` and certificates of all of them. ``NODE_IP`` is the node's address.
    A comment ``doctest setup: COMMANDS`` above the marker is run first; it makes what the page takes for given.
``newcomer``
    Typed by ``make test-newcomer``, as root, into a shell on a minimal Debian; each command follows a ``#``.
``output``
    What the ``run`` block above it prints; a line ``...`` stands for any lines, ``…`` for any part of a line.
``flags``
    Every ``kiam`` command in it is parsed by kiam's own command line.
``yaml``
    Parsed; Kubernetes objects in it are validated against Kubernetes' schema, where it has one for the kind.
``policy``, ``trust policy``
    An IAM policy, or a role's trust policy, that the emulated IAM accepts.
``values``
    Values of the chart: rendered with it, so that its schema and templates accept them.
``no: REASON``
    Can't run here, and why.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TESTED_LANGUAGES = frozenset({"bash", "sh", "shell", "console", "yaml", "json"})
"""A block in one of these must have a marker."""

_SETUP = re.compile(r"<!-- doctest setup: (?P<setup>.*?) -->\s*$")
_MARKER = re.compile(r"<!-- doctest: (?P<marker>.*?) -->\s*$")
_FENCE = re.compile(r"(?P<indent>\s*)(?P<fence>```+|~~~+)\s*(?P<language>[\w+-]*)")


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int
    language: str
    marker: str
    content: str
    setup: str = ""

    @property
    def kind(self) -> str:
        """The marker's first word, or both words of ``trust policy``."""
        return (
            "trust policy" if self.marker.startswith("trust policy") else re.split(r"[ :]", self.marker, maxsplit=1)[0]
        )

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def read_blocks(page: Path) -> Iterator[Block]:
    """The blocks of a Markdown page, in order."""
    lines = page.read_text().splitlines()
    position = 0
    marker = setup = ""
    while position < len(lines):
        line = lines[position]
        if found := _SETUP.search(line):
            setup = found["setup"]
        elif found := _MARKER.search(line):
            marker = found["marker"]
        elif fence := _FENCE.match(line):
            start = position + 1
            position = next(number for number in range(start, len(lines)) if lines[number].strip() == fence["fence"])
            content = textwrap.dedent("\n".join(lines[start:position])) + "\n"
            yield Block(page, start, fence["language"], marker, content, setup)
            marker = setup = ""
        elif line.strip():
            marker = setup = ""
        position += 1


def output_pattern(expected: str) -> re.Pattern[str]:
    """A pattern for what a block has to print, with its wildcards."""
    pattern = ""
    for line in expected.strip("\n").split("\n"):
        if line.strip() == "...":
            pattern += r"(?:.*\n)*?"
        else:
            escaped = ".*?".join(map(re.escape, line.rstrip().split("…")))
            # Columns are as wide as what stands in them.
            pattern += re.sub(r"(?:\\ ){2,}", r"[ ]+", escaped) + r"[ \t]*\n"
    return re.compile(pattern)
