"""``kiam dataplane``: put the redirect in, take it out, and look at it, without an agent.

``install`` is for an init container or a systemd unit: pods are redirected (and refused) before the agent serves.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from kiam.cli.dataplane_options import add_keep_others, add_wanted_state, find_wanted_state, wanted_state
from kiam.dataplane import handover
from kiam.dataplane.contract import Condition, Counters, WantedState
from kiam.dataplane.registry import DATAPLANES, load_dataplane
from kiam.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

ALL = "all"
WATCH_SECONDS = 1.0
_VERIFY = "kiam.cli.dataplane_verify"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add install, remove, status and verify."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    install = _action(actions, "install", "put the redirect in, or bring an older one up to date")
    install.add_argument("--dataplane", choices=tuple(DATAPLANES), required=True, help="the dataplane to install")
    add_wanted_state(install)
    add_keep_others(install)

    remove = _action(actions, "remove", "take out all that is ours, and nothing else")
    which = remove.add_mutually_exclusive_group()
    which.add_argument("--dataplane", choices=(*DATAPLANES, ALL), default=ALL, help="the dataplane to remove (all)")
    which.add_argument(
        "--all", action="store_const", const=ALL, dest="dataplane", help="everything of kiam's off this node (default)"
    )

    status = _action(actions, "status", "show what is installed and what it has counted; exit 0 if it is as wanted")
    status.add_argument("--dataplane", choices=(*DATAPLANES, ALL), default=ALL, help="the dataplane to show (all)")
    add_wanted_state(status)
    status.add_argument("--output", choices=("table", "json"), default="table", help="for people or for programs")
    status.add_argument("--watch", action="store_true", help="show it again every second, until Ctrl-C")

    if find_spec(_VERIFY) is not None:
        verify = _action(actions, "verify", "prove that a pod gets its own role, and never the node's")
        import_module(_VERIFY).configure(verify)


def _action(actions: Any, name: str, summary: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(name, help=summary, description=summary, allow_abbrev=False)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Do what the action says."""
    match arguments.action:
        case "install":
            return _install(arguments)
        case "remove":
            return _remove(arguments)
        case "status":
            return _status(arguments)
        case _:
            return int(import_module(_VERIFY).run(arguments))


def _names(choice: str) -> Sequence[str]:
    return tuple(DATAPLANES) if choice == ALL else (choice,)


def _install(arguments: argparse.Namespace) -> int:
    wanted = wanted_state(arguments)
    others = handover.install(arguments.dataplane, wanted, arguments.keep_others)
    print(f"{arguments.dataplane}: pods on {wanted.interface} are redirected to {wanted.host_address}:{wanted.port}")
    for name in others.removed:
        print(f"{name}: taken out, {arguments.dataplane} is in its place")
    for name, reason in others.stuck.items():
        print(f"kiam dataplane: warning: {name} is installed too and can't be taken out: {reason}", file=sys.stderr)
    return 0


def _remove(arguments: argparse.Namespace) -> int:
    failures = 0
    for name in _names(arguments.dataplane):
        try:
            load_dataplane(name).remove()
        except UserError as error:
            # One that lacks its programs or libraries mustn't keep the others in.
            failures += 1
            print(f"kiam dataplane: {name}: {error}", file=sys.stderr)
        else:
            print(f"{name}: nothing of ours is left")
    return 1 if failures else 0


@dataclass(frozen=True, slots=True)
class Status:
    """One dataplane as it is now."""

    dataplane: str
    condition: Condition | None = None
    found: Sequence[str] = ()
    problems: Sequence[str] = ()
    counters: Counters = field(default_factory=Counters)
    error: str | None = None

    def as_json(self) -> dict[str, Any]:
        """For ``--output json``."""
        if self.error is not None:
            return {"dataplane": self.dataplane, "error": self.error}
        return {
            "dataplane": self.dataplane,
            "condition": self.condition,
            "redirects": self.counters.redirects,
            "drops": dict(self.counters.drops or {}),
            "found": list(self.found),
            "problems": list(self.problems),
        }


def read_status(name: str, wanted: WantedState | None) -> Status:
    """Ask one dataplane. What it can't be asked for becomes the status's error."""
    try:
        dataplane = load_dataplane(name)
        inspection = dataplane.inspect(wanted)
        counters = Counters() if inspection.condition is Condition.ABSENT else dataplane.counters()
    except UserError as error:
        return Status(name, error=str(error))
    return Status(name, inspection.condition, inspection.found, inspection.problems, counters)


def as_wanted(statuses: Sequence[Status]) -> bool:
    """Whether something is installed, and nothing that is differs from what is wanted."""
    conditions = [status.condition for status in statuses]
    return Condition.INSTALLED in conditions and Condition.DIFFERENT not in conditions


def several_installed(statuses: Sequence[Status]) -> str:
    """One line for a node with more than one dataplane; empty otherwise."""
    names = [one.dataplane for one in statuses if one.condition in (Condition.INSTALLED, Condition.DIFFERENT)]
    if len(names) < 2:
        return ""
    return (
        f"{' and '.join(names)} are installed at the same time: when the agent's address or port changes, all but one "
        f"will lead pods nowhere; take out those you don't use, as with 'kiam dataplane remove --dataplane={names[0]}'"
    )


def _lines(status: Status) -> Iterator[str]:
    yield from status.problems
    if status.error is not None:
        yield status.error


def build_table(statuses: Sequence[Status]) -> Table:
    """The table for people."""
    from rich.table import Table
    from rich.text import Text

    colours = {Condition.INSTALLED: "green", Condition.DIFFERENT: "yellow", Condition.ABSENT: "dim"}
    table = Table()
    for heading in ("dataplane", "condition", "redirects", "drops", "what differs"):
        table.add_column(heading, overflow="fold")
    for status in statuses:
        counters, condition = status.counters, status.condition
        drops = ", ".join(f"{count} {reason}" for reason, count in (counters.drops or {}).items() if count)
        installed = condition in (Condition.INSTALLED, Condition.DIFFERENT)
        table.add_row(
            status.dataplane,
            Text(condition, colours[condition]) if condition else Text("unknown", "red"),
            str(counters.redirects) if installed else "",
            (drops or "0") if installed else "",
            # Text, not markup: a rule may hold square brackets.
            Text("\n".join(_lines(status))),
        )
    return table


def _status(arguments: argparse.Namespace) -> int:
    wanted = find_wanted_state(arguments)
    names = _names(arguments.dataplane)

    def read() -> list[Status]:
        return [read_status(name, wanted) for name in names]

    statuses = read()
    if several := several_installed(statuses):
        print(f"kiam dataplane: warning: {several}", file=sys.stderr, flush=True)
    if arguments.output == "json":
        print(json.dumps([status.as_json() for status in statuses]), flush=True)
    if arguments.watch:
        statuses = _watch(arguments, statuses, read)
    elif arguments.output == "table":
        from rich.console import Console

        Console().print(build_table(statuses))
    return 0 if as_wanted(statuses) else 1


def _watch(arguments: argparse.Namespace, statuses: list[Status], read: Any) -> list[Status]:
    from contextlib import nullcontext

    from rich.live import Live

    live = Live(build_table(statuses), auto_refresh=False) if arguments.output == "table" else nullcontext()
    try:
        with live:
            while True:
                time.sleep(WATCH_SECONDS)
                statuses = read()
                if arguments.output == "json":
                    print(json.dumps([status.as_json() for status in statuses]), flush=True)
                elif isinstance(live, Live):
                    live.update(build_table(statuses), refresh=True)
    except KeyboardInterrupt:
        return statuses
