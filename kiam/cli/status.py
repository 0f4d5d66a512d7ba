"""``kiam status``: what one server knows and does at the moment."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from kiam.cli.calls import call, load_grpc, reason
from kiam.cli.options import add_common, add_server_client, positive_duration
from kiam.errors import UserError

if TYPE_CHECKING:
    from kiam.rpc import kiam_pb2

WATCH_SECONDS = 1.0


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the status' flags."""
    add_common(parser)
    add_server_client(parser)
    parser.add_argument(
        "--timeout", type=positive_duration, default=timedelta(seconds=5), metavar="DURATION", help="how long to wait"
    )
    parser.add_argument("--output", choices=("table", "json"), default="table", help="for people or for programs")
    parser.add_argument("--watch", action="store_true", help="show it again every second, until Ctrl-C")


def run(arguments: argparse.Namespace) -> int:
    """Show it. Raises UserError, in one line, when the server doesn't tell."""
    status = fetch(arguments)
    if arguments.output == "json":
        _print_json(status)
    if arguments.watch:
        _watch(arguments, status, lambda: fetch(arguments))
    elif arguments.output == "table":
        from rich.console import Console

        from kiam.cli.status_table import build

        # rich takes COLUMNS and NO_COLOR from the environment by itself.
        fitted = sys.stdout.isatty() or "COLUMNS" in os.environ
        Console(width=None if fitted else 160).print(build(status))
    return 0


def fetch(arguments: argparse.Namespace) -> kiam_pb2.ServerStatus:
    """Ask the server once. Raises UserError."""
    grpc = load_grpc()

    try:
        answer = call(arguments, "Status", b"")
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            raise UserError(
                f"the server at {arguments.server_address} doesn't tell its status: it is older, or conventional kiam's"
            ) from None
        raise UserError(reason(arguments, error)) from None
    from google.protobuf.message import DecodeError

    from kiam.rpc import kiam_pb2

    try:
        return kiam_pb2.ServerStatus.FromString(answer)
    except DecodeError:
        raise UserError(f"the answer of the server at {arguments.server_address} can't be parsed") from None


def as_json(status: kiam_pb2.ServerStatus) -> dict[str, Any]:
    """For programs: the protocol's names; what there isn't, such as a node's stream, is left out."""
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(status, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def _print_json(status: kiam_pb2.ServerStatus) -> None:
    print(json.dumps(as_json(status)), flush=True)


def _watch(
    arguments: argparse.Namespace, status: kiam_pb2.ServerStatus, fetch_again: Callable[[], kiam_pb2.ServerStatus]
) -> None:
    """Until Ctrl-C. A server that goes away is told of, and waited for."""
    from rich.live import Live
    from rich.text import Text

    from kiam.cli.status_table import build

    live = Live(build(status), auto_refresh=False) if arguments.output == "table" else None
    context: AbstractContextManager[object] = live or nullcontext()
    try:
        with context:
            while True:
                time.sleep(WATCH_SECONDS)
                try:
                    status = fetch_again()
                except UserError as error:
                    if live is not None:
                        live.update(Text(f"kiam status: {error}", "red"), refresh=True)
                    else:
                        print(f"kiam status: {error}", file=sys.stderr, flush=True)
                    continue
                if live is not None:
                    live.update(build(status), refresh=True)
                else:
                    _print_json(status)
    except KeyboardInterrupt:
        return
