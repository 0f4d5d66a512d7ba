"""The agent's life: start, take over, serve, hand over, stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY

from kiam.agent.control.channel import ServerClient
from kiam.agent.control.node_stream import NodeWatch
from kiam.agent.control.unary import UnaryIdentities
from kiam.agent.core.answers import NodeIdentities
from kiam.agent.core.identities import REQUEST_BUDGET
from kiam.agent.core.pods import NodeState
from kiam.agent.http.connection import PodServer
from kiam.agent.http.handlers import Handlers
from kiam.agent.http.instance_metadata import InstanceMetadata
from kiam.agent.http.listener import is_served, listen, steer_away
from kiam.agent.http.proxy import PassingOn, RouteFilter
from kiam.agent.kernel.watcher import KernelWatcher
from kiam.agent.metrics import AgentMetrics
from kiam.agent.redirection import DataplaneCollector, Redirection, wanted_state
from kiam.agent.settings import AgentSettings
from kiam.durations import format_duration
from kiam.errors import UserError
from kiam.grpc_metrics import client_interceptors
from kiam.telemetry import serve_telemetry
from kiam.tls.certificates import Side
from kiam.tls.metrics import TLSMetrics
from kiam.tls.reload import TLSReloader

log = logging.getLogger(__name__)

_TAKE_OVER_SECONDS = 1.0
"""How long a listener that gets no new connections goes on taking those the kernel had already begun."""


async def run_agent(settings: AgentSettings) -> None:
    """Run until SIGTERM or SIGINT. Raises UserError for what the user has to mend."""
    _raise_descriptor_limit()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    route_filter = RouteFilter(settings.allow_route_regexp)
    reloader = TLSReloader(settings.server.tls, Side.CLIENT, TLSMetrics(Side.CLIENT))
    metrics = AgentMetrics()
    redirection = _redirection(settings)
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(
            serve_telemetry(settings.prometheus_listen_addr, settings.pprof_listen_addr, REGISTRY, reuse_port=True)
        )
        upstream = await stack.enter_async_context(
            InstanceMetadata(settings.instance_metadata_url, timeout=REQUEST_BUDGET)
        )
        client = ServerClient(settings.server, reloader, client_interceptors())
        stack.push_async_callback(client.close)
        state = NodeState()
        watcher = KernelWatcher(
            lambda address: identities.way_changed(address), lambda address: identities.may_bind(address)
        )
        identities = NodeIdentities(state, UnaryIdentities(client), watcher, settings.outage_grace, metrics)
        stack.callback(watcher.start().close)
        watch = NodeWatch(client, state, identities, settings.node_name, str(settings.host))
        await stack.enter_async_context(_background(stop, client.run(), watch.run()))
        handlers = Handlers(
            identities,
            PassingOn(upstream, route_filter, settings.limits, REQUEST_BUDGET),
            upstream,
            metrics,
            settings.limits,
            settings.allow_ip_query,
        )
        if redirection is not None:
            # Before the port is opened: from here on a pod is refused or answered, and never reaches the real service.
            await redirection.install()
            await stack.enter_async_context(_background(stop, redirection.keep()))
        if await _may_take_over(settings, watch.settled, stop):
            await _serve(settings, handlers, metrics, stop)
        if redirection is not None:
            await redirection.leave(await asyncio.to_thread(is_served, settings.port))
    log.info("agent stopped")


def _raise_descriptor_limit() -> None:
    """Have as many descriptors as the system allows.

    Which attack: container runtimes start programs with 1,024, so four pods with the connections that each may have
    would leave none for the others.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _redirection(settings: AgentSettings) -> Redirection | None:
    if settings.dataplane is None:
        return None
    redirection = Redirection(settings.dataplane, wanted_state(settings.dataplane, settings.host, settings.port))
    REGISTRY.register(DataplaneCollector(redirection.dataplane))
    return redirection


@contextlib.asynccontextmanager
async def _background(stop: asyncio.Event, *work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Have work done for as long as the block runs. If some of it fails, which is a bug, the agent stops with it."""
    tasks = [asyncio.create_task(task) for task in work]
    for task in tasks:
        task.add_done_callback(lambda _: stop.set())
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome


async def _may_take_over(settings: AgentSettings, settled: asyncio.Event, stop: asyncio.Event) -> bool:
    """Wait until this agent can answer; False: it was told to stop first.

    With another agent on the port, that is until the server's picture is complete, however long that takes: the old
    one may know pods that this one doesn't, above all while the server is away. With nobody there, pods are better off
    with "try again" than with a refused connection, so ``--gateway-timeout-creation`` is enough.
    """
    loop = asyncio.get_running_loop()
    patience = loop.time() + settings.server.creation_timeout.total_seconds()
    stopped = asyncio.create_task(stop.wait())
    ready = asyncio.create_task(settled.wait())
    try:
        while not stop.is_set() and not settled.is_set():
            if loop.time() >= patience and not await asyncio.to_thread(is_served, settings.port):
                log.warning("starting without the server; pods are told to try again until it is there")
                break
            await asyncio.wait({stopped, ready}, timeout=0.2, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopped.cancel()
        ready.cancel()
    return not stop.is_set()


async def _serve(settings: AgentSettings, handlers: Handlers, metrics: AgentMetrics, stop: asyncio.Event) -> None:
    """Serve the port until told to stop, then hand over: no new connections, the open ones answered and closed."""
    loop = asyncio.get_running_loop()
    pods = PodServer(handlers, settings.limits, metrics, handlers.at_once)
    sock = listen(settings.port)
    server = await loop.create_server(pods, sock=sock)
    _set_ready(settings.ready_file, True)
    log.info("serving pods on port %d", settings.port)
    try:
        await stop.wait()
    finally:
        _set_ready(settings.ready_file, False)
    log.info("stopping; open connections are answered for up to %s more", format_duration(settings.drain_time))
    handlers.draining = True
    steer_away(sock)
    await asyncio.sleep(_TAKE_OVER_SECONDS)
    server.close()
    await pods.drain(settings.drain_time.total_seconds())


def _set_ready(path: str | None, ready: bool) -> None:
    if path is None:
        return
    try:
        if ready:
            Path(path).touch()
        else:
            Path(path).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"--ready-file: {path}: {error.strerror}", "give a path the agent can write") from error
