"""Who is believed to be at an address, and what the answer is: a state machine without I/O and without a clock.

Inputs are the server's updates, the kernel's changes, requests, and what time it is. Outputs are answers (or "ask the
server", "wait"), when to ask the server anew (:meth:`NodeCore.ask_at`), which routes to look up and which addresses to
resolve (:attr:`NodeCore.addresses`), and who is to look again (:meth:`NodeCore.take_woken`). The drivers are
:mod:`kiam.agent.control.answers` (requests), :mod:`kiam.agent.control.node_stream` (the server) and
:mod:`kiam.agent.kernel.watcher` (the kernel).

``now`` is in seconds of a monotonic clock that goes on while the machine is suspended, ``wall`` in seconds since the
epoch.
"""

from __future__ import annotations

import logging

from kiam.agent.core.address import CONFIRM_AFTER
from kiam.agent.core.addresses import Addresses
from kiam.agent.core.askers import PodUidMode, Verdict, judge
from kiam.agent.core.failures import (
    RequestFailure,
    credentials_unavailable,
    impostor,
    not_yet_certain,
    not_yet_known,
    several_pods,
)
from kiam.agent.core.identities import KnownPod
from kiam.agent.core.pods import NodePod, PushedPods, credentials_of, role_of
from kiam.agent.core.routes import Route
from kiam.agent.core.stream import Reading, Stream
from kiam.rpc import kiam_pb2

log = logging.getLogger(__name__)


_LIVE = Stream.LIVE
"""A member of an enum costs a look-up of its own each time it is named."""


class NodeCore:
    """One node's pods, as far as the server and the kernel have spoken.

    - Stream live: memory answers; who isn't pushed is waited for, and the server is asked by unary call meanwhile.
    - Server away: memory answers for a pod that is *bound* (the kernel's route to its address is the one it had when
      the server last spoke) and whose credentials are good, for at most the outage grace. All others are strangers.
    - A server without streams: unary calls, and nothing is remembered.
    """

    def __init__(
        self, outage_grace: float, confirm_after: float = CONFIRM_AFTER, pod_uid: PodUidMode = PodUidMode.OFF
    ) -> None:
        """``outage_grace``: seconds for which memory answers while the server is away."""
        self.pods = PushedPods()
        self.addresses = Addresses(confirm_after)
        self.stream = Stream.NONE
        self._grace = outage_grace
        self._pod_uid = pod_uid
        self._asks_kernel = pod_uid is not PodUidMode.OFF
        self._goes_by_address = pod_uid is not PodUidMode.REQUIRE
        self._away_until = 0.0
        self._everybody_woken = False
        self._reading = Reading()
        self._last_asked = 0.0

    # ---- told by the server's stream

    def asked(self, now: float) -> None:
        """A stream is being asked for."""
        self._last_asked = now

    def stream_opened(self, hello: kiam_pb2.NodeUpdate, asked_at: float) -> None:
        """The first update of the stream that is read from now on, which was asked for then."""
        self._reading = Reading.begun(hello.hello, asked_at)
        self.pods.apply(hello)

    def apply(self, update: kiam_pb2.NodeUpdate, now: float) -> None:
        """Take in one further update of the stream."""
        if update.HasField("snapshot_complete"):
            self._complete(update.snapshot_complete)
            return
        word_at = self._reading.word_at(update, now)
        for address in self.pods.apply(update):
            pod = self.pods.pod_at(address)
            if pod is not None:
                self.addresses.assign(address, pod.uid, word_at)
            elif not self.pods.is_shared(address):
                self.addresses.release(address, now)

    def stream_lost(self, now: float) -> None:
        """The stream broke."""
        self._reading.in_snapshot = False
        if self.stream is Stream.LIVE:
            self.stream = Stream.AWAY
            self._away_until = now + self._grace
            log.warning(
                "the server is away: %d pods are answered from memory for up to %g s", len(self.pods.pods), self._grace
            )
            self._everybody_woken = True

    def no_stream(self, now: float) -> None:
        """The server has no streams: what an earlier one pushed is not kept up to date any more."""
        self.stream = Stream.NONE
        for address in self.pods.clear():
            self.addresses.release(address, now)
        self._everybody_woken = True

    def ask_at(self) -> float | None:
        """When the server is to be asked anew, by a stream beside the one that is read; None: no need."""
        if self.stream is not Stream.LIVE or self._reading.in_snapshot:
            return None
        return self.addresses.ask_at(self._last_asked)

    @property
    def is_informed(self) -> bool:
        """Whether the server keeps us informed, or is about to: its pods may be bound to their routes."""
        return self.stream is Stream.LIVE or self._reading.in_snapshot

    def take_woken(self) -> tuple[bool, set[str]]:
        """Whose requests are to be looked at again: everybody's, or those at these addresses."""
        everybody, self._everybody_woken = self._everybody_woken, False
        woken, self.pods.woken = self.pods.woken, set()
        return everybody, woken

    def _complete(self, marker: kiam_pb2.SnapshotComplete) -> None:
        if self.stream is not Stream.LIVE:
            log.info("the server's picture of this node is complete: %d pods", len(self.pods.pods))
        self.stream = Stream.LIVE
        self.addresses.confirm(self._reading.asked_at, self._reading.completed(marker))
        # Those that waited under the old circumstances look again.
        self._everybody_woken = True

    # ---- asked by requests; the kernel has been heard before

    def pod(self, address: str, now: float, uid: str | None = None) -> NodePod | None:
        """The pod that asks from an address, ``uid`` being the kernel's word on it; None: memory may not say.

        Raises Impostor.
        """
        pod = self._at_first_sight(address, uid)
        if pod is not None:
            return pod
        verdict = self._judge(address, uid)
        if verdict is Verdict.BY_ADDRESS:
            return self.pods.pod_at(address) if self._may_answer(address, now) else None
        if verdict is Verdict.IMPOSTOR:
            raise impostor()
        if verdict is Verdict.BY_UID and uid is not None and self._may_speak(now):
            return self.pods.pods.get(uid)
        return None

    def role(self, address: str, now: float, uid: str | None = None) -> tuple[KnownPod, bytes] | None:
        """The pod and its role, exactly as annotated; None: memory may not answer. Raises NoRole and Impostor."""
        pod = self.pod(address, now, uid)
        return None if pod is None else (pod.known, role_of(pod))

    def credentials(
        self, address: str, role: str, now: float, wall: float, uid: str | None = None
    ) -> tuple[KnownPod, bytes] | None:
        """The pod and its credentials document; None: memory may not answer.

        Raises as :func:`credentials_of`, and Impostor.
        """
        # Asked here too: one call less for what nearly every request is.
        pod = self._at_first_sight(address, uid) or self.pod(address, now, uid)
        if pod is None:
            return None
        document = credentials_of(pod, role, self.pods.role_base_arn, wall)
        return None if document is None else (pod.known, document)

    def should_ask(self, address: str, uid: str | None = None) -> bool:
        """Whether the server is to be asked by unary call about a request that memory doesn't answer.

        Where an address is suspect, or several pods claim it, the stream's next word decides and is waited for. But an
        address that the stream doesn't know may be known to the server all the same (an agent that goes by another
        address than ``status.hostIP``), and credentials that are missing or have expired are a call away.
        """
        if self.contradicts(address, uid):
            # The server would answer for the address.
            return False
        if self.stream is not Stream.LIVE:
            return True
        return not self.addresses.is_suspect(address) and not self.pods.is_shared(address)

    def contradicts(self, address: str, uid: str | None) -> bool:
        """Whether the kernel's word on who asks doesn't fit what is known of the address."""
        return self._judge(address, uid) in (Verdict.NOT_YET, Verdict.IMPOSTOR)

    def vouches(self, address: str, route: Route | None, asked_at: float, age: float | None) -> bool:
        """Whether the answer of a unary call about an address may be given to who asks there.

        ``asked_at``: when the call was made; ``age``: of what the server knew, in seconds, if it says so.
        """
        return self.addresses.vouches(address, route, asked_at, age)

    def why_not(self, address: str, uid: str | None = None) -> RequestFailure:
        """What a request is told that has waited in vain."""
        verdict = self._judge(address, uid)
        if verdict is Verdict.NOT_YET:
            return not_yet_certain()
        if verdict is Verdict.BY_UID:
            return credentials_unavailable("")
        if self.pods.is_shared(address):
            return several_pods()
        if self.pods.pod_at(address) is not None and not self.addresses.is_suspect(address):
            return credentials_unavailable("")
        return not_yet_known()

    def _at_first_sight(self, address: str, uid: str | None) -> NodePod | None:
        """The pod that asks, for what nearly every request is: by an address that nothing is known against, or by one
        that the kernel agrees with. None: :meth:`pod` decides, in full."""
        if self.stream is not _LIVE:
            return None
        pod = self.pods.pod_at(address)
        if pod is None:
            return None
        if uid is not None and self._asks_kernel:
            return pod if pod.uid == uid else None
        return pod if self._goes_by_address and not self.addresses.is_suspect(address) else None

    def _may_answer(self, address: str, now: float) -> bool:
        """Whether memory may speak for an address.

        Which attack: a pod that got the address of another one while nobody could tell us would get its credentials.
        """
        if self.stream is Stream.LIVE:
            return not self.addresses.is_suspect(address)
        return self._may_speak(now) and self.addresses.is_bound(address)

    def _may_speak(self, now: float) -> bool:
        """Whether memory is as the server has it, or was within the outage grace."""
        return self.stream is Stream.LIVE or (self.stream is Stream.AWAY and now < self._away_until)

    def _judge(self, address: str, uid: str | None) -> Verdict:
        if self._pod_uid is PodUidMode.OFF:
            return Verdict.BY_ADDRESS
        if self.stream is Stream.NONE:
            # Nothing is pushed to hold the kernel's word against, but that there is none counts all the same.
            refused = uid is None and self._pod_uid is PodUidMode.REQUIRE
            return Verdict.NOT_YET if refused else Verdict.BY_ADDRESS
        return judge(
            uid,
            self.pods.pods.get(uid) if uid else None,
            self.pods.pod_at(address),
            address,
            is_settled=self.addresses.is_bound(address),
            mode=self._pod_uid,
        )
