"""Events about agents' certificates: whose pods get one, and when."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from kiam.rpc import kiam_pb2
from kiam.server.grpc.agent_certificates import MOST, expiring
from kiam.server.kubernetes.store import PodStore
from tests.unit.server.test_events import make

NOW = datetime(2026, 11, 25, tzinfo=UTC)
SECONDS = int(NOW.timestamp())


def agent(name: str, warn_after: int = SECONDS - 1, expires: int = SECONDS + 86400) -> kiam_pb2.AgentPod:
    return kiam_pb2.AgentPod(
        namespace="apps", name=name, certificate_warn_after=warn_after, certificate_expires=expires
    )


@pytest.fixture
def pods() -> PodStore:
    store = PodStore()
    store.put(make("agent-1", "u1"))
    store.put(structs.replace(make("agent-2", "u2"), node="n2"))
    return store


def test_an_agents_pod_is_told_of_once_its_certificate_should_have_been_renewed(pods: PodStore) -> None:
    ((pod, message),) = expiring([("n1", agent("agent-1"))], pods, NOW)
    assert pod.name == "agent-1"
    assert "this agent's TLS certificate" in message
    assert "expires at 2026-11-26 00:00:00Z" in message
    assert list(expiring([("n1", agent("agent-1", warn_after=SECONDS))], pods, NOW)) == []


@pytest.mark.parametrize(
    ("node", "name"), [("n1", "agent-2"), ("n2", "agent-1"), ("", "agent-1"), ("n1", "nobody"), ("n1", "")]
)
def test_an_agent_is_believed_about_a_pod_of_its_own_node_only(pods: PodStore, node: str, name: str) -> None:
    assert list(expiring([(node, agent(name))], pods, NOW)) == []


def test_so_many_get_an_event_at_a_time_and_those_first_that_expire_first(pods: PodStore) -> None:
    for number in range(MOST):
        pods.put(make(f"early-{number}", f"e{number}"))
    early = [("n1", agent(f"early-{number}")) for number in range(MOST)]
    told = [pod.name for pod, _ in expiring([("n1", agent("agent-1", expires=SECONDS + 2**20)), *early], pods, NOW)]
    assert len(told) == MOST
    assert "agent-1" not in told


def test_agents_that_make_up_pods_take_nobodys_place(pods: PodStore) -> None:
    made_up = [("n1", agent("nobody", expires=0))] * (2 * MOST)
    assert [pod.name for pod, _ in expiring([*made_up, ("n1", agent("agent-1"))], pods, NOW)] == ["agent-1"]


@given(st.integers(-(2**63), SECONDS - 1), st.integers(-(2**63), 2**63 - 1))
def test_no_time_that_an_agent_makes_up_ends_the_server(warn_after: int, expires: int) -> None:
    store = PodStore()
    store.put(make("agent-1", "u1"))
    assert len(list(expiring([("n1", agent("agent-1", warn_after, expires))], store, NOW))) == 1
