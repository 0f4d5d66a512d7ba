"""Annotations as people write them, and as nobody should."""

from __future__ import annotations

import asyncio
import logging

import grpc
import pytest

from tests.integration.server.conftest import Sandbox
from tests.integration.server.test_unary import refusal
from tests.sandbox.aws import ROLE_BASE_ARN, AwsProcess
from tests.sandbox.kubeapi import KubeApi, namespace, pod
from tests.sandbox.process import until

UNUSABLE = ["x/../../admin", "x//admin", "x*", "x\0", "x\x1b[2J", "x" * 65, "y" * 200_000]


@pytest.mark.parametrize("around", ["{}\n", " {}", "{} \t"])
async def test_blanks_around_values_are_trimmed(sandbox: Sandbox, kube: KubeApi, aws: AwsProcess, around: str) -> None:
    kube.load(
        [
            namespace("default", around.format(f"{ROLE_BASE_ARN}app")),
            pod(
                "a",
                "10.0.0.1",
                around.format("app"),
                node="n1",
                annotations={
                    "iam.amazonaws.com/session-name": around.format("me"),
                    "iam.amazonaws.com/external-id": around.format("agreed"),
                },
            ),
        ]
    )
    client = await sandbox.connect(await sandbox.start())
    assert await client.role("10.0.0.1") == "app"
    assert (await client.credentials("10.0.0.1", "app")).code == "Success"
    (call,) = aws.calls()
    assert (call.role_arn, call.session_name, call.external_id) == (f"{ROLE_BASE_ARN}app", "kiam-me", "agreed")
    watch = client.watch(node_name="n1")
    await watch.until(lambda: "app" in watch.credentials)
    assert watch.pods["a"].role == "app"


async def test_what_cannot_be_a_role_never_reaches_sts_and_has_an_event(
    sandbox: Sandbox, kube: KubeApi, aws: AwsProcess
) -> None:
    kube.load([namespace("default", ".*"), pod("good", "10.0.0.99", "good")])
    kube.load([pod(f"p{number}", f"10.0.0.{number}", role) for number, role in enumerate(UNUSABLE)])
    client = await sandbox.connect(await sandbox.start())
    # Nobody has asked yet: an agent with a stream answers such a pod itself.
    events = await until(lambda: len(kube.events()) == len(UNUSABLE) and kube.events())
    assert {event["involvedObject"]["name"] for event in events} == {f"p{number}" for number in range(len(UNUSABLE))}
    for event in events:
        assert (event["reason"], event["type"]) == ("KiamRoleForbidden", "Warning")
        assert "can't be an IAM role" in event["message"]
        assert event["message"].isprintable()
    for number, role in enumerate(UNUSABLE[:-1]):
        answer = await refusal(client.credentials(f"10.0.0.{number}", role))
        assert answer == (grpc.StatusCode.PERMISSION_DENIED, "forbidden by policy")
    assert (await client.credentials("10.0.0.99", "good")).code == "Success"
    assert [call.role_arn for call in aws.calls()] == [f"{ROLE_BASE_ARN}good"]


async def test_answer_of_sts_that_cannot_be_parsed_is_one_line_without_what_it_says(
    sandbox: Sandbox, kube: KubeApi, aws: AwsProcess, caplog: pytest.LogCaptureFixture
) -> None:
    aws.faults(sts="garbage")
    kube.load([namespace("default", ".*"), pod("a", "10.0.0.1", "app")])
    client = await sandbox.connect(await sandbox.start())
    code, details = await refusal(client.credentials("10.0.0.1", "app"))
    assert code is grpc.StatusCode.UNAVAILABLE
    assert details == "UnreadableAnswer: STS's answer can't be parsed; is something else at its address?"
    assert [record for record in caplog.records if record.exc_info] == []
    assert "hush" not in caplog.text


async def test_pod_on_a_stream_waits_for_a_namespace_that_is_learned_after_it(sandbox: Sandbox, kube: KubeApi) -> None:
    kube.load([namespace("default", ".*"), pod("plain", "10.0.0.2", "app", node="n1")])
    watch = (await sandbox.connect(await sandbox.start())).watch(node_name="n1")
    await watch.snapshot()
    kube.apply(pod("early", "10.0.0.1", "app", namespace="late", node="n1"))
    kube.apply(pod("other", "10.0.0.3", "app", node="n1"))
    await watch.until(lambda: "other" in watch.pods)
    assert "early" not in watch.pods, "a no would be final"
    kube.apply(namespace("late", ".*"))
    await watch.until(lambda: "early" in watch.pods)
    assert watch.pods["early"].decision.allowed


async def test_refusal_is_logged_in_conventional_fields(
    sandbox: Sandbox, kube: KubeApi, caplog: pytest.LogCaptureFixture
) -> None:
    kube.load([namespace("default", ".*"), pod("a", "10.0.0.1", "app")])
    client = await sandbox.connect(await sandbox.start())
    with caplog.at_level(logging.WARNING):
        await refusal(client.credentials("10.0.0.1", "other"))
    (record,) = [record for record in caplog.records if record.message == "pod denied by policy"]
    fields = vars(record)
    assert (fields["pod.namespace"], fields["pod.name"], fields["pod.iam.role"]) == ("default", "a", "app")
    assert fields["policy.explanation"] == "requested 'other' but annotated with 'app', forbidden"


async def test_patches_of_one_pods_annotation_settle_before_sts_is_asked(
    sandbox: Sandbox, kube: KubeApi, aws: AwsProcess
) -> None:
    kube.load([namespace("default", ".*"), pod("a", "10.0.0.1", "first", node="n1", uid="u")])
    watch = (await sandbox.connect(await sandbox.start())).watch(node_name="n1")
    await watch.until(lambda: "first" in watch.credentials)
    for number in range(600):
        kube.apply(pod("a", "10.0.0.1", f"r{number}", node="n1", uid="u"))
        await asyncio.sleep(0.001)
    await watch.until(lambda: watch.pods["a"].role == "r599")
    assert len(aws.calls()) <= 3


async def test_costly_expression_of_one_namespace_holds_up_nobody_else_and_has_an_event(
    sandbox: Sandbox, kube: KubeApi
) -> None:
    kube.load([namespace("default", ".*"), pod("plain", "10.0.0.2", "app", node="n1")])
    kube.load([namespace("greedy", "[a-z]{0,30}" * 740), pod("mine", "10.0.0.1", "app", namespace="greedy", node="n1")])
    client = await sandbox.connect(await sandbox.start())
    assert (await client.credentials("10.0.0.2", "app")).code == "Success"
    answer = await refusal(client.credentials("10.0.0.1", "app", 20))
    assert answer == (grpc.StatusCode.PERMISSION_DENIED, "forbidden by policy")
    (event,) = await until(lambda: kube.events())
    assert event["involvedObject"]["name"] == "mine"
    assert "is invalid: it takes more than 250 ms to evaluate; it permits no role" in event["message"]
    watch = client.watch(node_name="n1")
    await watch.until(lambda: {"plain", "mine"} <= set(watch.pods))
    assert not watch.pods["mine"].decision.allowed


@pytest.mark.parametrize("own_role", ["kiam-server", "/kiam-server"])
@pytest.mark.parametrize("base_arn", [ROLE_BASE_ARN, ""])
async def test_servers_own_role_may_be_a_name(
    sandbox: Sandbox, kube: KubeApi, aws: AwsProcess, own_role: str, base_arn: str
) -> None:
    kube.load([namespace("default", ".*"), pod("a", "10.0.0.1", "app")])
    client = await sandbox.connect(await sandbox.start(assume_role_arn=own_role, role_base_arn=base_arn))
    assert (await client.credentials("10.0.0.1", "app", 20)).code == "Success"
    assert f"{ROLE_BASE_ARN}kiam-server" in {call.role_arn for call in aws.calls()}
