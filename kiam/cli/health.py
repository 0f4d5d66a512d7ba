"""``kiam health``: exit 0 if the server answers "ok".

Kubelet runs this every few seconds, so it imports next to nothing: no asyncio, no protobuf, no cryptography.
"""

from __future__ import annotations

import argparse
import os
import sys
from datetime import timedelta
from types import ModuleType
from typing import Any

from kiam.cli.options import add_common, add_server_client, duration, tls_files
from kiam.errors import UserError

_METHOD = "/kiam.KiamService/GetHealth"
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
    # gRPC's own lines would come before ours, and say less. Read when grpc is loaded.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # grpc imports its asyncio half on its own account, which nobody needs here: a quarter of what grpc costs to load.
    sys.modules.setdefault("grpc.aio", ModuleType("grpc.aio"))
    import grpc

    material = tls_files(arguments).read()
    address: str = arguments.server_address
    seconds = arguments.timeout.total_seconds()
    credentials = grpc.ssl_channel_credentials(material.ca, material.key, material.cert)
    target = address if address.startswith(("dns:", "ipv4:", "ipv6:", "unix:")) else f"dns:///{address}"
    options = [("grpc.enable_http_proxy", 0), ("grpc.initial_reconnect_backoff_ms", 100)]

    def ask() -> bytes:
        with grpc.secure_channel(target, credentials, options) as channel:
            return _ask(channel, seconds)

    try:
        try:
            answer = ask()
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE or not _needs_lenient_tls(arguments):
                raise
            answer = _ask_leniently(arguments)
    except grpc.RpcError as error:
        if arguments.live and error.code() in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.UNKNOWN):
            return 0
        raise UserError(_reason(address, arguments, error)) from None
    if answer != _OK and not arguments.live:
        raise UserError(f"the server at {address} answers, but isn't ready: {_message(answer)}")
    return 0


def _ask(channel: Any, seconds: float) -> bytes:
    answer: bytes = channel.unary_unary(_METHOD, _as_is, _as_is)(_EMPTY_REQUEST, timeout=seconds)
    return answer


def _needs_lenient_tls(arguments: argparse.Namespace) -> bool:
    """Whether the server is well, but has a certificate that gRPC's TLS refuses; costs more than the check itself."""
    from kiam.tls.diagnosis import needs_lenient_tls

    return needs_lenient_tls(arguments.server_address, tls_files(arguments), arguments.timeout.total_seconds())


def _ask_leniently(arguments: argparse.Namespace) -> bytes:
    """Ask a server whose certificate is for 'any' usage. Raises grpc.RpcError."""
    import grpc

    from kiam.tls.tunnel import ask_through_tunnel

    def ask(target: str) -> bytes:
        with grpc.insecure_channel(target) as channel:
            return _ask(channel, arguments.timeout.total_seconds())

    return ask_through_tunnel(arguments.server_address, tls_files(arguments), ask)


def _as_is(blob: bytes) -> bytes:
    return blob


def _message(answer: bytes) -> str:
    return ascii(answer[2:].decode("utf-8", "replace"))


def _reason(address: str, arguments: argparse.Namespace, error: Exception) -> str:
    """One line on what is wrong; a TLS problem is looked into, which may cost more than the check itself."""
    import grpc

    assert isinstance(error, grpc.Call)
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.UNAVAILABLE:
        from kiam.tls.diagnosis import explain_failure

        if found := explain_failure(address, tls_files(arguments), arguments.timeout.total_seconds()):
            return f"no connection to the server at {address}: {found}"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"the server at {address} doesn't answer in time; --timeout gives it longer"
    if code is grpc.StatusCode.FAILED_PRECONDITION:
        return f"the server at {address} answers, but isn't ready: {details!a}"
    return f"the server at {address} isn't well: {details or code.name}"
