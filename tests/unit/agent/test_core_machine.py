"""The argument of docs/outage.md as a machine: pods, addresses, servers, kubelet, kernel and clocks do what they like.

Two things hold whatever happens: no request is answered with another pod's credentials, and a known pod is answered.

What the model assumes of the world is what docs/outage.md says:

- An address is a pod's while the kernel's route leads to that pod's interface; interface numbers aren't used twice.
- Kubelet reports a pod's end within ``CONFIRM_AFTER``, and before its address goes to another pod unless the agent knew
  the pod. It reports a pod's address whenever it likes.
- What a server says is what the Kubernetes API knew at some moment, and it doesn't say that this is newer than it is.
- The kernel tells of a change before it delivers a packet that came by it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from ipaddress import ip_network

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kiam.agent.core.address import CONFIRM_AFTER
from kiam.agent.core.askers import PodUidMode
from kiam.agent.core.failures import CredentialsUnavailable, RequestFailure
from kiam.agent.core.node import NodeCore
from kiam.agent.core.routes import Change, Link, LinkChange, Route, RouteChange
from kiam.agent.core.stream import Stream
from kiam.rpc import kiam_pb2
from tests.unit.agent.test_pods import BASE, credentials, pod, withdrawn

GRACE = 600.0
ADDRESSES = ("10.0.0.1", "10.0.0.2")
EPOCH = 1_800_000_000.0


@dataclass(slots=True)
class Sandbox:
    """A pod that runs, with its interface."""

    uid: str
    address: str
    link: int


@dataclass(slots=True)
class Kernel:
    """Links and host routes as they are, and what has been told of them but not been read."""

    routes: dict[str, int] = field(default_factory=dict)
    links: dict[int, Link] = field(default_factory=dict)
    told: deque[Change] = field(default_factory=deque)

    def add(self, sandbox: Sandbox) -> None:
        self.links[sandbox.link] = Link(sandbox.link, "veth", 0)
        self.told.append(LinkChange(self.links[sandbox.link], gone=False))
        self.set_route(sandbox.address, sandbox.link)

    def remove(self, sandbox: Sandbox) -> None:
        self.told.append(LinkChange(self.links.pop(sandbox.link), gone=True))
        self.set_route(sandbox.address, None)

    def set_route(self, address: str, link: int | None) -> None:
        if link is None:
            self.routes.pop(address, None)
        else:
            self.routes[address] = link
        self.told.append(RouteChange(ip_network(address)))

    def route_to(self, address: str) -> Route | None:
        link = self.routes.get(address)
        return None if link is None else Route(link, 32, via_gateway=False, is_unicast=True)


@dataclass(slots=True)
class Server:
    """A replica: what it knows of the API, as of when."""

    view: dict[str, str] = field(default_factory=dict)
    """UID to address."""
    fresh_at: float = 0.0


@dataclass(slots=True)
class OpenStream:
    server: Server
    sent: dict[str, str]


class World(RuleBasedStateMachine):
    pod_uid = PodUidMode.OFF

    def __init__(self) -> None:
        super().__init__()
        self.now, self.wall_offset = 1000.0, EPOCH
        self.kernel = Kernel()
        self.core = NodeCore(GRACE, pod_uid=self.pod_uid)
        self.running: dict[str, Sandbox] = {}
        self.api: dict[str, str] = {}
        # Pods that have ended without kubelet's having said so, and when it must.
        self.unreported: dict[str, float] = {}
        self.servers = [Server(fresh_at=self.now), Server(fresh_at=self.now)]
        self.stream: OpenStream | None = None
        self.asking: tuple[str, float, Server] | None = None
        self.numbers = 0
        self.lost_at: float | None = None
        # Pods that were answered from a live stream when it broke, and whose route has been the same since.
        self.remembered: set[str] = set()

    # ---- what the drivers do

    def listen(self) -> None:
        while self.kernel.told:
            self.core.addresses.kernel_changed(self.kernel.told.popleft(), self.now)
        self.settle()

    def settle(self) -> None:
        addresses = self.core.addresses
        while (address := addresses.next_look_up()) is not None:
            addresses.route_is(address, self.kernel.route_to(address), self.now, is_informed=self.core.is_informed)
        addresses.take_resolutions()

    def apply(self, update: kiam_pb2.NodeUpdate) -> None:
        self.listen()
        self.core.apply(update, self.now)
        self.settle()

    def answer(self, address: str, role: str) -> bytes | None:
        self.listen()
        try:
            answer = self.core.credentials(
                address, role, self.now, self.now + self.wall_offset, self.kernels_word(address)
            )
        except RequestFailure:
            return None
        return None if answer is None else answer[1]

    def kernels_word(self, address: str) -> str | None:
        """Whose socket a connection from an address is, if anybody asks the kernel."""
        if self.pod_uid is PodUidMode.OFF:
            return None
        return next((sandbox.uid for sandbox in self.running.values() if sandbox.address == address), None)

    # ---- pods, kubelet and the API

    @initialize()
    def listing(self) -> None:
        self.core.addresses.kernel_is((), self.now, is_first=True)

    def knows(self, address: str) -> bool:
        held = self.core.pods.pod_at(address)
        return held is not None and held.uid in self.unreported and self.core.addresses.is_suspect(address)

    @rule(address=st.sampled_from(ADDRESSES))
    def pod_starts(self, address: str) -> None:
        if any(sandbox.address == address for sandbox in self.running.values()):
            return
        before = [uid for uid in self.unreported if self.api.get(uid) == address]
        self.listen()
        if before and not self.knows(address):
            return
        self.numbers += 1
        sandbox = Sandbox(f"u{self.numbers}", address, 10 + self.numbers)
        self.running[sandbox.uid] = sandbox
        self.kernel.add(sandbox)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def pod_ends(self, data: st.DataObject) -> None:
        self.end(self.running.pop(data.draw(st.sampled_from(sorted(self.running)))))

    def end(self, sandbox: Sandbox) -> None:
        self.kernel.remove(sandbox)
        self.remembered.discard(sandbox.uid)
        if sandbox.uid in self.api:
            self.unreported[sandbox.uid] = self.now + CONFIRM_AFTER

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def address_changes_hands(self, data: st.DataObject) -> None:
        address = data.draw(st.sampled_from(sorted(sandbox.address for sandbox in self.running.values())))
        (before,) = (sandbox for sandbox in self.running.values() if sandbox.address == address)
        del self.running[before.uid]
        self.end(before)
        self.pod_starts(address)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def route_is_taken_out_and_put_back(self, data: st.DataObject) -> None:
        sandbox = self.running[data.draw(st.sampled_from(sorted(self.running)))]
        self.kernel.set_route(sandbox.address, None)
        if data.draw(st.booleans()):
            self.listen()
        self.kernel.set_route(sandbox.address, sandbox.link)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def kubelet_reports_an_address(self, data: st.DataObject) -> None:
        sandbox = self.running[data.draw(st.sampled_from(sorted(self.running)))]
        self.api[sandbox.uid] = sandbox.address

    @precondition(lambda self: self.unreported)
    @rule(data=st.data())
    def kubelet_reports_an_end(self, data: st.DataObject) -> None:
        self.report_end(data.draw(st.sampled_from(sorted(self.unreported))))

    def report_end(self, uid: str) -> None:
        del self.unreported[uid]
        del self.api[uid]

    # ---- time

    @rule(seconds=st.sampled_from([0.01, 0.3, 0.999, 1.0, 5.0, 61.0, 700.0]))
    def time_passes(self, seconds: float) -> None:
        until = self.now + seconds
        for uid, due in sorted(self.unreported.items(), key=lambda item: item[1]):
            if due <= until:
                self.now = max(self.now, due)
                self.report_end(uid)
        self.now = until

    @rule(seconds=st.sampled_from([-3600.0, -1.0, 1.0, 1200.0, 86400.0]))
    def wall_clock_is_set(self, seconds: float) -> None:
        self.wall_offset += seconds

    @rule()
    def notifications_are_lost(self) -> None:
        self.kernel.told.clear()
        links = [LinkChange(link, gone=False) for link in self.kernel.links.values()]
        self.core.addresses.kernel_is(links, self.now, is_first=False)
        self.settle()

    # ---- servers

    @rule(which=st.integers(0, 1))
    def server_catches_up(self, which: int) -> None:
        server = self.servers[which]
        server.view, server.fresh_at = dict(self.api), self.now

    def age(self, server: Server) -> int:
        return round((self.now - server.fresh_at) * 1000) + 1

    def send(self, stream: OpenStream, uid: str) -> None:
        """One pod's update, as :mod:`kiam.server.grpc.node_streams` makes it."""
        address = stream.server.view.get(uid)
        if address is None:
            self.apply(withdrawn(uid))
            stream.sent.pop(uid, None)
            return
        alone = sum(other == address for other in stream.server.view.values()) == 1
        update = pod(uid, (address,) if alone else (), role=uid)
        update.watch_age_milliseconds = self.age(stream.server)
        self.apply(update)
        self.apply(credentials(uid, minutes=60 * 24 * 365 * 20, key=uid))
        stream.sent[uid] = f"{address} {alone}"

    def to_send(self, stream: OpenStream) -> list[str]:
        view = stream.server.view
        gone = [uid for uid in stream.sent if uid not in view]
        state = {
            uid: f"{address} {sum(other == address for other in view.values()) == 1}" for uid, address in view.items()
        }
        # Who loses an address before who gains it.
        changed = sorted(
            (uid for uid in view if stream.sent.get(uid) != state[uid]), key=lambda uid: state[uid][-4:] == "True"
        )
        return gone + changed

    @precondition(lambda self: self.stream is not None)
    @rule()
    def server_pushes_what_is_next(self) -> None:
        assert self.stream is not None
        for uid in self.to_send(self.stream)[:1]:
            self.send(self.stream, uid)

    @rule(which=st.integers(0, 1), complete=st.booleans())
    def agent_opens_a_stream(self, which: int, complete: bool) -> None:
        self.open(self.servers[which], complete)

    def open(self, server: Server, complete: bool = True) -> None:
        self.core.asked(self.now)
        asked_at = self.now
        hello = kiam_pb2.NodeUpdate(hello=kiam_pb2.Hello(role_base_arn=BASE, watch_age_milliseconds=self.age(server)))
        known = {uid: " ".join((*held.addresses, "True")) for uid, held in self.core.pods.pods.items()}
        self.stream = OpenStream(server, known)
        # From here on the server's word counts, also that of one that hasn't heard of a pod yet.
        self.remembered.clear()
        self.core.stream_opened(hello, asked_at)
        if not complete:
            return
        for uid in self.to_send(self.stream):
            self.send(self.stream, uid)
        self.apply(
            kiam_pb2.NodeUpdate(snapshot_complete=kiam_pb2.SnapshotComplete(watch_age_milliseconds=self.age(server)))
        )
        self.lost_at = None

    @precondition(lambda self: self.stream is not None)
    @rule()
    def stream_breaks(self) -> None:
        was_live = self.core.stream is Stream.LIVE
        if was_live:
            self.remembered = {
                uid
                for uid, sandbox in self.running.items()
                if self.answer(sandbox.address, uid) is not None and self.core.addresses.is_bound(sandbox.address)
            }
            self.lost_at = self.now
        self.stream = None
        self.core.stream_lost(self.now)

    @precondition(lambda self: self.stream is not None)
    @rule()
    def server_turns_out_to_be_a_conventional_one(self) -> None:
        self.stream = None
        self.lost_at = None
        self.remembered.clear()
        self.core.stream_lost(self.now)
        self.core.no_stream(self.now)

    # ---- requests

    def asks(self, sandbox: Sandbox) -> None:
        for uid in {sandbox.uid, *self.core.pods.pods}:
            body = self.answer(sandbox.address, uid)
            assert body is None or (uid == sandbox.uid and uid.encode() in body), f"{sandbox.uid} got those of {uid}"

    @invariant()
    def no_pod_gets_credentials_of_another(self) -> None:
        for sandbox in self.running.values():
            self.asks(sandbox)

    @precondition(lambda self: self.running and self.asking is None)
    @rule(data=st.data(), which=st.integers(0, 1))
    def agent_asks_by_unary_call(self, data: st.DataObject, which: int) -> None:
        sandbox = self.running[data.draw(st.sampled_from(sorted(self.running)))]
        self.asking = (sandbox.uid, self.now, self.servers[which])

    @precondition(lambda self: self.asking is not None)
    @rule()
    def unary_call_is_answered(self) -> None:
        assert self.asking is not None
        uid, asked_at, server = self.asking
        self.asking = None
        sandbox = self.running.get(uid)
        if sandbox is None:
            return
        owners = [uid for uid, address in server.view.items() if address == sandbox.address]
        self.listen()
        route = self.kernel.route_to(sandbox.address)
        if len(owners) == 1 and self.core.vouches(sandbox.address, route, asked_at, self.age(server) / 1000):
            assert owners == [uid]

    @invariant()
    def remembered_pods_are_answered_while_the_server_is_away(self) -> None:
        if self.lost_at is None or self.core.stream is not Stream.AWAY or self.now - self.lost_at >= GRACE:
            return
        for uid in self.remembered & self.running.keys():
            assert self.answer(self.running[uid].address, uid) is not None, f"{uid} was forgotten"

    @rule()
    def known_pods_are_answered_when_everything_has_come_to_rest(self) -> None:
        for sandbox in self.running.values():
            self.api[sandbox.uid] = sandbox.address
        for _ in range(3):
            self.time_passes(CONFIRM_AFTER)
            self.server_catches_up(0)
            self.open(self.servers[0])
        assert self.core.ask_at() is None
        for uid, sandbox in self.running.items():
            assert self.answer(sandbox.address, uid) is not None, f"{uid} is not answered"
            assert self.core.addresses.is_bound(sandbox.address)


World.TestCase.settings = settings(
    max_examples=500, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)


class WorldWithUids(World):
    """The same, and the agent asks the kernel whose socket each connection is."""

    pod_uid = PodUidMode.CHECK


WorldWithUids.TestCase.settings = settings(World.TestCase.settings, max_examples=200)
TestWorldWithUids = pytest.mark.timeout(300)(WorldWithUids.TestCase)
TestWorld = pytest.mark.timeout(300)(World.TestCase)


def test_known_pod_that_waits_for_sts_is_told_so() -> None:
    core = NodeCore(GRACE)
    core.stream_opened(kiam_pb2.NodeUpdate(hello=kiam_pb2.Hello(role_base_arn=BASE)), 0.0)
    core.apply(pod(), 0.0)
    core.apply(kiam_pb2.NodeUpdate(snapshot_complete=kiam_pb2.SnapshotComplete()), 0.0)
    assert core.credentials("10.0.0.1", "app", 1.0, EPOCH) is None
    assert core.should_ask("10.0.0.1")
    assert isinstance(core.why_not("10.0.0.1"), CredentialsUnavailable)
