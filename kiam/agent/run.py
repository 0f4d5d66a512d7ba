"""The agent's life: start, take over, serve, hand over, stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
import socket
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from prometheus_client import REGISTRY

from kiam.agent.clock_steps import notice_steps
from kiam.agent.control.answers import NodeIdentities
from kiam.agent.control.channel import ServerClient
from kiam.agent.control.node_stream import StreamFollower
from kiam.agent.control.unary import UnaryCalls
from kiam.agent.core.askers import PodUidMode
from kiam.agent.core.identities import REQUEST_BUDGET
from kiam.agent.core.node import NodeCore
from kiam.agent.http.container_credentials import ContainerAnswers
from kiam.agent.http.container_listener import serving_containers
from kiam.agent.http.handlers import Handlers
from kiam.agent.http.instance_metadata import InstanceMetadata
from kiam.agent.http.listener import is_served, listen
from kiam.agent.http.proxy import PassingOn, RouteFilter
from kiam.agent.http.serving import Serving
from kiam.agent.http.token_desk import TokenDesk
from kiam.agent.http.tokens import SessionTokens
from kiam.agent.kernel.callers import Callers
from kiam.agent.kernel.peers import SocketPeers
from kiam.agent.kernel.watcher import KernelWatcher
from kiam.agent.memory import start_is_over
from kiam.agent.metrics import AgentMetrics
from kiam.agent.redirection import DataplaneCollector, Redirection, wanted_state
from kiam.agent.settings import AgentSettings
from kiam.clocks import SystemClock
from kiam.grpc_metrics import client_interceptors
from kiam.rpc import kiam_pb2
from kiam.telemetry import serve_telemetry
from kiam.tls.reload import TLSReloader
from kiam.tls.summary import TLSSummary

log = logging.getLogger(__name__)


def _own_pod(settings: AgentSettings, certificate: TLSSummary) -> kiam_pb2.AgentPod | None:
    """The pod that the agent is in and its certificate, for the server's Events; None outside a cluster."""
    if not settings.pod_name:
        return None
    return kiam_pb2.AgentPod(
        namespace=settings.pod_namespace,
        name=settings.pod_name,
        certificate_warn_after=int(certificate.warn_after.timestamp()),
        certificate_expires=int(certificate.expiry.timestamp()),
    )


async def run_agent(settings: AgentSettings, reloader: TLSReloader, sock: socket.socket | None) -> None:
    """Run until SIGTERM or SIGINT. Raises UserError for what the user has to fix.

    ``sock`` listens on the port already; None: another agent does, and this one waits until it may take over.
    """
    _raise_descriptor_limit()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    route_filter = RouteFilter(settings.allow_route_regexp)
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
        clock = SystemClock()
        core = NodeCore(settings.outage_grace.total_seconds(), pod_uid=settings.pod_uid)
        watcher = KernelWatcher(core, clock)
        calls = UnaryCalls(client, clock)
        identities = NodeIdentities(core, calls, watcher, clock, metrics)
        stack.callback(watcher.start(identities.heard).close)
        follower = StreamFollower(
            client,
            identities,
            settings.node_name,
            str(settings.host),
            host_network_pods=settings.serves_host_network_pods,
            own_pod=lambda: _own_pod(settings, reloader.inspected),
        )
        await stack.enter_async_context(
            _background(stop, client.run(), follower.run(), notice_steps(clock, metrics.clock_steps.inc))
        )
        callers = Callers(settings.interface)
        stack.callback(callers.close)
        secret = SessionTokens(lambda: reloader.material.key, str(settings.host))
        handlers = Handlers(
            identities,
            TokenDesk(identities, secret, settings.imds_tokens, callers.is_ours, metrics),
            PassingOn(upstream, route_filter, settings.limits, REQUEST_BUDGET),
            upstream,
            metrics,
            settings.limits,
            settings.allow_ip_query,
        )
        peers = _peers(settings, core, watcher, stack)
        serving = Serving(settings, handlers, metrics, peers)
        if sock is not None:
            # At once: a pod that asks already is answered as soon as can be, and isn't refused a connection.
            await serving.start(sock)
            await stack.enter_async_context(_background(stop, serving.tell_if_alone(follower.settled)))
        if redirection is not None:
            # Before the port is taken over: from here on a pod is refused or answered, and never reaches the real
            # service.
            await redirection.install()
            await stack.enter_async_context(_background(stop, redirection.keep()))
        if settings.container_credentials:
            answers = ContainerAnswers(calls, identities, settings.limits, metrics, settings.pod_uid)
            await stack.enter_async_context(serving_containers(answers, settings.limits, metrics, peers))
        if sock is None and await serving.may_take_over(follower.settled, stop):
            await serving.start(listen(settings.port))
        if serving.started:
            start_is_over()
            await serving.until(stop)
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


def _peers(
    settings: AgentSettings, core: NodeCore, watcher: KernelWatcher, stack: contextlib.AsyncExitStack
) -> SocketPeers | None:
    if settings.pod_uid is PodUidMode.OFF:
        return None
    peers = SocketPeers(core.addresses, watcher)
    stack.callback(peers.close)
    watcher.link_gone = lambda: peers.links_gone(core.addresses.has_link)
    return peers


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
