"""gRPC behind the front: its private Unix socket, and the connection flags."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import tempfile
from datetime import timedelta
from typing import Any

from grpc import aio

from kiam.rpc import kiam_pb2_grpc
from kiam.server.settings import ServerSettings

LEAST_PING_INTERVAL_MS = 500
"""An agent may ping once a second (its own default is every ten), and be early by half of that.

What pings more often is cut off."""
PENDING, MOST_PENDING = 10_000, 20_000
"""Calls received and not yet begun. gRPC's own 1,000 are reached when all agents of a large cluster reconnect at once,
and then it refuses at random."""
FIRST_FRAMES_MS = 5000
"""For HTTP/2's first frames."""


class _PrivateSocket:
    """A Unix socket on which the front joins clients to gRPC, in a folder that only this user may enter."""

    def __init__(self) -> None:
        self._folder: str | None = None
        for place in (None, "/run", "/dev/shm"):  # noqa: S108  # made with mkdtemp, for this user alone
            with contextlib.suppress(OSError):
                self._folder = tempfile.mkdtemp(prefix="kiam-", dir=place)
                break

    def add_to(self, server: aio.Server) -> str:
        """Have a server listen on it; its path."""
        if self._folder is None:
            # Nowhere to write. Others on the host's network could connect then, and be refused by Callers.
            name = f"kiam-{secrets.token_hex(16)}"
            server.add_insecure_port(f"unix-abstract:{name}")
            return f"\0{name}"
        path = f"{self._folder}/grpc"
        server.add_insecure_port(f"unix:{path}")
        return path

    def close(self) -> None:
        """Remove the folder."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


class Backend:
    """The gRPC server."""

    def __init__(self, config: ServerSettings) -> None:
        """It isn't listening yet."""
        self._server = aio.server(options=_options(config))
        self._socket = _PrivateSocket()

    async def start(self, service: Any) -> str:
        """Answer with a servicer from now on; the path of the Unix socket. Raises RuntimeError."""
        kiam_pb2_grpc.add_KiamServiceServicer_to_server(service, self._server)
        path = self._socket.add_to(self._server)
        await self._server.start()
        return path

    async def stop(self, seconds: float) -> None:
        """Let calls under way end for so many seconds at most."""
        await self._server.stop(seconds)
        self._socket.close()


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
        ("grpc.server_handshake_timeout_ms", FIRST_FRAMES_MS),
        ("grpc.http2.settings_timeout", FIRST_FRAMES_MS),
        ("grpc.http2.min_ping_interval_without_data_ms", LEAST_PING_INTERVAL_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.server.max_pending_requests", PENDING),
        ("grpc.server.max_pending_requests_hard_limit", MOST_PENDING),
        # As in Go, nought means gRPC's own default.
        *((name, int(duration / timedelta(milliseconds=1))) for name, duration in durations.items() if duration),
    ]
