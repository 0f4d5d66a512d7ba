"""Answers from what the server has pushed, and by unary calls where nothing is pushed."""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta
from time import monotonic, time
from typing import Protocol

from kiam.agent.core.failures import Forbidden, RequestFailure, not_yet_known, several_pods
from kiam.agent.core.identities import KnownPod, PodIdentities
from kiam.agent.core.pods import NodeState
from kiam.agent.metrics import AgentMetrics
from kiam.rpc import kiam_pb2

log = logging.getLogger(__name__)

_MOST_REPORTS = 16
"""Refusals that are told to the server at the same time; what is more goes untold."""
_REPORT_EVERY = 1.0
"""Seconds between two such reports about one address."""
_REPORT_SECONDS = 5.0


class Link(enum.Enum):
    """How things stand with the server's stream."""

    NONE = "none"
    """No stream yet, or a server that has none: unary calls."""
    LIVE = "live"
    """The snapshot is complete and changes come in."""
    ALONE = "alone"
    """There was a stream; memory answers for pods whose way the kernel says is unchanged."""


class Ways(Protocol):
    """The part of :class:`kiam.agent.kernel.watcher.KernelWatcher` that is needed here."""

    def want(self, address: str) -> None:
        """A pod has this address."""

    def forget(self, address: str) -> None:
        """No pod has it any more."""

    def catch_up(self) -> None:
        """Read what the kernel has told so far."""

    def is_bound(self, address: str) -> bool:
        """Whether the way to it is known, and unchanged as far as has been read."""


class NodeIdentities:
    """Implements :class:`kiam.agent.core.identities.PodIdentities` from a node's pushed state.

    - Stream live: memory answers; who isn't pushed yet is waited for.
    - Server away: memory answers for a pod that is *bound* (the kernel's way to its address is the one it had when the
      server last spoke) and whose credentials are good, for at most the outage grace. Everyone else is a stranger and
      waits for the server.
    - A server without streams: unary calls, and nothing is remembered.
    """

    confirm_after = 1.0
    """Seconds that a changed way waits for the server's own news of it before the server's picture counts again."""

    def __init__(
        self, state: NodeState, unary: PodIdentities, ways: Ways, outage_grace: timedelta, metrics: AgentMetrics
    ) -> None:
        self._state = state
        self._unary = unary
        self._ways = ways
        self._grace = outage_grace.total_seconds()
        self._metrics = metrics
        self._link = Link.NONE
        self._alone_since = 0.0
        self._alone_until = 0.0
        # Addresses whose way changed while the stream was live: another pod's perhaps, which the server will say.
        # With when that was (monotonic).
        self._suspects: dict[str, float] = {}
        # Addresses confirmed after such a change that had no way at all then.
        self._homeless: set[str] = set()
        # When the stream that is read gave its first word (monotonic).
        self._picture_from = float("inf")
        self._reported: dict[str, float] = {}
        self._reports: set[asyncio.Task[None]] = set()
        self.suspected = asyncio.Event()
        """Set when an address needs the server's confirmation."""
        metrics.watch_memory(self._alone_seconds, lambda: float(len(state.pods)))

    # ---- told by the stream and the kernel

    @property
    def link(self) -> Link:
        """How things stand with the stream."""
        return self._link

    def apply(self, update: kiam_pb2.NodeUpdate) -> None:
        """Take in one update of the stream."""
        if update.WhichOneof("update") == "snapshot_complete":
            self._complete()
            return
        if update.HasField("hello"):
            self._picture_from = monotonic()
        changed = self._state.apply(update)
        for address in changed:
            # A pod of which the server speaks anew is confirmed, whoever had the address before.
            self._suspects.pop(address, None)
            self._homeless.discard(address)
            self._bind(address)

    def lost(self) -> None:
        """The stream broke."""
        if self._link is Link.LIVE:
            self._link = Link.ALONE
            self._alone_since = time()
            # Not by the wall clock: setting it back must not make the grace longer.
            self._alone_until = monotonic() + self._grace
            log.warning(
                "on our own: %d pods are answered from memory for up to %g s", len(self._state.pods), self._grace
            )
            self._state.wake_all()

    def no_stream(self) -> None:
        """The server has no streams: what an earlier one pushed is not kept up to date any more."""
        self._link = Link.NONE
        for address in self._state.clear():
            self._ways.forget(address)
        self._suspects.clear()
        self._homeless.clear()
        self._state.wake_all()

    def way_changed(self, address: str) -> None:
        """The kernel's way to an address is another one: whoever is there now, memory doesn't know."""
        self._metrics.bindings_dropped.inc()
        self._suspects[address] = monotonic()
        if self._link is Link.LIVE:
            self.suspected.set()

    def may_bind(self, address: str) -> bool:
        """Whether an address whose way has just become known may be bound: only while the server keeps us informed."""
        if address in self._homeless:
            # Which attack: a pod's interface is gone, the server still names the pod (its volumes are being unmounted),
            # and now the address has an interface again: another pod's, of which the server may not know yet.
            self._homeless.discard(address)
            self.way_changed(address)
        return self._link is Link.LIVE and address not in self._suspects

    def _complete(self) -> None:
        if self._link is not Link.LIVE:
            log.info("the server's picture of this node is complete: %d pods", len(self._state.pods))
        self._link = Link.LIVE
        # Which attack: the server was asked because of another address, a moment before or after this one's way
        # changed, and couldn't have heard of its new owner.
        latest = self._picture_from - self.confirm_after
        confirmed = [address for address, since in self._suspects.items() if since <= latest]
        for address in confirmed:
            del self._suspects[address]
            self._bind(address)
            if self._state.pod_at(address) is not None and not self._ways.is_bound(address):
                self._homeless.add(address)
        if self._suspects:
            self.suspected.set()
        # Those that waited under the old circumstances look again.
        self._state.wake_all()

    def _bind(self, address: str) -> None:
        if self._state.pod_at(address) is None:
            self._ways.forget(address)
        else:
            self._ways.want(address)

    # ---- asked by the handlers

    def known_pod(self, address: str) -> KnownPod | None:
        """The pod at an address, if memory may answer for it."""
        pod = self._state.pod_at(address) if self._may_answer(address) else None
        return None if pod is None else KnownPod(pod.uid, pod.namespace, pod.name, pod.role, pod.imds_tokens)

    def role_now(self, address: str) -> bytes | None:
        """From memory, if it may answer."""
        return self._count(self._state.role_at(address)) if self._may_answer(address) else None

    def credentials_now(self, address: str, role: str) -> bytes | None:
        """From memory, if it may answer."""
        if not self._may_answer(address):
            return None
        try:
            return self._count(self._state.credentials_at(address, role))
        except Forbidden:
            self._report(address, role)
            raise

    async def role(self, address: str, deadline: float) -> bytes:
        """From memory as soon as it knows, or from the server."""
        return await self._wait(
            address, deadline, lambda: self.role_now(address), lambda: self._unary.role(address, deadline)
        )

    async def credentials(self, address: str, role: str, deadline: float) -> bytes:
        """From memory as soon as it knows, or from the server."""
        return await self._wait(
            address,
            deadline,
            lambda: self.credentials_now(address, role),
            lambda: self._unary.credentials(address, role, deadline),
        )

    async def server_health(self, deadline: float) -> str:
        """The server's own word."""
        return await self._unary.server_health(deadline)

    def alone_since(self) -> float | None:
        """When the stream broke that hasn't come back."""
        return self._alone_since if self._link is Link.ALONE else None

    def _may_answer(self, address: str) -> bool:
        """Whether memory may speak for an address.

        Which attack: a pod that got the address of another one while nobody could tell us would get its credentials.
        """
        if self._link is Link.NONE:
            return False
        # Which attack: the address changed hands this very moment, and its new owner's request is read before the
        # kernel's news. It also covers the seconds in which a dead server still looks alive.
        self._ways.catch_up()
        if self._link is Link.LIVE:
            return address not in self._suspects
        return monotonic() < self._alone_until and self._ways.is_bound(address)

    def _count(self, body: bytes | None) -> bytes | None:
        if body is not None and self._link is Link.ALONE:
            self._metrics.outage_answers.inc()
        return body

    async def _wait(
        self,
        address: str,
        deadline: float,
        remembered: Callable[[], bytes | None],
        ask_server: Callable[[], Awaitable[bytes]],
    ) -> bytes:
        loop = asyncio.get_running_loop()
        try:
            while True:
                # Taken before looking, so that no change falls in between.
                change = self._state.change(address)
                body = remembered()
                if body is not None:
                    return body
                if self._link is not Link.LIVE:
                    return await ask_server()
                left = deadline - loop.time()
                if left <= 0:
                    raise several_pods() if self._state.is_shared(address) else not_yet_known()
                await asyncio.wait({change}, timeout=left)
        finally:
            # Which attack: a pod that makes up source addresses would leave something to wait for at each. Others who
            # wait there look again, and go on waiting.
            self._state.wake((address,))

    # ---- telling the server of refusals

    def _report(self, address: str, role: str) -> None:
        """Let the server see a request that was refused here, so that it writes the pod's Event as it always does."""
        now = asyncio.get_running_loop().time()
        if (
            self._link is not Link.LIVE
            or len(self._reports) >= _MOST_REPORTS
            or now - self._reported.get(address, -_REPORT_EVERY) < _REPORT_EVERY
        ):
            return
        if len(self._reported) > 4096:
            self._reported.clear()
        self._reported[address] = now
        task = asyncio.create_task(self._tell(address, role, now + _REPORT_SECONDS))
        self._reports.add(task)
        task.add_done_callback(self._reports.discard)

    async def _tell(self, address: str, role: str, deadline: float) -> None:
        try:
            await self._unary.credentials(address, role, deadline)
        except RequestFailure as failure:
            log.debug("the server says of a refused request: %s", failure)

    def _alone_seconds(self) -> float:
        return time() - self._alone_since if self._link is Link.ALONE else 0.0
