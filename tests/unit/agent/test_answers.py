"""When memory may answer, when the server is asked, and who waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import time
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from kiam.agent.control.answers import NodeIdentities
from kiam.agent.control.unary import Word
from kiam.agent.core.askers import PodUidMode
from kiam.agent.core.failures import (
    CredentialsUnavailable,
    Forbidden,
    Impostor,
    NotYetKnown,
    RequestFailure,
    ServerAway,
)
from kiam.agent.core.identities import KnownPod
from kiam.agent.core.node import NodeCore
from kiam.agent.core.routes import Link, LinkChange, Route
from kiam.agent.core.stream import Stream
from kiam.agent.metrics import AgentMetrics
from kiam.clocks import Clock
from kiam.rpc import kiam_pb2
from tests.sandbox.process import until
from tests.unit.agent.test_pods import BASE, A, B, credentials, failed, pod, withdrawn

HELLO = kiam_pb2.NodeUpdate(hello=kiam_pb2.Hello(node_name="node-1", role_base_arn=BASE))
COMPLETE = kiam_pb2.NodeUpdate(snapshot_complete=kiam_pb2.SnapshotComplete())


class ManualClock:
    """Goes when it is told to."""

    def __init__(self) -> None:
        self.at, self.offset = 1000.0, time() - 1000.0

    def elapsed(self) -> float:
        return self.at

    def wall(self) -> float:
        return self.at + self.offset


class Kernel:
    """One interface for each address, in rtnetlink's place."""

    def __init__(self, core: NodeCore, clock: Clock) -> None:
        self._core, self._clock = core, clock
        self.routes: dict[str, int] = {}
        self.own: set[str] = set()
        """The node's own addresses."""
        self._links = 10
        self.caught_up = 0
        core.addresses.kernel_is([], clock.elapsed(), is_first=True)
        self.heard: Callable[[], None] = lambda: None

    def plug(self, address: str) -> None:
        self._links += 1
        self.routes[address] = self._links
        self._tell(LinkChange(Link(self._links, "veth", 0), gone=False))

    def unplug(self, address: str) -> None:
        self._tell(LinkChange(Link(self.routes.pop(address), "veth", 0), gone=True))

    def _tell(self, change: LinkChange) -> None:
        self._core.addresses.kernel_changed(change, self._clock.elapsed())
        self.settle()
        self.heard()

    def catch_up(self) -> None:
        self.caught_up += 1

    def settle(self) -> None:
        addresses = self._core.addresses
        while (address := addresses.next_look_up()) is not None:
            route = self.route_to(address)
            addresses.route_is(address, route, self._clock.elapsed(), is_informed=self._core.is_informed)

    def route_to(self, address: str) -> Route | None:
        link = self.routes.get(address)
        if link is None:
            return None
        return Route(link, 32, via_gateway=False, is_unicast=True, is_local=address in self.own)


class Server:
    """Answers unary calls, and counts them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.asked: list[tuple[str, str]] = []
        self.age: float | None = None
        self.failure: RequestFailure | None = None
        self.refusal: RequestFailure | None = None
        self.answers = asyncio.Event()
        """Unset: calls are held."""
        self.answers.set()

    async def role(self, address: str, deadline: float) -> Word:
        return await self._answer(address, "", b"from-server")

    async def credentials(self, address: str, role: str, deadline: float) -> Word:
        return await self._answer(address, role, b"{from-server}\n")

    async def _answer(self, address: str, role: str, body: bytes) -> Word:
        asked_at = self._clock.elapsed()
        self.asked.append((address, role))
        await self.answers.wait()
        if self.failure is not None:
            raise self.failure
        return Word(body, asked_at, self.age, self.refusal)

    async def report(self, address: str, role: str, deadline: float) -> None:
        await self._answer(address, role, b"")

    async def server_health(self, deadline: float) -> str:
        return "ok"


class Agent:
    """An agent without I/O: its server's stream, kernel and clock are the test's."""

    def __init__(self, grace: float = 900.0, pod_uid: PodUidMode = PodUidMode.OFF) -> None:
        self.clock, self.registry = ManualClock(), CollectorRegistry()
        self.server = Server(self.clock)
        self.core = NodeCore(grace, pod_uid=pod_uid)
        self.kernel = Kernel(self.core, self.clock)
        for address in (A, B):
            self.kernel.plug(address)
        self.node = NodeIdentities(self.core, self.server, self.kernel, self.clock, AgentMetrics(self.registry))
        self.kernel.heard = self.node.heard

    def open(self, hello: kiam_pb2.NodeUpdate = HELLO) -> Agent:
        self.node.stream_opened(hello, self.node.asked())
        return self

    def push(self, *updates: kiam_pb2.NodeUpdate) -> Agent:
        for update in updates:
            self.node.apply(update)
        return self

    async def ask(self, address: str = A, role: str = "app", seconds: float = 5.0, uid: str | None = None) -> bytes:
        deadline = asyncio.get_running_loop().time() + seconds
        answer = self.node.credentials_now(address, role, uid)
        return answer[1] if answer is not None else await self.node.credentials(address, role, deadline, uid)


def live(*updates: kiam_pb2.NodeUpdate, pod_uid: PodUidMode = PodUidMode.OFF) -> Agent:
    return Agent(pod_uid=pod_uid).open().push(*updates, COMPLETE)


async def waits(asking: asyncio.Future[Any]) -> bool:
    """Whether a request still waits once everybody has had a turn."""
    for _ in range(10):
        await asyncio.sleep(0)
    return not asking.done()


async def test_before_the_snapshot_is_complete_the_server_is_asked() -> None:
    agent = Agent().open().push(pod(), credentials())
    assert await agent.ask() == b"{from-server}\n"


async def test_live_stream_answers_without_a_call() -> None:
    agent = live(pod(), credentials())
    assert b"ASIA1" in await agent.ask()
    assert agent.server.asked == []
    assert agent.kernel.caught_up


async def test_known_pod_is_who_memory_believes() -> None:
    agent = live(pod(), credentials())
    assert agent.node.known_pod(A) == KnownPod("u1", "default", "u1", "app")
    assert agent.node.known_pod(B) is None
    agent.kernel.unplug(A)
    assert agent.node.known_pod(A) is None


async def test_who_is_not_pushed_yet_is_answered_when_it_is() -> None:
    agent = live()
    agent.server.answers.clear()
    asking = asyncio.create_task(agent.ask())
    assert await waits(asking)
    agent.push(pod())
    assert await waits(asking)
    agent.push(credentials())
    assert b"ASIA1" in await asking
    assert agent.server.asked == [(A, "app")]


async def test_who_the_stream_does_not_know_is_answered_by_the_server() -> None:
    """An agent that goes by another address than its pods' ``status.hostIP``."""
    agent = live()
    assert await agent.ask() == b"{from-server}\n"
    assert await agent.node.role(A, asyncio.get_running_loop().time() + 5) == b"from-server"


async def test_who_nobody_knows_hears_so() -> None:
    agent = live()
    agent.server.failure = NotYetKnown("no")
    with pytest.raises(NotYetKnown):
        await agent.ask()


async def test_expired_credentials_of_a_known_pod_are_a_call_away() -> None:
    agent = live(pod(), credentials(minutes=15))
    agent.clock.offset += 1200
    assert await agent.ask() == b"{from-server}\n"
    agent.push(credentials(minutes=40, key="ASIA2"))
    assert b"ASIA2" in await agent.ask()
    assert len(agent.server.asked) == 1


@pytest.mark.parametrize("failure", [NotYetKnown("no"), ServerAway("away")])
async def test_known_pod_without_credentials_hears_that_aws_is_waited_for(failure: RequestFailure) -> None:
    agent = live(pod())
    agent.server.failure = failure
    with pytest.raises(CredentialsUnavailable, match="no credentials from AWS yet"):
        await agent.ask()


async def test_what_aws_said_is_told_at_once() -> None:
    agent = live(pod(), failed())
    with pytest.raises(CredentialsUnavailable, match="AccessDenied"):
        await agent.ask()
    assert agent.server.asked == []


async def test_answer_older_than_the_pods_interface_is_not_given() -> None:
    agent = live()
    agent.server.age = 30.0
    agent.kernel.plug(A)
    asking = asyncio.create_task(agent.ask())
    await until(lambda: len(agent.server.asked) >= 2, "the call to be repeated")
    assert not asking.done()
    agent.server.age = 0.0
    agent.clock.at += 1.0
    assert await asking == b"{from-server}\n"


async def test_refusal_older_than_the_pods_interface_is_not_told() -> None:
    """It may be about the pod that had the address before."""
    agent = live()
    agent.server.age, agent.server.refusal = 30.0, Forbidden("forbidden by policy")
    agent.kernel.plug(A)
    asking = asyncio.create_task(agent.ask())
    await until(lambda: len(agent.server.asked) >= 2, "the call to be repeated")
    assert not asking.done()
    agent.server.age = 0.0
    agent.clock.at += 1.0
    with pytest.raises(Forbidden, match="forbidden by policy"):
        await asking


async def test_call_made_before_the_address_changed_hands_answers_nobody() -> None:
    agent = live(pod())
    agent.server.answers.clear()
    asking = asyncio.create_task(agent.ask())
    assert await waits(asking)
    agent.kernel.unplug(A)
    agent.kernel.plug(A)
    agent.server.answers.set()
    assert await waits(asking)
    agent.push(withdrawn(), pod("u2", (A,), role="other"))
    with pytest.raises(Forbidden):
        await asking


async def test_requests_leave_nothing_behind() -> None:
    agent = Agent()
    await agent.ask("10.9.9.1")
    agent.open().push(COMPLETE)
    agent.server.answers.clear()
    hung_up = asyncio.create_task(agent.ask("10.9.9.3"))
    assert await waits(hung_up)
    hung_up.cancel()
    await asyncio.wait({hung_up})
    assert not agent.node._waiters


async def test_one_who_gives_up_does_not_stop_another_from_waiting() -> None:
    agent = live()
    agent.server.answers.clear()
    asking, impatient = asyncio.create_task(agent.ask()), asyncio.create_task(agent.ask())
    assert await waits(asking)
    impatient.cancel()
    assert await waits(asking)
    agent.push(pod(), credentials())
    assert b"ASIA1" in await asking


async def test_address_of_two_pods_waits_until_it_is_one_pods() -> None:
    agent = live(pod("u1"), pod("u2"), credentials())
    asking = asyncio.create_task(agent.ask())
    assert await waits(asking)
    assert agent.server.asked == []
    agent.push(withdrawn("u2"))
    assert b"ASIA1" in await asking


async def test_address_of_two_pods_hears_so_at_the_deadline() -> None:
    with pytest.raises(NotYetKnown, match="yours alone"):
        await live(pod("u1"), pod("u2"), credentials()).ask(seconds=0.01)


async def test_alone_answers_bound_pods_only() -> None:
    agent = live(pod("u1", (A,)), pod("u2", (B,)), credentials())
    agent.node.stream_lost()
    agent.kernel.unplug(B)
    assert b"ASIA1" in await agent.ask(A)
    assert agent.node.credentials_now(B, "app") is None
    assert agent.node.alone_since() is not None
    with pytest.raises(Forbidden):
        await agent.ask(A, "other")


async def test_grace_ends_by_the_clock_that_goes_on_while_the_machine_sleeps() -> None:
    agent = Agent(60.0).open().push(pod(), credentials(), COMPLETE)
    agent.node.stream_lost()
    agent.clock.at, agent.clock.offset = agent.clock.at + 59, agent.clock.offset - 59
    assert agent.node.credentials_now(A, "app") is not None
    agent.clock.at += 1
    assert await agent.ask() == b"{from-server}\n"


async def test_grace_of_zero_remembers_nobody() -> None:
    agent = Agent(0.0).open().push(pod(), credentials(), COMPLETE)
    agent.node.stream_lost()
    assert await agent.ask() == b"{from-server}\n"


async def test_expired_credentials_are_not_given_when_alone() -> None:
    agent = live(pod(), credentials(minutes=-1))
    agent.node.stream_lost()
    assert await agent.ask() == b"{from-server}\n"


async def test_waiting_request_goes_to_the_server_when_the_stream_breaks() -> None:
    agent = live(pod("u1"), pod("u2"))
    asking = asyncio.create_task(agent.ask())
    assert await waits(asking)
    agent.node.stream_lost()
    assert await asking == b"{from-server}\n"


async def test_changed_route_waits_for_the_servers_word() -> None:
    agent = live(pod(), credentials())
    agent.kernel.unplug(A)
    agent.kernel.plug(A)
    asking = asyncio.create_task(agent.ask())
    assert await waits(asking)
    assert agent.server.asked == []
    agent.clock.at += 1.0
    await agent.node.wait_to_ask()
    agent.open().push(COMPLETE)
    assert b"ASIA1" in await asking
    assert agent.core.addresses.is_bound(A)


async def test_server_that_is_cut_off_confirms_nothing() -> None:
    agent = live(pod(), credentials())
    agent.kernel.unplug(A)
    agent.kernel.plug(A)
    agent.clock.at += 1.0
    stale = kiam_pb2.NodeUpdate(hello=kiam_pb2.Hello(role_base_arn=BASE, watch_age_milliseconds=2500))
    agent.open(stale).push(COMPLETE)
    assert agent.node.credentials_now(A, "app") is None
    # It is asked again, and not before it makes sense.
    waiting = asyncio.create_task(agent.node.wait_to_ask())
    await asyncio.sleep(0)
    assert not waiting.done()
    waiting.cancel()
    agent.clock.at += 3.0
    await agent.node.wait_to_ask()
    agent.open(stale).push(COMPLETE)
    assert b"ASIA1" in await agent.ask()


async def test_changed_route_and_then_another_pod() -> None:
    agent = live(pod(), credentials())
    agent.kernel.unplug(A)
    asking = asyncio.create_task(agent.ask())
    assert await waits(asking)
    agent.push(withdrawn(), pod("u2", (A,), role="other"))
    with pytest.raises(Forbidden):
        await asking


async def test_interface_that_comes_back_after_the_servers_word_needs_it_again() -> None:
    """A is being deleted: its sandbox is gone, the API still names it, and the address goes to another pod."""
    agent = live(pod(), credentials())
    agent.kernel.unplug(A)
    agent.clock.at += 1.0
    agent.open().push(COMPLETE)
    assert agent.node.credentials_now(A, "app") is not None
    agent.clock.at += 1.0
    agent.kernel.plug(A)
    assert agent.node.credentials_now(A, "app") is None
    agent.clock.at += 1.0
    agent.open().push(COMPLETE)
    assert agent.node.credentials_now(A, "app") is not None


async def test_route_that_changed_while_alone_stays_unknown_until_the_snapshot_is_complete() -> None:
    agent = live(pod(), credentials())
    agent.node.stream_lost()
    agent.kernel.unplug(A)
    agent.kernel.plug(A)
    assert agent.node.credentials_now(A, "app") is None
    agent.clock.at += 1.0
    agent.open()
    assert agent.node.credentials_now(A, "app") is None
    agent.push(COMPLETE)
    assert agent.node.credentials_now(A, "app") is not None
    assert agent.node.alone_since() is None


async def test_conventional_server_makes_the_agent_forget() -> None:
    agent = live(pod(), credentials())
    agent.node.no_stream()
    assert agent.core.stream is Stream.NONE
    assert not agent.core.addresses.is_bound(A)
    assert await agent.ask() == b"{from-server}\n"


async def test_refusal_is_told_to_the_server_but_not_over_and_over() -> None:
    agent = live(pod(), credentials())
    for _ in range(5):
        with pytest.raises(Forbidden):
            agent.node.credentials_now(A, "other")
    await asyncio.sleep(0)
    assert agent.server.asked == [(A, "other")]


async def test_role_refused_before_anybody_was_asked_is_told_to_the_server() -> None:
    """So that a pod annotated with what can't be a role has an Event, also with a server without streams."""
    for agent in (live(pod(role="x/../admin")), Agent()):
        for _ in range(3):
            agent.node.refused(A, "x/../admin")
        await asyncio.sleep(0)
        assert agent.server.asked == [(A, "x/../admin")]
        agent.node.stream_lost()


async def test_metrics_say_that_the_agent_is_alone() -> None:
    agent = live(pod(), credentials())
    assert agent.registry.get_sample_value("kiam_agent_alone_seconds") == 0
    assert agent.registry.get_sample_value("kiam_agent_known_pods") == 1
    agent.clock.at += 1
    agent.node.stream_lost()
    agent.clock.at += 1
    await agent.ask()
    assert (agent.registry.get_sample_value("kiam_agent_alone_seconds") or 0) > 0
    assert agent.registry.get_sample_value("kiam_agent_outage_answers_total") == 1


# ---- the kernel's word on who asks


async def test_scheduled_pod_is_answered_before_its_address_is_reported() -> None:
    agent = live(pod(addresses=()), credentials(), pod_uid=PodUidMode.CHECK)
    assert b"ASIA1" in await agent.ask(uid="u1")
    assert agent.server.asked == []
    with pytest.raises(Forbidden):
        await agent.ask(role="other", uid="u1")


async def test_pod_known_by_uid_that_waits_for_sts_is_answered_when_its_credentials_come() -> None:
    agent = live(pod(addresses=()), pod_uid=PodUidMode.CHECK)
    agent.server.answers.clear()
    asking = asyncio.create_task(agent.ask(uid="u1"))
    assert await waits(asking)
    agent.push(credentials())
    assert b"ASIA1" in await asking


async def test_pod_that_uses_another_ones_address_is_refused_counted_and_called_an_attack(
    caplog: pytest.LogCaptureFixture,
) -> None:
    agent = live(pod(), pod("u2", (B,), role="thief"), credentials(), pod_uid=PodUidMode.CHECK)
    for _ in range(3):
        for role in ("app", "thief"):
            with pytest.raises(Impostor):
                await agent.ask(A, role, uid="u2")
    assert agent.node.known_pod(A, "u2") is None
    await asyncio.sleep(0)
    # The pod that has the address is not to be blamed in an Event.
    assert agent.server.asked == []
    assert agent.registry.get_sample_value("kiam_agent_impostors_total") == 6
    (line,) = (record for record in caplog.records if "attack" in record.message)
    assert "u2" in line.message
    assert b"ASIA1" in await agent.ask(A, uid="u1")


async def test_address_that_is_changing_hands_is_no_attack() -> None:
    agent = live(pod(), pod("u2", (), role="new"), credentials(), pod_uid=PodUidMode.CHECK)
    agent.kernel.unplug(A)
    agent.kernel.plug(A)
    asking = asyncio.create_task(agent.ask(A, "new", uid="u2"))
    assert await waits(asking)
    agent.push(withdrawn("u1"), credentials("new", key="ASIA2"))
    assert b"ASIA2" in await asking


async def test_the_kernels_word_answers_a_pod_whose_sandbox_was_made_anew() -> None:
    agent = live(pod(), credentials(), pod_uid=PodUidMode.CHECK)
    agent.kernel.unplug(A)
    agent.kernel.plug(A)
    assert b"ASIA1" in await agent.ask(uid="u1")
    agent.node.stream_lost()
    assert b"ASIA1" in await agent.ask(uid="u1")


async def test_host_network_pods_are_told_apart_by_uid() -> None:
    update = pod("host-1", (), role="app")
    update.pod.host_network = True
    agent = live(update, credentials(), pod_uid=PodUidMode.CHECK)
    node_address = "10.0.0.100"
    assert b"ASIA1" in await agent.ask(node_address, uid="host-1")
    agent.server.failure = NotYetKnown("no")
    for uid in (None, "host-2"):
        with pytest.raises(NotYetKnown):
            await agent.ask(node_address, uid=uid)


@pytest.mark.parametrize("mode", [PodUidMode.CHECK, PodUidMode.REQUIRE])
async def test_host_network_pod_is_not_whom_a_conventional_server_finds_at_the_nodes_address(mode: PodUidMode) -> None:
    agent = Agent(pod_uid=mode)
    agent.kernel.own.add(A)
    with pytest.raises(NotYetKnown):
        await agent.ask(A, uid="host-2", seconds=0.01)
    # Its no is told all the same, and nothing changes for other pods.
    agent.server.refusal = Forbidden("no")
    with pytest.raises(Forbidden):
        await agent.ask(A, uid="host-2")
    agent.server.refusal = None
    assert await agent.ask(B, uid="u1") == b"{from-server}\n"


@pytest.mark.parametrize(("mode", "answered"), [(PodUidMode.CHECK, True), (PodUidMode.REQUIRE, False)])
async def test_who_has_no_socket_is_known_by_its_address_unless_more_is_required(
    mode: PodUidMode, answered: bool
) -> None:
    agent = live(pod(), credentials(), pod_uid=mode)
    assert (agent.node.credentials_now(A, "app", None) is not None) is answered
    if not answered:
        with pytest.raises(NotYetKnown, match="certain"):
            await agent.ask(seconds=0.01)
        assert agent.server.asked == []


@pytest.mark.parametrize(("mode", "answered"), [(PodUidMode.CHECK, True), (PodUidMode.REQUIRE, False)])
async def test_where_nothing_is_pushed_more_may_be_required_all_the_same(mode: PodUidMode, answered: bool) -> None:
    agent = Agent(pod_uid=mode)
    assert agent.core.stream is Stream.NONE
    assert await agent.ask(uid="u1") == b"{from-server}\n"
    if answered:
        assert await agent.ask() == b"{from-server}\n"
    else:
        with pytest.raises(NotYetKnown, match="certain"):
            await agent.ask(seconds=0.01)
        assert agent.server.asked == [(A, "app")]


async def test_pod_with_a_reported_address_is_not_answered_at_another() -> None:
    agent = live(pod(addresses=(A,)), credentials(), pod_uid=PodUidMode.CHECK)
    assert agent.node.credentials_now(B, "app", "u1") is None
    assert not agent.core.should_ask(B, "u1")
    # The other family's address may be reported later.
    assert agent.node.credentials_now("fd00::1", "app", "u1") is not None
