"""``kiam help [command ...]``: the same as ``kiam [command ...] --help``."""

from __future__ import annotations

import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the words."""
    parser.add_argument("words", nargs="*", metavar="COMMAND", help="such as: agent, or: dataplane verify")


def run(arguments: argparse.Namespace) -> int:
    """Print the help. Exits with 2 for a command there isn't."""
    from kiam.cli import build_parser

    words = list(arguments.words)
    build_parser(words[0] if words else "").parse_args([*words, "--help"])
    return 0
