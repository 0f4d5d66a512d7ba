"""``kiam completion bash|zsh|fish``: a script that completes kiam's commands and flags."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from kiam.cli.options import actions

SHELLS = {
    "bash": "source <(kiam completion bash)",
    "zsh": 'kiam completion zsh > "${fpath[1]}/_kiam"',
    "fish": "kiam completion fish > ~/.config/fish/completions/kiam.fish",
}
"""How the script of each shell is put to use."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the shell."""
    parser.description = "Print a completion script."
    parser.epilog = "; ".join(f"{shell}: {use}" for shell, use in SHELLS.items())
    parser.add_argument("shell", choices=tuple(SHELLS), help="the shell it is for")


def run(arguments: argparse.Namespace) -> int:
    """Print the script for the whole command line as it is now."""
    import shtab

    from kiam.cli import build_parser

    parser = build_parser()
    for action in _actions(parser):
        if action.metavar == "FILE":
            action.complete = shtab.FILE  # type: ignore[attr-defined]  # shtab's own attribute
        elif action.metavar == "DIR":
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]  # shtab's own attribute
    print(shtab.complete(parser, arguments.shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All actions of a parser and its subcommands."""
    for action in actions(parser):
        yield action
        # Only subcommands are chosen from by name; a flag's choices are no mapping.
        for subparser in action.choices.values() if isinstance(action.choices, dict) else ():
            yield from _actions(subparser)
