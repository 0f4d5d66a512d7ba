"""When memory may answer, when the server is asked, and who waits."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from prometheus_client import CollectorRegistry

from kiam.agent.core.answers import Link, NodeIdentities
from kiam.agent.core.failures import Forbidden, NotYetKnown
from kiam.agent.core.identities import KnownPod
from kiam.agent.core.pods import NodeState
from kiam.agent.metrics import AgentMetrics
from kiam.rpc import kiam_pb2
from tests.unit.agent.test_node_state import BASE, A, B, credentials, pod, withdrawn

HELLO = kiam_pb2.NodeUpdate(hello=kiam_pb2.Hello(node_name="node-1", role_base_arn=BASE))
COMPLETE = kiam_pb2.NodeUpdate(snapshot_complete=kiam_pb2.SnapshotComplete())


class Ways:
    """Says which addresses are bound, in the kernel's place."""

    def __init__(self) -> None:
        self.bound: set[str] = set()
        self.exist = True
        self.caught_up = 0

    def want(self, address: str) -> None:
        if self.exist:
            self.bound.add(address)

    def forget(self, address: str) -> None:
        self.bound.discard(address)

    def catch_up(self) -> None:
        self.caught_up += 1

    def is_bound(self, address: str) -> bool:
        return address in self.bound


class Server:
    """Answers unary calls, and counts them."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def known_pod(self, address: str) -> KnownPod | None:
        return None

    def role_now(self, address: str) -> bytes | None:
        return None

    def credentials_now(self, address: str, role: str) -> bytes | None:
        return None

    async def role(self, address: str, deadline: float) -> bytes:
        self.asked.append((address, ""))
        return b"from-server"

    async def credentials(self, address: str, role: str, deadline: float) -> bytes:
        self.asked.append((address, role))
        return b"{from-server}\n"

    async def server_health(self, deadline: float) -> str:
        return "ok"

    def alone_since(self) -> float | None:
        return None


class Agent:
    def __init__(self, grace: timedelta = timedelta(minutes=15)) -> None:
        self.ways, self.server, self.registry = Ways(), Server(), CollectorRegistry()
        self.state = NodeState()
        self.node = NodeIdentities(self.state, self.server, self.ways, grace, AgentMetrics(self.registry))

    def push(self, *updates: kiam_pb2.NodeUpdate) -> Agent:
        for update in updates:
            self.node.apply(update)
        return self

    async def ask(self, address: str = A, role: str = "app", seconds: float = 5.0) -> bytes:
        deadline = asyncio.get_running_loop().time() + seconds
        answer = self.node.credentials_now(address, role)
        return answer if answer is not None else await self.node.credentials(address, role, deadline)


async def test_before_the_snapshot_is_complete_the_server_is_asked() -> None:
    agent = Agent().push(pod(), credentials())
    assert await agent.ask() == b"{from-server}\n"


async def test_live_stream_answers_without_a_call() -> None:
    agent = Agent().push(pod(), credentials(), COMPLETE)
    assert b"ASIA1" in await agent.ask()
    assert agent.server.asked == []
    assert agent.ways.caught_up


async def test_who_is_not_pushed_yet_is_answered_when_it_is() -> None:
    agent = Agent().push(COMPLETE)
    asking = asyncio.create_task(agent.ask())
    await asyncio.sleep(0)
    agent.push(pod())
    await asyncio.sleep(0)
    assert not asking.done()
    agent.push(credentials())
    assert b"ASIA1" in await asking
    assert agent.server.asked == []


async def test_who_is_never_pushed_hears_so_at_the_deadline() -> None:
    agent = Agent().push(COMPLETE)
    with pytest.raises(NotYetKnown):
        await agent.ask(seconds=0.01)


async def test_addresses_that_nobody_waits_at_any_more_are_forgotten() -> None:
    agent = Agent()
    await agent.ask("10.9.9.1")
    agent.push(COMPLETE)
    with pytest.raises(NotYetKnown):
        await agent.ask("10.9.9.2", seconds=0.01)
    hung_up = asyncio.create_task(agent.ask("10.9.9.3"))
    await asyncio.sleep(0)
    hung_up.cancel()
    await asyncio.wait({hung_up})
    assert not agent.state._waiting


async def test_one_who_gives_up_does_not_stop_another_from_waiting() -> None:
    agent = Agent().push(COMPLETE)
    asking = asyncio.create_task(agent.ask())
    with pytest.raises(NotYetKnown):
        await agent.ask(seconds=0.01)
    assert not asking.done()
    agent.push(pod(), credentials())
    assert b"ASIA1" in await asking


async def test_address_of_two_pods_waits_until_it_is_one_pods() -> None:
    agent = Agent().push(pod("u1"), pod("u2"), credentials(), COMPLETE)
    asking = asyncio.create_task(agent.ask())
    await asyncio.sleep(0)
    assert not asking.done()
    agent.push(withdrawn("u2"))
    assert b"ASIA1" in await asking


async def test_alone_answers_bound_pods_only() -> None:
    agent = Agent().push(pod("u1", (A,)), pod("u2", (B,)), credentials(), COMPLETE)
    agent.node.lost()
    agent.ways.bound.discard(B)
    assert b"ASIA1" in await agent.ask(A)
    assert await agent.ask(B) == b"{from-server}\n"
    assert agent.node.alone_since() is not None
    with pytest.raises(Forbidden):
        await agent.ask(A, "other")


async def test_grace_of_zero_remembers_nobody() -> None:
    agent = Agent(timedelta(0)).push(pod(), credentials(), COMPLETE)
    agent.node.lost()
    assert await agent.ask() == b"{from-server}\n"


async def test_expired_credentials_are_not_given_when_alone() -> None:
    agent = Agent().push(pod(), credentials(minutes=-1), COMPLETE)
    agent.node.lost()
    assert await agent.ask() == b"{from-server}\n"


async def test_waiting_request_goes_to_the_server_when_the_stream_breaks() -> None:
    agent = Agent().push(COMPLETE)
    asking = asyncio.create_task(agent.ask())
    await asyncio.sleep(0)
    agent.node.lost()
    assert await asking == b"{from-server}\n"


async def test_changed_way_waits_for_the_servers_word() -> None:
    agent = Agent().push(pod(), credentials(), COMPLETE)
    agent.ways.bound.discard(A)
    agent.node.way_changed(A)
    assert agent.node.suspected.is_set()
    assert not agent.node.may_bind(A)
    asking = asyncio.create_task(agent.ask())
    await asyncio.sleep(0)
    assert not asking.done()
    agent.push(COMPLETE)
    assert b"ASIA1" in await asking
    assert A in agent.ways.bound


async def test_changed_way_and_then_another_pod() -> None:
    agent = Agent().push(pod(), credentials(), COMPLETE)
    agent.node.way_changed(A)
    asking = asyncio.create_task(agent.ask())
    await asyncio.sleep(0)
    agent.push(withdrawn(), pod("u2", (A,), role="other"))
    with pytest.raises(Forbidden):
        await asking


async def test_picture_asked_for_because_of_another_address_confirms_nobody_early() -> None:
    agent = Agent().push(HELLO, pod("u1", (A,)), pod("u2", (B,)), credentials(), COMPLETE)
    agent.node.way_changed(A)
    agent.node.confirm_after = 0.0
    agent.push(HELLO)
    agent.node.way_changed(B)
    agent.node.suspected.clear()
    agent.push(COMPLETE)
    assert agent.node.credentials_now(A, "app") is not None
    assert agent.node.credentials_now(B, "app") is None
    # So that the server is asked again, in time.
    assert agent.node.suspected.is_set()
    agent.push(HELLO, COMPLETE)
    assert agent.node.credentials_now(B, "app") is not None


async def test_interface_that_comes_back_after_the_servers_word_needs_it_again() -> None:
    """A is being deleted: its sandbox is gone, the API still names it, and the address goes to another pod."""
    agent = Agent().push(pod(), credentials(), COMPLETE)
    agent.ways.exist = False
    agent.ways.bound.discard(A)
    agent.node.way_changed(A)
    agent.push(COMPLETE)
    agent.node.suspected.clear()
    assert not agent.node.may_bind(A)
    assert agent.node.credentials_now(A, "app") is None
    assert agent.node.suspected.is_set()
    agent.ways.exist = True
    agent.push(COMPLETE)
    assert agent.node.credentials_now(A, "app") is not None
    assert agent.node.may_bind(A)


async def test_way_that_changed_while_alone_stays_unknown_until_the_snapshot_is_complete() -> None:
    agent = Agent().push(pod(), credentials(), COMPLETE)
    agent.node.lost()
    agent.ways.bound.discard(A)
    agent.node.way_changed(A)
    assert not agent.node.may_bind(A)
    assert agent.node.credentials_now(A, "app") is None
    agent.push(COMPLETE)
    assert agent.node.credentials_now(A, "app") is not None
    assert agent.node.alone_since() is None


async def test_conventional_server_makes_the_agent_forget() -> None:
    agent = Agent().push(pod(), credentials(), COMPLETE)
    agent.node.no_stream()
    assert agent.node.link is Link.NONE
    assert agent.ways.bound == set()
    assert await agent.ask() == b"{from-server}\n"


async def test_refusal_is_told_to_the_server_but_not_over_and_over() -> None:
    agent = Agent().push(pod(), credentials(), COMPLETE)
    for _ in range(5):
        with pytest.raises(Forbidden):
            agent.node.credentials_now(A, "other")
    await asyncio.sleep(0)
    assert agent.server.asked == [(A, "other")]


async def test_metrics_say_that_the_agent_is_alone() -> None:
    agent = Agent().push(pod(), credentials(), COMPLETE)
    assert agent.registry.get_sample_value("kiam_agent_alone_seconds") == 0
    assert agent.registry.get_sample_value("kiam_agent_known_pods") == 1
    agent.node.lost()
    await agent.ask()
    assert (agent.registry.get_sample_value("kiam_agent_alone_seconds") or 0) > 0
    assert agent.registry.get_sample_value("kiam_agent_outage_answers_total") == 1
