"""The gRPC server's socket: mutual TLS that follows the files, and the connection flags."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import grpc
from grpc import aio

from kiam.errors import UserError
from kiam.server.settings import ServerSettings
from kiam.telemetry import parse_listen_address
from kiam.tls import TLSMaterial
from kiam.tls.reload import TLSReloader

LEAST_PING_INTERVAL_MS = 500
"""An agent may ping once a second (its own default is every ten), and be early by half of that.

What pings more often is cut off."""
PENDING, MOST_PENDING = 10_000, 20_000
"""Calls received and not yet begun. gRPC's own 1,000 are reached when all agents of a large cluster reconnect at once,
and then it refuses at random."""


def make_grpc_server(config: ServerSettings) -> aio.Server:
    """A server that is not listening yet."""
    return aio.server(options=_options(config))


def listen(server: aio.Server, bind: str, tls: TLSReloader) -> int:
    """Open the port, for clients that present a certificate of the authority; the port's number.

    gRPC asks for the certificate at each handshake, so a new one serves new connections and cuts no old one.
    Raises UserError.
    """
    try:
        host, port = parse_listen_address(bind)
    except ValueError as error:
        raise UserError(f"--bind: {error}") from error
    address = f"[{host}]:{port}" if ":" in host or not host else f"{host}:{port}"
    in_use = tls.material

    def changed() -> Any:
        """The configuration for the coming handshake; None: as before.

        gRPC takes the object's contents away: giving it the same one twice crashes the process.
        """
        nonlocal in_use
        newest = tls.material
        if newest is in_use:
            return None
        in_use = newest
        return _configuration(newest)

    # The attack stopped: without a client certificate anyone who reaches the port could ask for any pod's credentials.
    credentials = grpc.dynamic_ssl_server_credentials(
        _configuration(in_use), changed, require_client_authentication=True
    )
    try:
        return int(server.add_secure_port(address if host else f"[::]:{port}", credentials))
    except RuntimeError as error:
        raise UserError(f"--bind: can't listen on {bind}: it is in use, or not an address of this machine") from error


def _configuration(material: TLSMaterial) -> Any:
    return grpc.ssl_server_certificate_configuration([(material.key, material.cert)], material.ca)


def _options(config: ServerSettings) -> list[tuple[str, int]]:
    durations = {
        "grpc.keepalive_time_ms": config.grpc_keepalive_time_duration,
        "grpc.keepalive_timeout_ms": config.grpc_keepalive_timeout_duration,
        # A ping without an answer counts as lost after this, by default a minute, whatever the keepalive timeout says.
        "grpc.http2.ping_timeout_ms": config.grpc_keepalive_timeout_duration,
        "grpc.max_connection_idle_ms": config.grpc_max_connection_idle_duration,
        "grpc.max_connection_age_ms": config.grpc_max_connection_age_duration,
        "grpc.max_connection_age_grace_ms": config.grpc_max_connection_age_grace_duration,
    }
    return [
        ("grpc.so_reuseport", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", LEAST_PING_INTERVAL_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.server.max_pending_requests", PENDING),
        ("grpc.server.max_pending_requests_hard_limit", MOST_PENDING),
        # As in Go, nought means gRPC's own default.
        *((name, int(duration / timedelta(milliseconds=1))) for name, duration in durations.items() if duration),
    ]
