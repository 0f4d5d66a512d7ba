"""The server as a conventional agent sees it: unary calls, and errors by their text."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.node.conftest import PodMaker
from tests.sandbox.conventional import ConventionalAgent
from tests.sandbox.node import SERVER_PORT, NodeInABox
from tests.sandbox.process import wait_until

DOCUMENT = {"code", "type", "access_key_id", "secret_access_key", "token", "expiration", "last_updated"}


@pytest.fixture
def agent(box: NodeInABox) -> Iterator[ConventionalAgent]:
    with ConventionalAgent(box.node, box.pki.agent, f"localhost:{SERVER_PORT}") as agent:
        yield agent


def test_health_is_ok(agent: ConventionalAgent) -> None:
    reply = agent.call("GetHealth")
    assert (reply.code, reply.response) == ("OK", {"message": "ok"})


def test_a_pods_role_and_credentials(agent: ConventionalAgent, make_pod: PodMaker) -> None:
    pod = make_pod("/team/app")
    assert agent.call("GetPodRole", ip=pod.address).response == {"name": "/team/app"}
    reply = agent.call("GetPodCredentials", ip=pod.address, role="/team/app")
    assert set(reply.response) == DOCUMENT
    assert (reply.response["code"], reply.response["type"]) == ("Success", "AWS-HMAC")


def test_a_pod_without_the_annotation_has_the_empty_role(agent: ConventionalAgent, make_pod: PodMaker) -> None:
    reply = agent.call("GetPodRole", ip=make_pod().address)
    assert (reply.code, reply.response) == ("OK", {})


def test_an_unknown_address_is_waited_for_until_the_deadline(agent: ConventionalAgent) -> None:
    for method, text in (("GetPodRole", "pod not found"), ("GetPodCredentials", "no pod found")):
        reply = agent.call(method, deadline=0.5, ip="10.42.255.1", **({"role": "x"} if "Cred" in method else {}))
        assert (reply.code, reply.details) in (("NOT_FOUND", text), ("DEADLINE_EXCEEDED", "Deadline Exceeded"))


def test_another_role_is_forbidden_by_policy(agent: ConventionalAgent, make_pod: PodMaker) -> None:
    reply = agent.call("GetPodCredentials", ip=make_pod("app").address, role="other")
    assert (reply.code, reply.details) == ("PERMISSION_DENIED", "forbidden by policy")


def test_no_role_cannot_be_asked_for(agent: ConventionalAgent, make_pod: PodMaker) -> None:
    reply = agent.call("GetPodCredentials", ip=make_pod("app").address, role="")
    assert (reply.code, reply.details) == ("INVALID_ARGUMENT", "role can't be empty")


def test_two_active_pods_with_one_address_are_refused(
    box: NodeInABox, agent: ConventionalAgent, make_pod: PodMaker
) -> None:
    pod, twin = make_pod("app"), make_pod(known=False)
    assert agent.call("GetPodRole", ip=pod.address).code == "OK"
    box.announce(twin, "app", address=pod.address)

    def refused() -> bool:
        replies = [agent.call("GetPodRole", 0.3, ip=pod.address)]
        replies.append(agent.call("GetPodCredentials", 0.3, ip=pod.address, role="app"))
        return {(reply.code, reply.details) for reply in replies} == {
            ("FAILED_PRECONDITION", "multiple running pods found")
        }

    assert wait_until(refused, "both calls to be refused")
