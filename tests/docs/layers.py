"""The pictures of the layers in docs/architecture.md, drawn from import-linter's contracts so that they can't lie.

``python -m tests.docs.layers`` (``make architecture``) writes them; a test calls :func:`page` and compares.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "architecture.md"
BEGINS, ENDS = "<!-- layers: make architecture -->", "<!-- end of layers -->"
# import-linter: modules between "|" may not import each other, those between ":" may.
_SEPARATORS = re.compile(r"\s*[|:]\s*")


def contracts() -> list[dict[str, Any]]:
    """import-linter's contracts, as pyproject.toml has them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found: list[dict[str, Any]] = project["tool"]["importlinter"]["contracts"]
    return found


def _name(module: str) -> str:
    return module.strip("() ").removeprefix("kiam.")


def _picture(layers: list[str]) -> Iterator[str]:
    yield "```mermaid"
    yield "flowchart TD"
    for depth, layer in enumerate(layers):
        apart = "|" in layer
        members = [_name(module) for module in _SEPARATORS.split(layer)]
        label = " | ".join(members) if apart else ", ".join(members)
        yield f'  layer{depth}["{label}"]'
    for depth in range(len(layers) - 1):
        yield f"  layer{depth} --> layer{depth + 1}"
    yield "```"


def _sections() -> Iterator[str]:
    for contract in contracts():
        match contract:
            case {"type": "layers", "name": name, "layers": layers}:
                yield f"**{name}.**\n"
                yield "\n".join(_picture(layers)) + "\n"
    for contract in contracts():
        match contract:
            case {"type": "forbidden", "name": name, "source_modules": sources, "forbidden_modules": forbidden}:
                yield f"- {name}: `{'`, `'.join(sources)}` never import `{'`, `'.join(forbidden)}`."
            case {"type": "independence", "name": name, "modules": modules}:
                yield f"- {name}: none of `{'`, `'.join(modules)}` imports another."


def page() -> str:
    """docs/architecture.md with today's pictures in it."""
    before, _, rest = PAGE.read_text().partition(BEGINS)
    return f"{before}{BEGINS}\n\n" + "\n".join(_sections()) + f"\n\n{ENDS}{rest.partition(ENDS)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page())
