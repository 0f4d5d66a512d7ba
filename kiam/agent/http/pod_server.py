"""All connections of pods: made here, counted by client, and ended together."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Protocol

from kiam.agent.core.askers import PeerIdentification
from kiam.agent.http.connection import BodyUse, Connection
from kiam.agent.http.dates import HttpDate
from kiam.agent.http.messages import Plain, Request, Response
from kiam.agent.metrics import AgentMetrics
from kiam.agent.settings import Limits


class Answering(Protocol):
    """What answers requests; :class:`kiam.agent.http.handlers.Handlers`."""

    draining: bool
    """The agent stops: each connection is closed with its next answer."""

    def at_once(self, address: str, plain: Plain, uid: str | None) -> bytes | None:
        """The whole answer, if it is at hand; None: ask :meth:`respond`."""

    def body_use(self, request: Request) -> BodyUse:
        """What becomes of the body that a request says it has."""

    async def respond(self, request: Request) -> Response:
        """The answer. Cancelled when the client hangs up."""


class PodServer:
    """Makes the connections (an event loop's protocol factory), and counts them by client."""

    def __init__(
        self, answering: Answering, limits: Limits, metrics: AgentMetrics, peers: PeerIdentification | None = None
    ) -> None:
        """``peers``: finds out the pods of connections; None: they are known by their addresses alone."""
        self.answering = answering
        self.limits = limits
        self.peers = peers
        self._metrics = metrics
        self._connections: set[Connection] = set()
        self._clients: dict[str, int] = {}
        self._empty = asyncio.Event()
        self._empty.set()
        self.date = HttpDate().now
        """The Date field's value."""

    def __call__(self) -> Connection:
        """Make the protocol of one connection."""
        return Connection(self)

    def refused(self, reason: str) -> None:
        """Count a connection or request that was cut."""
        self._metrics.refused_connections.labels(reason).inc()

    def enter(self, connection: Connection) -> bool:
        """Count a connection in; False if its client has too many. Each call is paired with :meth:`leave`."""
        address = connection.client_address
        open_connections = self._clients.get(address, 0) + 1
        self._clients[address] = open_connections
        self._connections.add(connection)
        self._empty.clear()
        return open_connections <= self.limits.connections

    def leave(self, connection: Connection) -> None:
        """Count a connection out."""
        self._connections.discard(connection)
        address = connection.client_address
        left = self._clients[address] - 1
        if left:
            self._clients[address] = left
        else:
            del self._clients[address]
            if not self._clients:
                self._empty.set()

    async def drain(self, seconds: float) -> None:
        """Wait until the open connections are gone, at most so long, then close what is left.

        Idle ones aren't closed at once: a client may be sending its next request this very moment, and would see the
        connection reset. It gets its answer, and with it ``Connection: close``.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        for connection in list(self._connections):
            connection.close()
