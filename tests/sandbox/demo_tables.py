"""The tables on the demonstration's screen."""

from __future__ import annotations

from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

WIDEST_WHO = 11
WIDEST_ASKS = 33


@dataclass(frozen=True, slots=True)
class Step:
    """One line of the demonstration: who does what, how it is answered, and whether that is as it has to be."""

    part: str
    who: str
    asks: str
    answer: str
    good: bool
    note: str = ""


def _columns() -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(width=2)
    table.add_column(width=WIDEST_WHO, no_wrap=True)
    table.add_column(width=WIDEST_ASKS, no_wrap=True)
    table.add_column(overflow="fold")
    return table


def annotations_table(owned: dict[str, dict[str, str]]) -> Table:
    """What the owners of the namespace and its pods have written on them."""
    table = _columns()
    for owner, notes in owned.items():
        for number, (name, value) in enumerate(notes.items()):
            table.add_row("", "" if number else owner, name, value)
    return table


def steps_table(steps: list[Step]) -> Table:
    """Who did what, how it was answered, and whether that is as it has to be."""
    table = _columns()
    for step in steps:
        mark = Text("ok", style="green") if step.good else Text("NO", style="bold red")
        answer = Text(step.answer)
        if step.note:
            answer.append(f"  {step.note}", style="yellow" if step.good else "red")
        table.add_row(mark, step.who, step.asks, answer)
    return table
