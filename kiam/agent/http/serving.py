"""Serving the agent's port, from taking it over from another agent to handing it over to the next."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator
from pathlib import Path

from kiam.agent.core.askers import PeerIdentification
from kiam.agent.http.handlers import Handlers
from kiam.agent.http.listener import BACKLOG, is_served, steer_away
from kiam.agent.http.pod_server import PodServer
from kiam.agent.metrics import AgentMetrics
from kiam.agent.settings import AgentSettings
from kiam.durations import format_duration
from kiam.errors import UserError

log = logging.getLogger(__name__)

_TAKE_OVER_SECONDS = 1.0
"""How long a listener that gets no new connections goes on taking those the kernel had already begun."""
_LOOK_EVERY = 0.2
_WITHOUT_SERVER = "starting without the server; pods are told to try again until it is there"


class Serving:
    """The port's listener and its connections."""

    def __init__(
        self,
        settings: AgentSettings,
        handlers: Handlers,
        metrics: AgentMetrics,
        peers: PeerIdentification | None = None,
    ) -> None:
        """``peers``: finds out the pods of connections, if their addresses aren't to be all there is."""
        self._settings = settings
        self._handlers = handlers
        self._pods = PodServer(handlers, settings.limits, metrics, peers)
        self._sock: socket.socket | None = None

    @property
    def started(self) -> bool:
        """Whether pods are answered."""
        return self._sock is not None

    async def start(self, sock: socket.socket) -> None:
        """Answer what comes in on a listening socket."""
        self._sock = sock
        self._server = await asyncio.get_running_loop().create_server(self._pods, sock=sock, backlog=BACKLOG)

    async def until(self, stop: asyncio.Event) -> None:
        """Say that the agent is ready, wait, and hand over: no new connections, the open ones answered and closed.

        Raises UserError when the ready file can't be written.
        """
        assert self._sock is not None
        with _ready(self._settings.ready_file):
            log.info("serving pods on port %d", self._settings.port)
            await stop.wait()
        drain_time = self._settings.drain_time
        log.info("stopping; open connections are answered for up to %s more", format_duration(drain_time))
        self._handlers.draining = True
        steer_away(self._sock)
        await asyncio.sleep(_TAKE_OVER_SECONDS)
        self._server.close()
        await self._pods.drain(drain_time.total_seconds())

    async def may_take_over(self, settled: asyncio.Event, stop: asyncio.Event) -> bool:
        """Wait until this agent can answer better than the one on its port; False: it was told to stop first.

        That is when the server's picture is complete, however long it takes: the other agent may know pods that this
        one doesn't, above all while the server is away. If the other one goes, "try again" is better than a refused
        connection.
        """
        stopped = asyncio.create_task(stop.wait())
        ready = asyncio.create_task(settled.wait())
        try:
            while not stop.is_set() and not settled.is_set():
                if not await asyncio.to_thread(is_served, self._settings.port):
                    log.warning(_WITHOUT_SERVER)
                    break
                await asyncio.wait({stopped, ready}, timeout=_LOOK_EVERY, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            ready.cancel()
        return not stop.is_set()

    async def tell_if_alone(self, settled: asyncio.Event) -> None:
        """Say it once if there is no server after ``--gateway-timeout-creation``. Runs until it is cancelled."""
        try:
            async with asyncio.timeout(self._settings.server.creation_timeout.total_seconds()):
                await settled.wait()
        except TimeoutError:
            log.warning(_WITHOUT_SERVER)
        await asyncio.Event().wait()


@contextlib.contextmanager
def _ready(path: str | None) -> Iterator[None]:
    """Have the ready file exist for as long as the block runs. Raises UserError."""
    if path is None:
        yield
        return
    try:
        Path(path).touch()
        try:
            yield
        finally:
            Path(path).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"--ready-file: {path}: {error.strerror}", "give a path the agent can write") from error
