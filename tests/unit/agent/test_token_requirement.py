"""A pod that is annotated to need session tokens needs them however it is known, and whenever it becomes known."""

from __future__ import annotations

import asyncio
from unittest.mock import Mock

import pytest
from prometheus_client import CollectorRegistry

from kiam.agent.core.askers import PodUidMode
from kiam.agent.http.handlers import Handlers
from kiam.agent.http.messages import Request, recognise
from kiam.agent.http.token_desk import TokenDesk
from kiam.agent.http.tokens import SessionTokens
from kiam.agent.metrics import AgentMetrics
from kiam.agent.settings import Limits, TokenMode
from kiam.rpc import kiam_pb2
from tests.unit.agent.test_answers import Agent, live, waits
from tests.unit.agent.test_pods import A, credentials, pod

NODE = "10.0.0.100"
PATH = "/latest/meta-data/iam/security-credentials/"
TTL = (("x-aws-ec2-metadata-token-ttl-seconds", "60"),)


def handlers(agent: Agent) -> Handlers:
    metrics = AgentMetrics(CollectorRegistry())
    desk = TokenDesk(agent.node, SessionTokens(lambda: b"key", NODE), TokenMode.OPTIONAL, lambda _: True, metrics)
    return Handlers(agent.node, desk, Mock(), Mock(), metrics, Limits(), allow_ip_query=False)


def strict(uid: str, addresses: tuple[str, ...], *, host_network: bool = False) -> kiam_pb2.NodeUpdate:
    update = pod(uid, addresses)
    update.pod.imds_tokens, update.pod.host_network = "required", host_network
    return update


def get(role: str, address: str, uid: str | None, token: str | None = None) -> Request:
    fields = () if token is None else (("x-aws-ec2-metadata-token", token),)
    return Request("GET", PATH + role, fields, address, None, uid=uid)


async def token_of(made: Handlers, address: str, uid: str | None) -> str:
    answer = await made.respond(Request("PUT", "/latest/api/token", TTL, address, None, uid=uid))
    assert answer.status == 200
    return answer.body.decode()


@pytest.mark.parametrize(
    ("mode", "address", "host_network"),
    [(PodUidMode.REQUIRE, A, False), (PodUidMode.CHECK, A, False), (PodUidMode.CHECK, NODE, True)],
)
async def test_the_annotation_holds_for_a_pod_that_is_known_by_its_uid(
    mode: PodUidMode, address: str, host_network: bool
) -> None:
    addresses = () if host_network else (A,)
    made = handlers(live(strict("u1", addresses, host_network=host_network), credentials(), pod_uid=mode))
    plain = recognise(f"GET {PATH}app HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert plain is not None
    assert made.at_once(address, plain, "u1") is None
    assert (await made.respond(get("app", address, "u1"))).status == 401
    assert (await made.respond(get("app", address, "u1", await token_of(made, address, "u1")))).status == 200


async def test_a_token_of_a_pod_on_the_host_network_is_not_good_for_another_one_there() -> None:
    updates = [strict(uid, (), host_network=True) for uid in ("u1", "u2")]
    made = handlers(live(*updates, credentials(), pod_uid=PodUidMode.CHECK))
    token = await token_of(made, NODE, "u1")
    assert (await made.respond(get("app", NODE, "u2", token))).status == 401


@pytest.mark.parametrize("role", ["", "app"])
async def test_a_request_that_came_before_its_pod_was_known_is_held_to_its_annotation(role: str) -> None:
    agent = live(credentials())
    agent.server.answers.clear()
    made = handlers(agent)
    asking = asyncio.create_task(made.respond(get(role, A, None)))
    assert await waits(asking)
    agent.push(strict("u1", (A,)), credentials())
    assert (await asking).status == 401
