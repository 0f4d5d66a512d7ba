"""The gRPC channel to the server, made anew when the certificates change."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

import grpc
from grpc import aio

from kiam.agent.settings import ServerSettings
from kiam.errors import ErrorKind, UserError
from kiam.rpc import kiam_pb2_grpc
from kiam.tls import TLSMaterial, split_address
from kiam.tls.helper import explain_failure, needs_lenient_tls
from kiam.tls.reload import TLSReloader

if TYPE_CHECKING:
    from kiam.tls.tunnel import Tunnel

log = logging.getLogger(__name__)

_DRAIN_SECONDS = 30.0
"""How long calls on a channel with old certificates may take to finish: longer than any unary call lives."""
_EXPLAIN_AFTER = 2.0
"""Seconds without a connection until the log says why."""
_EXPLAIN_EVERY = 60.0
_PROBE_AFTER, _PROBE_AFTER_MOST = 5.0, 60.0
"""Seconds between looks, without a connection, whether the server's certificate needs another TLS than gRPC's: each
time twice as many, as a look may cost a process."""
_CONNECT_SECONDS = 2.0


def _milliseconds(duration: timedelta) -> int:
    return max(1, round(duration.total_seconds() * 1000))


def channel_options(settings: ServerSettings) -> list[tuple[str, int | str]]:
    """gRPC channel arguments (grpc/impl/channel_arg_names.h)."""
    return [
        ("grpc.keepalive_time_ms", _milliseconds(settings.keepalive_time)),
        ("grpc.keepalive_timeout_ms", _milliseconds(settings.keepalive_timeout)),
        # A ping without an answer counts as lost after this, by default a minute, whatever the keepalive timeout says.
        ("grpc.http2.ping_timeout_ms", _milliseconds(settings.keepalive_timeout)),
        ("grpc.keepalive_permit_without_calls", int(settings.keepalive_without_calls)),
        # The default of 2 would end the pings on a stream that says nothing for long.
        ("grpc.http2.max_pings_without_data", 0),
        # A restarted server is back within a second; gRPC's own back-off would grow to two minutes.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1000),
        ("grpc.max_reconnect_backoff_ms", 500),
        # A headless Service gets new addresses at every rollout; the default waits 30 s between look-ups.
        ("grpc.dns_min_time_between_resolutions_ms", 1000),
        ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
        # Connections are shared between channels otherwise, and with them the certificates of the first.
        ("grpc.use_local_subchannel_pool", 1),
        # Pods' requests go to the server of --server-address and nowhere else.
        ("grpc.enable_http_proxy", 0),
    ]


def is_cancelled() -> bool:
    """Whether this task is being cancelled; if not, a CancelledError is gRPC's word for a channel that was closed.

    Another channel has taken its place then, and the call may be made again.
    """
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


class ServerClient:
    """A channel to ``--server-address``: every address the name has, round robin, mutual TLS.

    ``stub`` and ``channel`` are those of the newest certificates: take them anew for each call.
    """

    def __init__(
        self,
        settings: ServerSettings,
        reloader: TLSReloader,
        interceptors: Sequence[aio.ClientInterceptor] = (),
    ) -> None:
        self._settings = settings
        self._reloader = reloader
        self._interceptors = list(interceptors)
        self._closing: set[asyncio.Task[None]] = set()
        self._swapped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tunnel: Tunnel | None = None
        self._open(reloader.material)

    def _open(self, material: TLSMaterial) -> None:
        address, options = self._settings.address, channel_options(self._settings)
        if self._tunnel is not None:
            self.channel = aio.insecure_channel(self._tunnel.target, options=options, interceptors=self._interceptors)
        else:
            self.channel = aio.secure_channel(
                address if address.startswith(("dns:", "ipv4:", "ipv6:", "unix:")) else f"dns:///{address}",
                grpc.ssl_channel_credentials(material.ca, material.key, material.cert),
                options=options,
                interceptors=self._interceptors,
            )
        self.stub = kiam_pb2_grpc.KiamServiceStub(self.channel)

    @property
    def reachable(self) -> bool:
        """Whether a connection is up right now; looking starts connecting if nothing else did."""
        return self.channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY

    @property
    def swapped(self) -> asyncio.Future[None]:
        """Done when this channel has been replaced by one with newer certificates."""
        return self._swapped

    async def run(self) -> None:
        """Follow the certificate files, and say in the log how the connection fares. Runs until it is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._reloader.watch(self.swap))
            tasks.create_task(self._report())

    def swap(self, drain_seconds: float | None = _DRAIN_SECONDS) -> None:
        """Take the reloader's material into use: calls go to a new channel, those under way finish on the old one."""
        old, swapped = self.channel, self._swapped
        self._open(self._reloader.material)
        self._swapped = asyncio.get_running_loop().create_future()
        swapped.set_result(None)
        task = asyncio.create_task(old.close(drain_seconds))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """End all calls."""
        for task in self._closing:
            task.cancel()
        await self.channel.close()
        if self._tunnel is not None:
            self._tunnel.close()

    async def _tunnel_if_needed(self) -> None:
        """Take the way that accepts certificates for 'any' usage, if the server shows one and all else is well.

        For good: it takes other certificates as well, so rotation in either direction needs no change.
        """
        address = self._settings.address
        if self._tunnel is not None or address.startswith(("ipv4:", "ipv6:", "unix:")):
            return
        if not await _is_listened_to(address):
            # Nobody is asked what is the matter with a server that is away: that is a process each time.
            return
        if not await asyncio.to_thread(needs_lenient_tls, address, self._settings.tls):
            return
        # Imported here: it takes cryptography, 10 MB that few agents need.
        from kiam.tls.tunnel import Tunnel

        log.info("the server at %s has a certificate for 'any' usage: TLS is done outside gRPC from now on", address)
        host, port = split_address(address)
        self._tunnel = Tunnel(host, port, lambda: self._reloader.material)
        self._tunnel.start()
        # Nothing is under way on a channel that can't connect.
        self.swap(None)

    async def _report(self) -> None:
        """Log the connection's ups and downs; a failure with its reason, found by a handshake of our own.

        gRPC tells its users "failed to connect to all addresses" for a wrong host name, a foreign CA and an expired
        certificate alike.
        """
        loop = asyncio.get_running_loop()
        address = self._settings.address
        connected = False
        seen = self.channel
        down_since = loop.time()
        explained_at = probe_at = float("-inf")
        pause = _PROBE_AFTER
        watch: asyncio.Future[None] | None = None
        while True:
            channel, now = self.channel, loop.time()
            if channel is not seen:
                # Another one because of new certificates: nothing was lost.
                seen, connected, down_since = channel, False, now
                if watch is not None:
                    watch.cancel()
                    watch = None
            state = channel.get_state(try_to_connect=True)
            if state is grpc.ChannelConnectivity.READY:
                if not connected:
                    log.info("connected to the server at %s", address)
                    self._reloader.handshake_ended(accepted=True)
                connected, pause = True, _PROBE_AFTER
            else:
                if connected:
                    log.warning("connection to the server at %s lost", address)
                    connected, down_since = False, now
                if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE and now >= probe_at:
                    probe_at, pause = now + pause, min(2 * pause, _PROBE_AFTER_MOST)
                    await self._tunnel_if_needed()
                    continue
                if now - down_since >= _EXPLAIN_AFTER and now - explained_at >= _EXPLAIN_EVERY:
                    explained_at = now
                    reason = await asyncio.to_thread(explain_failure, address, self._settings.tls)
                    if reason and self.channel.get_state() is not grpc.ChannelConnectivity.READY:
                        log.error("no connection to the server at %s: %s", address, reason)
                        if reason.kind is ErrorKind.CERTIFICATE:
                            self._reloader.handshake_ended(accepted=False)
                    elif reason is None:
                        log.error("no connection to the server at %s yet", address)
            # One for as long as the state lasts: gRPC goes on watching, and holds 0.8 KiB, for each that is cancelled.
            if watch is None or watch.done():
                watch = asyncio.ensure_future(channel.wait_for_state_change(state))
            # Woken by the channel, by its replacement, and without a connection now and then for the explanation.
            timeout = None if connected else _EXPLAIN_AFTER
            await asyncio.wait({watch, self._swapped}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)


async def _is_listened_to(address: str) -> bool:
    """Whether a TCP connection to a server's address comes about."""
    try:
        async with asyncio.timeout(_CONNECT_SECONDS):
            _, writer = await asyncio.open_connection(*split_address(address))
    except (OSError, UserError):  # TimeoutError too
        return False
    writer.transport.abort()
    return True
