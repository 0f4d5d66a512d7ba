"""One call to the server from a command, with no more imported than that takes: kubelet runs one every few seconds."""

from __future__ import annotations

import argparse
import sys
from types import ModuleType
from typing import Any

from kiam.cli.options import tls_files
from kiam.grpc_core import prepare_grpc

SERVICE = "/kiam.KiamService/"
_LARGEST_ANSWER = ("grpc.max_receive_message_length", 64 << 20)
"""Bytes; gRPC's own bound of 4 MiB is too little for the status of a very large cluster."""


def load_grpc() -> Any:
    """gRPC, silent and without its asyncio half. Whoever imports it first decides, so a command gets it from here."""
    prepare_grpc()
    # grpc imports its asyncio half on its own account, which nobody needs here: a quarter of what grpc costs to load.
    sys.modules.setdefault("grpc.aio", ModuleType("grpc.aio"))
    import grpc

    return grpc


def call(arguments: argparse.Namespace, method: str, request: bytes) -> bytes:
    """The encoded answer of a unary method. Raises grpc.RpcError and UserError.

    ``arguments``: with ``server_address``, ``timeout`` and the TLS files.
    """
    grpc = load_grpc()
    material = tls_files(arguments).read()
    address: str = arguments.server_address
    credentials = grpc.ssl_channel_credentials(material.ca, material.key, material.cert)
    target = address if address.startswith(("dns:", "ipv4:", "ipv6:", "unix:")) else f"dns:///{address}"
    options = [("grpc.enable_http_proxy", 0), ("grpc.initial_reconnect_backoff_ms", 100), _LARGEST_ANSWER]
    seconds = arguments.timeout.total_seconds()
    try:
        with grpc.secure_channel(target, credentials, options) as channel:
            return _ask(channel, method, request, seconds)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE or not _needs_lenient_tls(arguments):
            raise
    return _ask_leniently(arguments, method, request)


def reason(arguments: argparse.Namespace, error: Exception) -> str:
    """One line on what is wrong with a call; a TLS problem is looked into, which may cost more than the call itself."""
    import grpc

    assert isinstance(error, grpc.Call)
    address: str = arguments.server_address
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


def _ask(channel: Any, method: str, request: bytes, seconds: float) -> bytes:
    answer: bytes = channel.unary_unary(SERVICE + method, _as_is, _as_is)(request, timeout=seconds)
    return answer


def _needs_lenient_tls(arguments: argparse.Namespace) -> bool:
    """Whether the server is well, but has a certificate that gRPC's TLS refuses; costs more than the call itself."""
    from kiam.tls.diagnosis import needs_lenient_tls

    return needs_lenient_tls(arguments.server_address, tls_files(arguments), arguments.timeout.total_seconds())


def _ask_leniently(arguments: argparse.Namespace, method: str, request: bytes) -> bytes:
    """Ask a server whose certificate is for 'any' usage. Raises grpc.RpcError."""
    import grpc

    from kiam.tls.tunnel import ask_through_tunnel

    def ask(target: str) -> bytes:
        with grpc.insecure_channel(target, [_LARGEST_ANSWER]) as channel:
            return _ask(channel, method, request, arguments.timeout.total_seconds())

    return ask_through_tunnel(arguments.server_address, tls_files(arguments), ask)


def _as_is(blob: bytes) -> bytes:
    return blob
