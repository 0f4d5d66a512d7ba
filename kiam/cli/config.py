"""``kiam config check agent|server …``: try a configuration out before something depends on it.

Takes the same flags as the command itself. All flags are looked at, not only the first that is wrong; then what they
point at is tried: files are opened, certificates inspected, the server, the Kubernetes API and STS are reached. Nothing
is changed anywhere.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from importlib import import_module

from kiam.cli.check_table import print_results
from kiam.cli.config_flags import check_flags, collect_problems
from kiam.verify.results import CheckResult, any_failed

CHECKED = {"agent": "the flags of kiam agent", "server": "the flags of kiam server"}
"""Command: its help. Module ``kiam.cli.config_<command>`` has ``checks(arguments, unusable flags) -> results``."""

PARSER = "checked_parser"
"""Where the parsed arguments keep the parser that read them."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add ``check`` and below it the commands with their own flags."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    summary = "try flags out: each value, and what it points at"
    check = actions.add_parser("check", help=summary, description=summary, allow_abbrev=False)
    commands = check.add_subparsers(dest="checked", required=True, metavar="COMMAND")
    for name, help_text in CHECKED.items():
        command = commands.add_parser(name, help=help_text, description=f"Check {help_text}.", allow_abbrev=False)
        import_module(f"kiam.cli.{name}").configure(command)
        collect_problems(command)
        command.add_argument("--output", choices=("table", "json"), default="table", help="for people or for programs")
        command.set_defaults(**{PARSER: command})


def run(arguments: argparse.Namespace) -> int:
    """Check, print, and return 0 only if nothing failed."""
    flags = check_flags(getattr(arguments, PARSER), arguments)
    checks: Callable[[argparse.Namespace, frozenset[str]], Sequence[CheckResult]]
    checks = import_module(f"kiam.cli.config_{arguments.checked}").checks
    results = [*flags.results, *checks(arguments, flags.unusable)]
    print_results(results, arguments.output)
    return int(any_failed(results))
