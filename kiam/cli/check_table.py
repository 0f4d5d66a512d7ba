"""Check results as a table for people, JSON for programs, or a script that fixes: of the commands that check."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from kiam.verify.fix import Place
from kiam.verify.results import CheckResult, Status, any_failed

if TYPE_CHECKING:
    from rich.table import Table

COLOURS = {Status.PASS: "green", Status.FAIL: "bold red", Status.WARN: "yellow", Status.SKIP: "dim"}
_WIDTH_ELSEWHERE = 160
"""Columns where there is neither a terminal to fit into nor COLUMNS."""
_WHERE: Mapping[Place, str] = {
    Place.NODE: "as root on this node",
    Place.CLUSTER: "where kubectl and helm are set up",
    Place.AWS: "where the AWS command line may change this instance",
}


def print_results(results: Sequence[CheckResult], output: str) -> None:
    """Print to standard output; ``output`` is ``table``, ``json`` or ``script``."""
    if output == "json":
        print(json.dumps(as_json(results), indent=2))
        return
    if output == "script":
        print(as_script(results), end="")
        return
    from rich.console import Console

    # rich takes COLUMNS and NO_COLOR from the environment by itself.
    fitted = sys.stdout.isatty() or "COLUMNS" in os.environ
    Console(width=None if fitted else _WIDTH_ELSEWHERE).print(build_table(results))
    print(summary(results))
    # Printed as they are, never wrapped: a command is copied from where it stands.
    print("\n".join(command_lines(results)), end="\n" if any(result.command for result in results) else "")


def as_json(results: Sequence[CheckResult]) -> dict[str, object]:
    """For ``--output json``."""
    return {"failed": any_failed(results), "checks": [_as_json(result) for result in results]}


def _as_json(result: CheckResult) -> dict[str, object]:
    fix = result.fix
    found = {"kind": fix.kind, "command": fix.command, "note": fix.note, "where": fix.kind.place} if fix else None
    return {"check": result.check, "status": result.status, "seen": result.seen, "fix": found}


def build_table(results: Sequence[CheckResult]) -> Table:
    """The table for people."""
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column("check", overflow="fold")
    table.add_column("", no_wrap=True)
    table.add_column("seen, and what to do", overflow="fold")
    for result in results:
        # Text, not markup: rules and addresses hold square brackets.
        seen = Text(result.seen)
        if result.fix is not None and not result.fix.command:
            seen.append(f"\n{result.fix.note}", "bold")
        table.add_row(Text(result.check), Text(result.status, COLOURS[result.status]), seen)
    return table


def command_lines(results: Iterable[CheckResult]) -> list[str]:
    """Each command on a line of its own, below what it is for; the same command once."""
    lines: list[str] = []
    for place, by_command in _by_place(results).items():
        lines += ["", f"to fix, {_WHERE[place]}:"]
        for command, found in by_command.items():
            lines += ["", *_comments(found), command]
    return lines


def as_script(results: Sequence[CheckResult]) -> str:
    """A shell script that fixes what failed or warned; what is to be run elsewhere stands in it as a comment."""
    wrong = [
        result
        for result in results
        if result.status in (Status.FAIL, Status.WARN) and result.fix is not None and result.fix.kind.changes
    ]
    lines = ["#!/bin/sh", "# Made by kiam dataplane verify --fix; run it as root on this node.", "set -eu"]
    for place, by_command in _by_place(wrong).items():
        for command, found in by_command.items():
            elsewhere = [] if place is Place.NODE else [f"# {_WHERE[place]}:"]
            lines += ["", *_comments(found), *elsewhere, command if place is Place.NODE else f"# {command}"]
    left = [result for result in results if result.status is Status.FAIL and result not in wrong]
    for result in left:
        lines += ["", *_comments([result]), f"# not by a command: {result.fix_text}"]
    return "\n".join([*lines, ""])


def _by_place(results: Iterable[CheckResult]) -> dict[Place, dict[str, list[CheckResult]]]:
    found: dict[Place, dict[str, list[CheckResult]]] = {}
    for result in results:
        if result.fix is not None and result.command:
            found.setdefault(result.fix.kind.place, {}).setdefault(result.command, []).append(result)
    return found


def _comments(found: Sequence[CheckResult]) -> list[str]:
    lines = [f"# {result.status} {result.check}: {' '.join(result.seen.split())}" for result in found]
    notes = dict.fromkeys(result.fix.note for result in found if result.fix is not None and result.fix.note)
    return [*lines, *(f"# {note}" for note in notes if all(result.command for result in found))]


def summary(results: Sequence[CheckResult]) -> str:
    """How many of each."""
    counts = {status: sum(result.status is status for result in results) for status in Status}
    return ", ".join(f"{count} {status}" for status, count in counts.items() if count)
