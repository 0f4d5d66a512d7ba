"""The ``kiam`` command. Each subcommand is a module of this package, imported only when it is the one asked for."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

from kiam import __version__
from kiam.errors import UserError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

COMMANDS = {
    "agent": "run the node agent",
    "server": "run the server",
    "dataplane": "install, remove, show or verify the redirect, without an agent",
    "untaint": "take the startup taint off nodes whose agent is ready",
    "collect": "wait for a command that a DaemonSet runs on each node, and print what it said",
    "health": "exit 0 if the server answers ok",
    "explain": "say why a pod gets its role or doesn't, and what fixes it",
    "status": "show what a server knows and does: agents, roles, STS, certificates",
    "config": "check the flags of agent or server, and what they point at",
    "certs": "make an authority and certificates, for trying kiam out",
    "completion": "print a completion script for bash, zsh or fish",
    "help": "show how kiam, or one of its commands, is used",
}
"""Subcommand: its line of help. Module ``kiam.cli.<name>`` has ``configure(parser)`` and ``run(arguments) -> int``."""

_SERVER_PACKAGES = frozenset({"boto3", "botocore", "kubernetes", "msgspec", "yaml"})
"""What the agents' image has not."""

INTERRUPTED = 128 + signal.SIGINT
READER_GONE = 128 + signal.SIGPIPE
"""Exit codes as shells give them for a program that a signal ended."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong with a command line in one line, as conventional kiam does, and not the whole usage."""

    def error(self, message: str) -> NoReturn:
        """Exit with 2, the line and a hint."""
        hint = " ".join(["kiam help", *self.prog.split()[1:]])
        self.exit(2, f"{self.prog}: {message}; see '{hint}'\n")


def build_parser(only: str | None = None) -> argparse.ArgumentParser:
    """The parser of the whole command line; with ``only``, just that subcommand's flags are filled in.

    Filling in one keeps ``kiam health``, which kubelet runs every few seconds, from importing the rest.
    """
    parser = Parser(prog="kiam", description="AWS IAM roles for Kubernetes pods.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"kiam {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        if only is None or name == only:
            import_module(f"kiam.cli.{name}").configure(command)
    return parser


class Output(io.FileIO):
    """Standard output that remembers what kept it from being written, to tell that from a command's own errors."""

    failure: OSError | None = None

    def write(self, data: ReadableBuffer, /) -> int:
        """As io.FileIO, whose errors it raises."""
        try:
            return super().write(data)
        except OSError as error:
            self.failure = error
            raise


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the return value is the process's exit code."""
    # Python has None for what was closed when it started.
    sys.stdout = sys.stdout or _nowhere()
    sys.stderr = sys.stderr or _nowhere()
    output = _remembering() if sys.stdout is sys.__stdout__ else None
    try:
        try:
            return _run(sys.argv[1:] if argv is None else argv)
        finally:
            # Also when argparse exits: what can't be written is to be said here, not by the interpreter at its end.
            sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        if output is None or error is not output.failure:
            raise
        _abandon(output)
        if isinstance(error, BrokenPipeError):
            return READER_GONE
        _complain(f"kiam: standard output can't be written to: {error.strerror}")
        return 1


def _remembering() -> Output:
    """Put an Output below standard output."""
    output = Output(sys.stdout.fileno(), "wb", closefd=False)
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(output),
        encoding=sys.stdout.encoding,
        errors=sys.stdout.errors,
        line_buffering=output.isatty(),
    )
    return output


def _run(argv: Sequence[str]) -> int:
    only = next((word for word in argv if not word.startswith("-")), "")
    arguments = build_parser(only).parse_args(argv)
    try:
        return int(import_module(f"kiam.cli.{arguments.command}").run(arguments))
    except UserError as error:
        _complain(f"kiam {arguments.command}: {error}")
        return 1
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _SERVER_PACKAGES:
            raise
        fix = "use the servers' image (deploy/Dockerfile, target server), or install kiam[server]"
        _complain(f"kiam {arguments.command}: the package {package} is missing; {fix}")
        return 1


def _complain(line: str) -> None:
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr)


def _nowhere() -> TextIO:
    return Path(os.devnull).open("w")  # for as long as the process lives


def _abandon(output: Output) -> None:
    """Have what is left in the buffer go nowhere, so that the interpreter doesn't stumble over it at its end."""
    with contextlib.suppress(OSError), Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), output.fileno())
