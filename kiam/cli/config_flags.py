"""Reading all flags of a command, the good and the bad, where the command itself stops at the first bad one."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta

from kiam.cli.options import WITHOUT_EFFECT, actions
from kiam.durations import format_duration
from kiam.verify.results import CheckResult, failed, passed, warned

_NOT_THE_COMMANDS = frozenset({"help", "output"})


@dataclass(frozen=True, slots=True)
class BadValue:
    """Stands in the parsed arguments for a value that the flag doesn't take."""

    reason: str


@dataclass(frozen=True, slots=True)
class Missing:
    """Stands in the parsed arguments for a required flag that wasn't given."""


@dataclass(frozen=True, slots=True)
class Flags:
    """What was found on the command line."""

    results: tuple[CheckResult, ...]
    unusable: frozenset[str]
    """The flags whose values the command would not start with."""


def collect_problems(parser: argparse.ArgumentParser) -> None:
    """Have a parser take every value, and put BadValue or Missing where it would have refused."""
    for action in _actions(parser):
        if action.required:
            action.required = False
            action.default = Missing()
        if callable(action.type) or action.choices is not None:
            convert = action.type if callable(action.type) else str
            action.type = _collecting(convert, action.choices)
            action.choices = None
    for group in parser._mutually_exclusive_groups:  # noqa: SLF001  # argparse offers no public way to list them
        group.required = False


def check_flags(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> Flags:
    """One line a flag: its value as it was understood, or why it wasn't."""
    results = []
    unusable = set()
    for action in _actions(parser):
        flag = action.option_strings[0]
        value = getattr(arguments, action.dest)
        results.append(_check(flag, action, value))
        if isinstance(value, BadValue | Missing):
            unusable.add(flag)
    return Flags(tuple(results), frozenset(unusable))


def _check(flag: str, action: argparse.Action, value: object) -> CheckResult:
    example = f"{flag}={action.metavar or action.dest.upper()}"
    if isinstance(value, Missing):
        return failed(flag, "required, and not given", f"give {example}")
    if isinstance(value, BadValue):
        return failed(flag, value.reason, f"give another {example}")
    shown = _show(value)
    if value == action.default:
        return passed(flag, f"{shown} (default)")
    if action.dest in WITHOUT_EFFECT:
        return warned(flag, f"{shown}; has no effect any more: {WITHOUT_EFFECT[action.dest][1]}", f"leave {flag} out")
    return passed(flag, shown)


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The command's own flags."""
    for action in actions(parser):
        if action.option_strings and action.dest not in _NOT_THE_COMMANDS:
            yield action


def _collecting(convert: Callable[[str], object], choices: Iterable[object] | None) -> Callable[[str], object]:
    allowed = None if choices is None else list(choices)

    def collect(text: str) -> object:
        try:
            value = convert(text)
        except (argparse.ArgumentTypeError, ValueError, TypeError) as error:
            return BadValue(str(error) or f"'{text}' is not understood")
        if allowed is not None and value not in allowed:
            return BadValue(f"'{text}' is none of {', '.join(map(str, allowed))}")
        return value

    return collect


def _show(value: object) -> str:
    match value:
        case None:
            return "not set"
        case bool():
            return "on" if value else "off"
        case timedelta():
            return format_duration(value)
        case "":
            return "empty"
        case _:
            return str(value)
