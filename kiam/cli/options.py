"""Flags that several commands share, with conventional kiam's names and defaults."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from kiam.durations import parse_duration
from kiam.tls import TLSFiles

T = TypeVar("T")

WITHOUT_EFFECT: dict[str, tuple[object, str]] = {
    "server_address_refresh": (timedelta(0), "addresses are always looked up anew"),
    "prometheus_sync_interval": (timedelta(seconds=5), "metrics are always of the moment they are asked for"),
    "prefetch_buffer_size": (1000, "pods wait for their credentials in memory, where none is dropped"),
}
"""Conventional flags that are taken and mean nothing any more: their default, and why there is nothing left to set."""


def flags_without_effect(arguments: argparse.Namespace) -> list[str]:
    """One line for each flag that was set for nothing."""
    return [
        f"--{name.replace('_', '-')} has no effect any more: {reason}"
        for name, (default, reason) in WITHOUT_EFFECT.items()
        if getattr(arguments, name, default) != default
    ]


def flag_type(parse: Callable[[str], T], name: str) -> Callable[[str], T]:
    """A parser whose ValueError message reaches the user whole (argparse would put its own words in its place)."""

    def parse_flag(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    parse_flag.__name__ = name
    return parse_flag


def _duration(text: str) -> timedelta:
    parsed = parse_duration(text)
    if parsed < timedelta(0):
        raise ValueError(f"'{text}' is negative; give 0s or more")
    return parsed


def _positive_duration(text: str) -> timedelta:
    parsed = parse_duration(text)
    if parsed <= timedelta(0):
        raise ValueError(f"'{text}' is not more than 0s")
    return parsed


def _server_address(text: str) -> str:
    if text.startswith(("ipv4:", "ipv6:", "unix:")):
        return text
    host, _, port = text.removeprefix("dns:///").rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"'{text}' is not HOST:PORT; write it like kiam-server:443")
    return text


duration: Callable[[str], timedelta] = flag_type(_duration, "duration")
positive_duration: Callable[[str], timedelta] = flag_type(_positive_duration, "duration")
server_address: Callable[[str], str] = flag_type(_server_address, "address")


def _existing_file(text: str) -> Path:
    path = Path(text)
    if not path.is_file():
        raise ValueError(f"no file at '{text}'")
    return path


existing_file: Callable[[str], Path] = flag_type(_existing_file, "file")


def add_boolean(parser: argparse.ArgumentParser, flag: str, default: bool, help_text: str) -> None:
    """Add ``--flag`` and ``--no-flag``."""
    parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default, help=help_text)


def add_common(parser: argparse.ArgumentParser) -> None:
    """Logging and TLS flags, which every command has."""
    add_boolean(parser, "--json-log", False, "log JSON objects")
    parser.add_argument("--level", choices=("debug", "info", "warn", "error"), default="info", help="log level")
    add_tls(parser)


def add_tls(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """The TLS files; without ``required`` they may be missing."""
    for flag, what in (
        ("--cert", "certificate"),
        ("--key", "private key"),
        ("--ca", "certificate authority"),
    ):
        parser.add_argument(flag, type=existing_file, required=required, metavar="FILE", help=f"PEM {what}")


def tls_files(arguments: argparse.Namespace) -> TLSFiles:
    """The TLS files of parsed arguments."""
    return TLSFiles(arguments.cert, arguments.key, arguments.ca)


def add_telemetry(parser: argparse.ArgumentParser) -> None:
    """Prometheus and profiling flags, which agent and server have."""
    parser.add_argument("--prometheus-listen-addr", metavar="HOST:PORT", help="serve /metrics there")
    parser.add_argument(
        "--prometheus-sync-interval",
        type=duration,
        default=timedelta(seconds=5),
        metavar="DURATION",
        help="accepted for compatibility; metrics are always of the moment they are asked for",
    )
    parser.add_argument("--pprof-listen-addr", metavar="HOST:PORT", help="serve a CPU profile of this process there")


def add_server_address(parser: argparse.ArgumentParser) -> None:
    """Where the server is."""
    parser.add_argument(
        "--server-address",
        type=server_address,
        default="localhost:9610",
        metavar="HOST:PORT",
        help="every address that this name has is used in turn (a headless Service)",
    )


def add_server_client(parser: argparse.ArgumentParser) -> None:
    """How agent and health reach the server."""
    add_server_address(parser)
    parser.add_argument(
        "--server-address-refresh",
        type=duration,
        default=timedelta(0),
        metavar="DURATION",
        help="deprecated, ignored",
    )
    parser.add_argument(
        "--gateway-timeout-creation",
        type=duration,
        default=timedelta(seconds=1),
        metavar="DURATION",
        help="the agent logs a warning if it has no server after this long (1s), and goes on trying",
    )
    add_keepalive(parser)
    add_boolean(parser, "--grpc-keepalive-permit-without-stream", False, "send keepalive pings even without a call")


def add_keepalive(parser: argparse.ArgumentParser) -> None:
    """gRPC keepalive, which both ends have."""
    parser.add_argument(
        "--grpc-keepalive-time-duration",
        type=positive_duration,
        default=timedelta(seconds=10),
        metavar="DURATION",
        help="send a keepalive ping after so long without traffic (10s)",
    )
    parser.add_argument(
        "--grpc-keepalive-timeout-duration",
        type=positive_duration,
        default=timedelta(seconds=2),
        metavar="DURATION",
        help="close the connection if a keepalive ping isn't answered within this time (2s)",
    )


_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


def namespace(text: str) -> str:
    """A namespace's name. Raises ValueError."""
    if not _NAMESPACE.fullmatch(text):
        raise ValueError(f"'{text}' is not a namespace's name")
    return text


def label_selector(text: str) -> dict[str, str]:
    """Labels that have to be equal, as in ``app=kiam,component=agent``. Raises ValueError."""
    terms = [term.partition("=") for term in text.split(",")]
    labels = {name: value for name, _, value in terms}
    if not all(name and sign and "=" not in value for name, sign, value in terms):
        raise ValueError(f"'{text}' is not a list of labels; write it like app=kiam,component=agent")
    return labels


def actions(parser: argparse.ArgumentParser) -> Sequence[argparse.Action]:
    """A parser's own flags and subcommands."""
    return parser._actions  # noqa: SLF001  # argparse offers no public way to list them
