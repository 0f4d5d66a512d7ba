"""The ``kiam`` command. Each subcommand is a module of this package, imported only when it is the one asked for."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from kiam import __version__
from kiam.errors import UserError

COMMANDS = {
    "agent": "run the node agent",
    "server": "run the server",
    "dataplane": "install, remove, show or verify the redirect, without an agent",
    "untaint": "take the startup taint off nodes whose agent is ready",
    "health": "exit 0 if the server answers ok",
    "config": "check the flags of agent or server, and what they point at",
    "certs": "make an authority and certificates, for trying kiam out",
    "completion": "print a completion script for bash, zsh or fish",
}
"""Subcommand: its line of help. Module ``kiam.cli.<name>`` has ``configure(parser)`` and ``run(arguments) -> int``."""

_SERVER_PACKAGES = frozenset({"boto3", "botocore", "kubernetes", "msgspec", "yaml"})
"""What the agents' image has not."""


def build_parser(only: str | None = None) -> argparse.ArgumentParser:
    """The parser of the whole command line; with ``only``, just that subcommand's flags are filled in.

    Filling in one keeps ``kiam health``, which kubelet runs every few seconds, from importing the rest.
    """
    parser = argparse.ArgumentParser(prog="kiam", description="AWS IAM roles for Kubernetes pods.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"kiam {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        if only is None or name == only:
            import_module(f"kiam.cli.{name}").configure(command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the return value is the process's exit code."""
    argv = sys.argv[1:] if argv is None else argv
    only = next((word for word in argv if not word.startswith("-")), "")
    arguments = build_parser(only).parse_args(argv)
    try:
        return int(import_module(f"kiam.cli.{arguments.command}").run(arguments))
    except UserError as error:
        print(f"kiam {arguments.command}: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _SERVER_PACKAGES:
            raise
        fix = "use the servers' image (deploy/Dockerfile, target server), or install kiam[server]"
        print(f"kiam {arguments.command}: the package {package} is missing; {fix}", file=sys.stderr)
        return 1
