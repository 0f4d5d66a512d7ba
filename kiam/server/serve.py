"""The server process: the port first, then everything that takes time to import, then the server; and its end."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import logging
import resource
import signal
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from prometheus_client import REGISTRY, CollectorRegistry

from kiam.errors import UserError
from kiam.server.grpc.admission import Bounds
from kiam.server.grpc.front import Front
from kiam.server.grpc.metrics import FrontMetrics
from kiam.server.settings import ServerSettings
from kiam.telemetry import serve_telemetry
from kiam.tls.inspection import load_summary
from kiam.tls.metrics import TLSMetrics
from kiam.tls.reload import TLSReloader
from kiam.tls.summary import Side

if TYPE_CHECKING:
    from kiam.server.run import Server

log = logging.getLogger(__name__)


def require_packages() -> None:
    """See that what is imported later is there, without importing it. Raises ModuleNotFoundError."""
    for name in ("boto3", "kubernetes", "msgspec"):
        try:
            found = importlib.util.find_spec(name)
        except ValueError:
            found = None
        if found is None:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)


def open_front(
    config: ServerSettings, listening: Callable[[], Sequence[socket.socket]], registry: CollectorRegistry = REGISTRY
) -> tuple[TLSReloader, Front]:
    """Read the certificates, then have the sockets that listen. Raises UserError."""
    tls = TLSReloader(config.tls, Side.SERVER, load_summary, TLSMetrics(Side.SERVER, registry))
    front = Front(listening(), tls, Bounds())
    FrontMetrics(front.counts, registry)
    return tls, front


async def make_server(
    config: ServerSettings, tls: TLSReloader, front: Front, registry: CollectorRegistry = REGISTRY
) -> Server:
    """Import gRPC, boto3 and kubernetes, which takes most of a second, while the port is served already."""
    module = await asyncio.to_thread(importlib.import_module, "kiam.server.run")
    server: Server = module.Server(config, tls, front, registry)
    return server


async def serve(config: ServerSettings, listening: Callable[[], Sequence[socket.socket]]) -> None:
    """Run the server until SIGTERM or SIGINT, then drain. Raises UserError when a flag or file can't work.

    ``listening`` gives the sockets that listen on the port.
    """
    _raise_descriptor_limit()
    tls, front = open_front(config, listening)
    front.start()
    log.info("listening on %s (port %d)", config.bind, front.port)
    try:
        with serve_telemetry(config.prometheus_listen_addr, config.pprof_listen_addr):
            await _run(await make_server(config, tls, front))
    finally:
        front.close()


async def _run(server: Server) -> None:
    stop = asyncio.Event()
    problem: BaseException | None = None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        async with asyncio.TaskGroup() as tasks:
            await server.start(tasks)
            await stop.wait()
            log.info("shutting down")
            await server.drain()
            raise _StoppedError
    except* _StoppedError:
        pass
    except* UserError as errors:
        problem = errors.exceptions[0]
    finally:
        await server.close()
    # Raised here: what an except* clause raises comes out as a group.
    if problem is not None:
        raise problem


class _StoppedError(Exception):
    """Ends the task group after a drain."""


def _raise_descriptor_limit() -> None:
    """Every agent is a connection, and many systems start programs with 1,024 descriptors though they may have more."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
