"""Check results as a table for people or JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from kiam.dataplane.verify.results import CheckResult, Status

_WIDTH_ELSEWHERE = 200
_COLOURS = {Status.PASS: "green", Status.FAIL: "bold red", Status.WARN: "yellow", Status.SKIP: "dim"}


def print_results(results: Sequence[CheckResult], output: str) -> None:
    """Print to standard output; ``output`` is ``table`` or ``json``."""
    if output == "json":
        print(json.dumps({"checks": [asdict(result) for result in results]}, indent=2))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("CHECK", "", "SEEN", "TO MEND IT", box=None, pad_edge=False, header_style="bold")
    for column in table.columns[2:]:
        column.overflow = "fold"
    table.columns[0].no_wrap = True
    for result in results:
        verdict = Text(result.status, _COLOURS[result.status])
        # Text, not markup: a path or an address may hold square brackets.
        table.add_row(Text(result.check), verdict, Text(result.seen), Text(result.mend))
    if sys.stdout.isatty():
        Console(highlight=False).print(table)
        return
    # A file or a pipe has no width to fit into.
    console = Console(highlight=False, width=_WIDTH_ELSEWHERE)
    with console.capture() as captured:
        console.print(table)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))
