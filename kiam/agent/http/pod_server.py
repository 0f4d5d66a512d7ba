"""All connections of pods: made here, counted by client, and ended together."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Protocol

from kiam.agent.core.askers import PeerIdentification
from kiam.agent.http.connection import Connection
from kiam.agent.http.dates import HttpDate
from kiam.agent.http.messages import Plain, Request, Response
from kiam.agent.http.reading import BodyUse
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
        # Of each client the oldest first.
        self._clients: dict[str, dict[Connection, None]] = {}
        self._open = 0
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

    def enter(self, connection: Connection) -> None:
        """Count a connection in; each call is paired with :meth:`leave`. If it is one too many, another one ends.

        That is the oldest of the same client. Not the new one: kubelet, which probes the agent, and every process of
        the node's that the kernel doesn't say the pod of share an address, and any of them could lock the others out.
        Or, if all clients together have too many, the oldest of the one that has most: a pod that forges addresses is
        many clients, each with a few.
        """
        own = self._clients.setdefault(connection.asker, {})
        own[connection] = None
        self._open += 1
        self._empty.clear()
        if len(own) > self.limits.connections:
            self._end_oldest(own)
        elif self._open > self.limits.all_connections:
            self._end_oldest(max(self._clients.values(), key=len))

    def leave(self, connection: Connection) -> None:
        """Count a connection out, unless that has been done."""
        own = self._clients.get(connection.asker, {})
        if connection not in own:
            return
        del own[connection]
        self._open -= 1
        if not own:
            del self._clients[connection.asker]
            if not self._clients:
                self._empty.set()

    def _end_oldest(self, connections: dict[Connection, None]) -> None:
        oldest = next(iter(connections))
        self.leave(oldest)
        self.refused("too many connections")
        oldest.close()

    async def drain(self, seconds: float) -> None:
        """Wait until the open connections are gone, at most so long, then close what is left.

        Idle ones aren't closed at once: a client may be sending its next request this very moment, and would see the
        connection reset. It gets its answer, and with it ``Connection: close``.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        for connection in [connection for own in self._clients.values() for connection in own]:
            connection.close()
