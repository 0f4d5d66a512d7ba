"""gRPC's own sockets: mutual TLS that follows the files, the front's Unix socket, and the connection flags."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
import tempfile
from datetime import timedelta
from typing import Any

import grpc
from grpc import aio

from kiam.rpc import kiam_pb2_grpc
from kiam.server.grpc.front import COME_AGAIN_SECONDS, Backends, Front
from kiam.server.settings import ServerSettings
from kiam.tls import TLSMaterial
from kiam.tls.reload import TLSReloader

LEAST_PING_INTERVAL_MS = 500
"""An agent may ping once a second (its own default is every ten), and be early by half of that.

What pings more often is cut off."""
PENDING, MOST_PENDING = 10_000, 20_000
"""Calls received and not yet begun. gRPC's own 1,000 are reached when all agents of a large cluster reconnect at once,
and then it refuses at random."""
HANDSHAKE_MS = 5000
"""For TLS, and again for HTTP/2's first frames."""
MOST_CONNECTIONS = 20_000
"""At gRPC's own listener."""


def _listen_beside(front: Front, server: aio.Server, tls: TLSReloader) -> None:
    """Have gRPC listen on the front's port, for clients that the kernel is told to give to it. Raises RuntimeError.

    gRPC asks for the certificate at each handshake, so a new one serves new connections and cuts no old one.
    """
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
    for endpoint in front.endpoints:
        server.add_secure_port(endpoint, credentials)


class PrivateSockets:
    """Unix sockets on which the front joins clients to gRPC, in a folder that only this user may enter."""

    def __init__(self) -> None:
        self._folder: str | None = None
        for place in (None, "/run", "/dev/shm"):  # noqa: S108  # made with mkdtemp, for this user alone
            with contextlib.suppress(OSError):
                self._folder = tempfile.mkdtemp(prefix="kiam-", dir=place)
                break

    def add(self, server: aio.Server, name: str) -> str:
        """Have a server listen on one; its path."""
        if self._folder is None:
            # Nowhere to write. Others on the host's network could connect then, and be refused by Callers.
            name = f"kiam-{secrets.token_hex(16)}"
            server.add_insecure_port(f"unix-abstract:{name}")
            return f"\0{name}"
        path = f"{self._folder}/{name}"
        server.add_insecure_port(f"unix:{path}")
        return path

    def close(self) -> None:
        """Remove the folder."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


class GrpcServers:
    """gRPC as the front sees it: one server for good, and one that soon asks its clients to connect again."""

    def __init__(self, config: ServerSettings) -> None:
        """Two servers that aren't listening yet."""
        options = _options(config)
        soon = {"grpc.max_connection_age_ms": int(COME_AGAIN_SECONDS * 1000)}
        self._lasting = aio.server(options=options)
        self._brief = aio.server(options=[*(pair for pair in options if pair[0] not in soon), *soon.items()])
        self._sockets = PrivateSockets()

    async def start(self, service: Any, front: Front, tls: TLSReloader) -> None:
        """Answer with a servicer from now on. Raises RuntimeError."""
        for server in (self._lasting, self._brief):
            kiam_pb2_grpc.add_KiamServiceServicer_to_server(service, server)
        backends = Backends(self._sockets.add(self._lasting, "lasting"), self._sockets.add(self._brief, "brief"))
        if front.steers:
            _listen_beside(front, self._lasting, tls)
        for server in (self._lasting, self._brief):
            await server.start()
        front.connect(backends)

    async def stop(self, seconds: float) -> None:
        """Let calls under way end for so many seconds at most."""
        await asyncio.gather(self._lasting.stop(seconds), self._brief.stop(seconds))
        self._sockets.close()


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
        # Beside the front's socket, which was there first and lets nobody else join.
        ("grpc.so_reuseport", 1),
        # Strangers don't get here, but those who share an address with an agent.
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
        ("grpc.http2.settings_timeout", HANDSHAKE_MS),
        ("grpc.max_allowed_incoming_connections", MOST_CONNECTIONS),
        ("grpc.http2.min_ping_interval_without_data_ms", LEAST_PING_INTERVAL_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.server.max_pending_requests", PENDING),
        ("grpc.server.max_pending_requests_hard_limit", MOST_PENDING),
        # As in Go, nought means gRPC's own default.
        *((name, int(duration / timedelta(milliseconds=1))) for name, duration in durations.items() if duration),
    ]
