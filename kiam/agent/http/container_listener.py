"""Serving the container credentials endpoint at its own addresses, which the node has to have first."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
from collections.abc import AsyncIterator

from kiam.agent.core.askers import PeerIdentification
from kiam.agent.http.container_credentials import ContainerAnswers
from kiam.agent.http.listener import BACKLOG, listen_at, steer_away
from kiam.agent.http.pod_server import PodServer
from kiam.agent.metrics import AgentMetrics
from kiam.agent.settings import Limits
from kiam.errors import UserError
from kiam.metadata import CONTAINER_CREDENTIALS_IPV4, CONTAINER_CREDENTIALS_IPV6, METADATA_PORT

log = logging.getLogger(__name__)

ASSIGN = "kiam.agent.kernel.link_local"
"""The program that gives the node the addresses."""
_DRAIN_SECONDS = 2.0
_STEER_SECONDS = 0.2


@contextlib.asynccontextmanager
async def serving_containers(
    answers: ContainerAnswers, limits: Limits, metrics: AgentMetrics, peers: PeerIdentification | None
) -> AsyncIterator[None]:
    """Serve the endpoint for as long as the block runs; ``peers`` as for :class:`PodServer`.

    Raises UserError for what the node lacks.
    """
    await _assign()
    server = PodServer(answers, limits, metrics, peers)
    sockets = _listen()
    loop = asyncio.get_running_loop()
    listeners = [await loop.create_server(server, sock=sock, backlog=BACKLOG) for sock in sockets]
    log.info("serving container credentials at %s", CONTAINER_CREDENTIALS_IPV4)
    try:
        yield
    finally:
        answers.draining = True
        for sock in sockets:
            steer_away(sock)
        await asyncio.sleep(_STEER_SECONDS)
        for listener in listeners:
            listener.close()
        await server.drain(_DRAIN_SECONDS)


async def _assign() -> None:
    helper = await asyncio.create_subprocess_exec(
        sys.executable, "-m", ASSIGN, stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    _, said = await helper.communicate()
    if helper.returncode:
        raise UserError(
            f"--container-credentials: can't give the node the address {CONTAINER_CREDENTIALS_IPV4}: "
            f"{said.decode(errors='replace').strip()}",
            "run the agent on the host network with the capability NET_ADMIN",
        )


def _listen() -> list[socket.socket]:
    try:
        first = listen_at(CONTAINER_CREDENTIALS_IPV4, METADATA_PORT)
    except OSError as error:
        raise UserError(
            f"--container-credentials: can't listen on {CONTAINER_CREDENTIALS_IPV4}:{METADATA_PORT}: {error.strerror}",
            "stop what listens there (EKS Pod Identity's agent?), and give the agent the capability NET_BIND_SERVICE",
        ) from error
    try:
        return [first, listen_at(CONTAINER_CREDENTIALS_IPV6, METADATA_PORT)]
    except OSError as error:
        # A node without IPv6 lacks the address; SDKs there are given the IPv4 one.
        log.info("container credentials are served over IPv4 only: %s", error.strerror)
        return [first]
