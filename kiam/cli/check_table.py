"""Check results as a table for people or JSON for programs: of ``config check`` and ``dataplane verify``."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kiam.verify.results import CheckResult, Status, any_failed

if TYPE_CHECKING:
    from rich.table import Table

COLOURS = {Status.PASS: "green", Status.FAIL: "bold red", Status.WARN: "yellow", Status.SKIP: "dim"}
_WIDTH_ELSEWHERE = 160
"""Columns where there is no terminal to fit into."""


def print_results(results: Sequence[CheckResult], output: str) -> None:
    """Print to standard output; ``output`` is ``table`` or ``json``."""
    if output == "json":
        print(json.dumps(as_json(results), indent=2))
        return
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else _WIDTH_ELSEWHERE).print(build_table(results))
    print(summary(results))


def as_json(results: Sequence[CheckResult]) -> dict[str, object]:
    """For ``--output json``."""
    return {"failed": any_failed(results), "checks": [dataclasses.asdict(result) for result in results]}


def build_table(results: Sequence[CheckResult]) -> Table:
    """The table for people."""
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column("check", overflow="fold")
    table.add_column("", no_wrap=True)
    table.add_column("seen, and what mends it", overflow="fold")
    for result in results:
        # Text, not markup: rules and addresses hold square brackets.
        seen = Text(result.seen)
        if result.mend:
            seen.append(f"\n{result.mend}", "bold")
        table.add_row(Text(result.check), Text(result.status, COLOURS[result.status]), seen)
    return table


def summary(results: Sequence[CheckResult]) -> str:
    """How many of each."""
    counts = {status: sum(result.status is status for result in results) for status in Status}
    return ", ".join(f"{count} {status}" for status, count in counts.items() if count)
