"""Roles and permissions that a namespace gives its pods, in kiam's and in kube2iam's annotations."""

from __future__ import annotations

import json

import grpc
import pytest

from kiam.server.settings import PolicySettings, RestrictionFormat
from tests.integration.server.conftest import Sandbox
from tests.integration.server.test_unary import refusal
from tests.sandbox.aws import ROLE_BASE_ARN
from tests.sandbox.kubeapi import KubeApi, namespace, pod

FORBIDDEN = (grpc.StatusCode.PERMISSION_DENIED, "forbidden by policy")
DEFAULT = {"iam.amazonaws.com/default-role": "common\n"}


def allowed_roles(*roles: str) -> dict[str, str]:
    return {"iam.amazonaws.com/allowed-roles": json.dumps(roles)}


async def test_pod_without_annotation_has_its_namespaces_default_role(sandbox: Sandbox, kube: KubeApi) -> None:
    kube.load([namespace("default", ".*/common", DEFAULT), pod("a", "10.0.0.1", node="n1")])
    client = await sandbox.connect(await sandbox.start())
    assert await client.role("10.0.0.1") == "common"
    assert (await client.credentials("10.0.0.1", "common")).code == "Success"
    assert await refusal(client.credentials("10.0.0.1", "other")) == FORBIDDEN
    watch = client.watch(node_name="n1")
    await watch.until(lambda: "common" in watch.credentials)
    assert watch.pods["a"].role == "common"


async def test_default_role_is_under_the_same_policy_and_the_pods_own_annotation_goes_first(
    sandbox: Sandbox, kube: KubeApi
) -> None:
    kube.load(
        [
            namespace("default", ".*/own", DEFAULT),
            pod("a", "10.0.0.1", node="n1"),
            pod("b", "10.0.0.2", "own", node="n1"),
        ]
    )
    client = await sandbox.connect(await sandbox.start())
    assert await refusal(client.credentials("10.0.0.1", "common")) == FORBIDDEN
    assert await client.role("10.0.0.2") == "own"
    assert await refusal(client.credentials("10.0.0.2", "common")) == FORBIDDEN


async def test_default_role_comes_changes_and_goes_with_the_namespaces_annotation(
    sandbox: Sandbox, kube: KubeApi
) -> None:
    kube.load([namespace("default", ".*"), pod("a", "10.0.0.1", node="n1")])
    watch = (await sandbox.connect(await sandbox.start())).watch(node_name="n1")
    await watch.until(lambda: "a" in watch.pods)
    assert watch.pods["a"].role == ""
    kube.apply(namespace("default", ".*", DEFAULT))
    await watch.until(lambda: watch.pods["a"].role == "common" and "common" in watch.credentials)
    kube.apply(namespace("default", ".*", {"iam.amazonaws.com/default-role": "other"}))
    await watch.until(lambda: watch.pods["a"].role == "other")
    kube.apply(namespace("default", ".*"))
    await watch.until(lambda: watch.pods["a"].role == "")


async def test_unannotated_pod_waits_for_a_namespace_that_may_have_a_default_role(
    sandbox: Sandbox, kube: KubeApi
) -> None:
    kube.load([pod("a", "10.0.0.1", namespace="late", node="n1")])
    client = await sandbox.connect(await sandbox.start())
    assert (await refusal(client.role("10.0.0.1", None)))[0] is grpc.StatusCode.UNAVAILABLE
    kube.apply(namespace("late", ".*", DEFAULT))
    assert await client.role("10.0.0.1", 20) == "common"


@pytest.mark.parametrize(
    ("permitted", "default", "allowed"),
    [
        (None, "", False),
        (None, ".*/app", True),
        (None, ".*/other", False),
        ("", ".*/app", False),
        (" \n", ".*/app", False),
        (".*/other", ".*/app", False),
        (".*/app", "", True),
    ],
)
async def test_default_permission_is_for_namespaces_without_an_annotation_only(
    sandbox: Sandbox, kube: KubeApi, permitted: str | None, default: str, allowed: bool
) -> None:
    kube.load([namespace("default", permitted), pod("a", "10.0.0.1", "app")])
    client = await sandbox.connect(await sandbox.start(policy=PolicySettings(default_permitted=default)))
    if allowed:
        assert (await client.credentials("10.0.0.1", "app")).code == "Success"
    else:
        assert await refusal(client.credentials("10.0.0.1", "app")) == FORBIDDEN


@pytest.mark.parametrize(
    ("roles", "allowed"),
    [
        (["app"], True),
        (["/app"], True),
        (["a*"], True),
        (["*"], True),
        ([f"{ROLE_BASE_ARN}a*p"], True),
        (["arn:aws:iam::*:role/app"], True),
        (["other", "app"], True),
        (["ap"], False),
        (["a.p", "ap?", "[a]pp", "(app)"], False),
        (["team/*"], False),
        ([], False),
    ],
)
async def test_allowed_roles_of_kube2iam_are_globs(
    sandbox: Sandbox, kube: KubeApi, roles: list[str], allowed: bool
) -> None:
    kube.load([namespace("default", None, allowed_roles(*roles)), pod("a", "10.0.0.1", "app")])
    settings = PolicySettings(default_permitted="", kube2iam_annotations=True)
    client = await sandbox.connect(await sandbox.start(policy=settings))
    if allowed:
        assert (await client.credentials("10.0.0.1", "app")).code == "Success"
    else:
        assert await refusal(client.credentials("10.0.0.1", "app")) == FORBIDDEN


@pytest.mark.parametrize(
    ("roles", "allowed"),
    [(["a.p"], True), (["other|a+p{2}"], True), (["ap"], False), (["*"], False), (["x)|(?:.*"], False)],
)
async def test_allowed_roles_of_kube2iam_are_expressions_if_a_flag_says_so(
    sandbox: Sandbox, kube: KubeApi, roles: list[str], allowed: bool
) -> None:
    kube.load([namespace("default", None, allowed_roles(*roles)), pod("a", "10.0.0.1", "app")])
    settings = PolicySettings(kube2iam_annotations=True, restriction_format=RestrictionFormat.REGEXP)
    client = await sandbox.connect(await sandbox.start(policy=settings))
    if allowed:
        assert (await client.credentials("10.0.0.1", "app")).code == "Success"
    else:
        assert await refusal(client.credentials("10.0.0.1", "app")) == FORBIDDEN


async def test_allowed_roles_mean_nothing_unless_they_are_switched_on(sandbox: Sandbox, kube: KubeApi) -> None:
    kube.load([namespace("default", None, allowed_roles("*")), pod("a", "10.0.0.1", "app")])
    client = await sandbox.connect(await sandbox.start())
    assert await refusal(client.credentials("10.0.0.1", "app")) == FORBIDDEN


async def test_allowed_roles_restrict_where_there_is_a_default_permission(sandbox: Sandbox, kube: KubeApi) -> None:
    kube.load([namespace("default", None, allowed_roles("other")), pod("a", "10.0.0.1", "app")])
    settings = PolicySettings(default_permitted=".*", kube2iam_annotations=True)
    client = await sandbox.connect(await sandbox.start(policy=settings))
    assert await refusal(client.credentials("10.0.0.1", "app")) == FORBIDDEN


async def test_allowed_roles_that_are_no_json_list_permit_nothing_and_have_an_event(
    sandbox: Sandbox, kube: KubeApi
) -> None:
    kube.load([namespace("default", None, {"iam.amazonaws.com/allowed-roles": "app"}), pod("a", "10.0.0.1", "app")])
    client = await sandbox.connect(await sandbox.start(policy=PolicySettings(kube2iam_annotations=True)))
    assert await refusal(client.credentials("10.0.0.1", "app")) == FORBIDDEN
    messages = [event["message"] for event in kube.events()]
    assert any("allowed-roles 'app' is invalid: it is not a JSON list of roles" in message for message in messages)
