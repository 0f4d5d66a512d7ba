"""``kiam health``: exit 0 if the server answers "ok".

Kubelet runs this every few seconds, so it imports next to nothing: no asyncio, no protobuf, no cryptography.
"""

from __future__ import annotations

import argparse
from datetime import timedelta

from kiam.cli.calls import call, load_grpc, reason
from kiam.cli.options import add_common, add_server_client, duration
from kiam.errors import UserError

_EMPTY_REQUEST = b""
"""A GetHealthRequest has no fields, so its encoding has no bytes."""
_OK = b"\n\x02ok"
"""HealthStatus{message: "ok"}: field 1, wire type 2 (tag 0x0a), length 2. Loading protobuf for it would cost more."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the health check's flags."""
    add_common(parser)
    add_server_client(parser)
    parser.add_argument(
        "--timeout", type=duration, default=timedelta(seconds=1), metavar="DURATION", help="how long to wait"
    )
    # A server that waits for STS or the Kubernetes API is alive: restarting it would only make it wait longer.
    parser.add_argument("--live", action="store_true", help="any answer will do, also 'not ready': for liveness probes")


def run(arguments: argparse.Namespace) -> int:
    """Ask once. Raises UserError with the reason when the answer isn't "ok"."""
    grpc = load_grpc()

    try:
        answer = call(arguments, "GetHealth", _EMPTY_REQUEST)
    except grpc.RpcError as error:
        if arguments.live and error.code() in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.UNKNOWN):
            return 0
        raise UserError(reason(arguments, error)) from None
    if answer != _OK and not arguments.live:
        raise UserError(f"the server at {arguments.server_address} answers, but isn't ready: {_message(answer)}")
    return 0


def _message(answer: bytes) -> str:
    return ascii(answer[2:].decode("utf-8", "replace"))
