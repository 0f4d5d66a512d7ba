"""Answering requests: from memory where it may speak, else by waiting for the stream and asking the server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from kiam.agent.control.refusals import Refusals, Reporting
from kiam.agent.control.unary import Word
from kiam.agent.control.waiters import Waiters
from kiam.agent.core.failures import Forbidden, Impostor, NotYetKnown, ServerAway
from kiam.agent.core.identities import KnownPod
from kiam.agent.core.node import NodeCore
from kiam.agent.core.routes import Route
from kiam.agent.core.stream import Stream
from kiam.agent.metrics import AgentMetrics
from kiam.clocks import Clock
from kiam.rpc import kiam_pb2

# A member of an enum costs a look-up of its own each time it is named.
_NONE, _LIVE, _AWAY = Stream.NONE, Stream.LIVE, Stream.AWAY
_ASK_AGAIN_AFTER = 0.2
"""Seconds until the server is asked again after an answer that couldn't be believed yet."""


class Server(Reporting, Protocol):
    """The part of :class:`kiam.agent.control.unary.UnaryCalls` that is needed here."""

    async def role(self, address: str, deadline: float) -> Word:
        """The role of the pod at an address."""

    async def credentials(self, address: str, role: str, deadline: float) -> Word:
        """Credentials of a role for the pod at an address."""

    async def server_health(self, deadline: float) -> str:
        """What the server says of itself."""


class Kernel(Protocol):
    """The part of :class:`kiam.agent.kernel.watcher.KernelWatcher` that is needed here."""

    def catch_up(self) -> None:
        """Hear what the kernel has told so far."""

    def settle(self) -> None:
        """Ask the kernel what the core wants to know."""

    def route_to(self, address: str) -> Route | None:
        """The routing table's entry for an address."""


class NodeIdentities:
    """Implements :class:`kiam.agent.core.identities.PodIdentities`; drives the core for requests and the stream."""

    def __init__(self, core: NodeCore, unary: Server, kernel: Kernel, clock: Clock, metrics: AgentMetrics) -> None:
        self.core = core
        self._unary = unary
        self._kernel = kernel
        self._clock = clock
        self._wall = clock.wall
        self._metrics = metrics
        self._away_since = 0.0
        self._waiters = Waiters()
        self._refusals = Refusals(core.pods, unary, metrics)
        self._heard = asyncio.Event()
        metrics.watch_memory(self._away_seconds, lambda: float(len(core.pods.pods)))

    # ---- told by the stream

    def asked(self) -> float:
        """A stream is being asked for; when that is, for :meth:`stream_opened`."""
        now = self._clock.elapsed()
        self.core.asked(now)
        return now

    def stream_opened(self, hello: kiam_pb2.NodeUpdate, asked_at: float) -> None:
        """The stream that is read from now on."""
        self.core.stream_opened(hello, asked_at)

    def apply(self, update: kiam_pb2.NodeUpdate) -> None:
        """Take in one update of the stream."""
        # First what the kernel has told before it: an address may have changed hands.
        self._kernel.catch_up()
        self.core.apply(update, self._clock.elapsed())
        if update.HasField("pod"):
            self.node_is_known(True)
        self._kernel.settle()
        self.heard()

    def node_is_known(self, known: bool) -> None:
        """Whether the server knows any pod of the node that the stream is for."""
        self._metrics.node_known.set(known)

    def stream_lost(self) -> None:
        """The stream broke."""
        if self.core.stream is Stream.LIVE:
            self._away_since = self._clock.wall()
        self.core.stream_lost(self._clock.elapsed())
        self.heard()

    def no_stream(self) -> None:
        """The server has no streams."""
        self.core.no_stream(self._clock.elapsed())
        self.heard()

    def heard(self) -> None:
        """The core has heard something: wake whom it concerns, and let :meth:`wait_to_ask` look again."""
        self._metrics.bindings_dropped.inc(self.core.addresses.take_dropped())
        everybody, addresses = self.core.take_woken()
        self._waiters.wake(None if everybody else addresses)
        self._heard.set()

    async def wait_to_ask(self) -> None:
        """Return when the server is to be asked anew by another stream."""
        while True:
            self._heard.clear()
            due = self.core.ask_at()
            left = None if due is None else due - self._clock.elapsed()
            if left is not None and left <= 0:
                return
            try:
                async with asyncio.timeout(left):
                    await self._heard.wait()
            except TimeoutError:
                continue

    # ---- asked by the handlers

    def known_pod(self, address: str, uid: str | None = None) -> KnownPod | None:
        """The pod that asks, if memory may answer for it."""
        self._catch_up()
        try:
            pod = self.core.pod(address, self._clock.elapsed(), uid)
        except Impostor:
            return None
        return None if pod is None else pod.known

    def role_now(self, address: str, uid: str | None = None) -> tuple[KnownPod, bytes] | None:
        """From memory, if it may answer."""
        self._catch_up()
        try:
            return self._count(self.core.role(address, self._clock.elapsed(), uid))
        except Impostor:
            self._refusals.impostor(address, uid)
            raise

    def credentials_now(self, address: str, role: str, uid: str | None = None) -> tuple[KnownPod, bytes] | None:
        """From memory, if it may answer. Every request comes by here: nothing is looked up twice."""
        core = self.core
        stream = core.stream
        if stream is not _NONE:
            # As in _catch_up.
            self._kernel.catch_up()
        try:
            if stream is not _AWAY:
                # What time it is by the other clock matters to the outage grace alone.
                return core.credentials(address, role, 0.0, self._wall(), uid)
            return self._count(core.credentials(address, role, self._clock.elapsed(), self._wall(), uid))
        except Impostor:
            self._refusals.impostor(address, uid)
            raise
        except Forbidden:
            if stream is _LIVE:
                self._refusals.tell(address, role)
            raise

    async def role(self, address: str, deadline: float, uid: str | None = None) -> bytes:
        """From memory as soon as it knows, or from the server."""
        return await self._wait(
            address, uid, deadline, lambda: self.role_now(address, uid), lambda: self._unary.role(address, deadline)
        )

    async def credentials(self, address: str, role: str, deadline: float, uid: str | None = None) -> bytes:
        """From memory as soon as it knows, or from the server."""
        return await self._wait(
            address,
            uid,
            deadline,
            lambda: self.credentials_now(address, role, uid),
            lambda: self._unary.credentials(address, role, deadline),
        )

    def refused(self, address: str, role: str) -> None:
        """Tell the server, so that the owner of a pod with an annotation that can't work reads of it in an Event."""
        if self.core.stream is not Stream.AWAY:
            self._refusals.tell(address, role)

    async def server_health(self, deadline: float) -> str:
        """The server's own word."""
        return await self._unary.server_health(deadline)

    def alone_since(self) -> float | None:
        """When the stream broke that hasn't come back."""
        return self._away_since if self.core.stream is Stream.AWAY else None

    def _catch_up(self) -> None:
        # Which attack: the address changed hands this very moment, and its new owner's request is read before the
        # kernel's news. It also covers the seconds in which a dead server still looks alive.
        if self.core.stream is not Stream.NONE:
            self._kernel.catch_up()

    def _count(self, answer: tuple[KnownPod, bytes] | None) -> tuple[KnownPod, bytes] | None:
        if answer is not None and self.core.stream is Stream.AWAY:
            self._metrics.outage_answers.inc()
        return answer

    async def _wait(
        self,
        address: str,
        uid: str | None,
        deadline: float,
        remembered: Callable[[], tuple[KnownPod, bytes] | None],
        ask_server: Callable[[], Awaitable[Word]],
    ) -> bytes:
        loop = asyncio.get_running_loop()
        asking: asyncio.Future[Word] | None = None
        ask_from = 0.0
        keys = [key for key in (address, uid) if key]
        try:
            while True:
                # Taken before looking, so that no change falls in between.
                changes = {self._waiters.change(key) for key in keys}
                answer = remembered()
                if answer is not None:
                    return answer[1]
                now = loop.time()
                if asking is None and now >= ask_from and self.core.should_ask(address, uid):
                    asking = asyncio.ensure_future(ask_server())
                if asking is None and now >= deadline:
                    raise self.core.why_not(address, uid)
                # A call knows the deadline itself, and says why nothing came of it.
                until = None if asking else min(deadline, ask_from) if ask_from > now else deadline
                awaited: set[asyncio.Future[None] | asyncio.Future[Word]] = {*changes, *((asking,) if asking else ())}
                timeout = None if until is None else until - now
                await asyncio.wait(awaited, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                if asking is None or not asking.done():
                    continue
                word, asking = self._result(address, asking), None
                if self._believes(address, uid, word):
                    if word.refusal is not None:
                        raise word.refusal
                    return word.body
                ask_from = loop.time() + _ASK_AGAIN_AFTER
        finally:
            if asking is not None:
                asking.cancel()
            # Which attack: a pod that makes up source addresses would leave something to wait for at each. Others who
            # wait there look again, and go on waiting.
            self._waiters.wake(keys)

    def _result(self, address: str, asking: asyncio.Future[Word]) -> Word:
        try:
            return asking.result()
        except (NotYetKnown, ServerAway):
            if self.core.stream is Stream.LIVE and self.core.pods.pod_at(address) is not None:
                # The stream knows better what is missing.
                raise self.core.why_not(address) from None
            raise

    def _believes(self, address: str, uid: str | None, word: Word) -> bool:
        # Which attack: as in _catch_up, and that the server which was asked is itself cut off from the news.
        self._kernel.catch_up()
        if self.core.contradicts(address, uid):
            return False
        route = self._kernel.route_to(address)
        if uid is not None and word.refusal is None and route is not None and route.is_local:
            # Which attack: a pod on the host network asks, and a conventional server, which finds pods there by the
            # node's address, names another one. They are known by UID only.
            return False
        return self.core.vouches(address, route, word.asked_at, word.age)

    def _away_seconds(self) -> float:
        return self._clock.wall() - self._away_since if self.core.stream is Stream.AWAY else 0.0
