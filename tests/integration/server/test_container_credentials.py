"""GetContainerCredentials: a service account token is worth its own pod's role, at its own pod's address."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable
from typing import Any

import grpc
import pytest
from grpc import aio

from kiam.rpc import kiam_pb2
from kiam.server.kubernetes.tokens import AUDIENCE
from tests.integration.server.conftest import Client, Sandbox
from tests.sandbox.kubeapi import Json, KubeApi, namespace, pod
from tests.sandbox.process import until

Code = grpc.StatusCode


@pytest.fixture(autouse=True)
def cluster(kube: KubeApi) -> None:
    account = {
        "kind": "ServiceAccount",
        "metadata": {
            "name": "default",
            "namespace": "default",
            "annotations": {"iam.amazonaws.com/role": "from-account"},
        },
    }
    kube.load([namespace("default", ".*"), pod("a", "10.0.0.1", "role-a"), pod("b", "10.0.0.2", "role-b"), account])


@pytest.fixture
async def client(sandbox: Sandbox) -> Client:
    return await sandbox.connect(await sandbox.start(container_credentials=True))


def of(kube: KubeApi, name: str) -> Json:
    return kube.get("pods", name, "default")


async def ask(client: Client, token: str, ip: str, uid: str = "", seconds: float | None = 5) -> Any:
    request = kiam_pb2.GetContainerCredentialsRequest(token=token, ip=ip, pod_uid=uid)
    return await client.stub.GetContainerCredentials(request, timeout=seconds, wait_for_ready=True)


async def refusal(call: Awaitable[Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(aio.AioRpcError) as error:
        await call
    return error.value.code(), error.value.details() or ""


async def test_a_pods_token_gets_its_own_role(client: Client, kube: KubeApi) -> None:
    answer = await ask(client, kube.issue_token(of(kube, "a"), AUDIENCE), "10.0.0.1")
    assert answer.credentials.code == "Success"
    assert answer.credentials.access_key_id == (await client.credentials("10.0.0.1", "role-a")).access_key_id
    assert answer.account_id == "123456789012"


async def test_without_the_pods_annotation_the_service_accounts_counts(client: Client, kube: KubeApi) -> None:
    kube.apply(pod("plain", "10.0.0.3"))
    own = await ask(client, kube.issue_token(of(kube, "plain"), AUDIENCE), "10.0.0.3")
    other = await ask(client, kube.issue_token(of(kube, "a"), AUDIENCE), "10.0.0.1")
    assert own.credentials.access_key_id != other.credentials.access_key_id


async def test_the_namespaces_policy_holds_for_a_service_accounts_role_too(client: Client, kube: KubeApi) -> None:
    kube.load([namespace("default", ".*/role-a"), pod("plain", "10.0.0.3")])
    token = kube.issue_token(of(kube, "plain"), AUDIENCE)
    await until(lambda: kube.watches() == 2)
    assert await refusal(ask(client, token, "10.0.0.3")) == (Code.PERMISSION_DENIED, "forbidden by policy")


async def test_a_token_is_worth_nothing_at_another_pods_address(client: Client, kube: KubeApi) -> None:
    token = kube.issue_token(of(kube, "a"), AUDIENCE)
    assert await refusal(ask(client, token, "10.0.0.2")) == (
        Code.UNAUTHENTICATED,
        "the token's pod has another address",
    )


async def test_a_token_is_worth_nothing_where_the_kernel_sees_another_pod(client: Client, kube: KubeApi) -> None:
    token = kube.issue_token(of(kube, "a"), AUDIENCE)
    uid = of(kube, "b")["metadata"]["uid"]
    assert await refusal(ask(client, token, "10.0.0.1", uid)) == (Code.UNAUTHENTICATED, "the token is another pod's")


async def test_tokens_that_prove_nothing_are_refused_before_the_api_is_asked(client: Client, kube: KubeApi) -> None:
    await client.role("10.0.0.1")
    for token, why in (
        ("", "the token is no projected service account token"),
        ("a.b.c", "the token is no projected service account token"),
        ("x" * 20_000, "the token is no projected service account token"),
        (kube.issue_token(of(kube, "a"), "sts.amazonaws.com"), f"the token is not for the audience {AUDIENCE}"),
        (kube.issue_token(of(kube, "a"), AUDIENCE, -1), "the token has expired"),
    ):
        assert await refusal(ask(client, token, "10.0.0.1")) == (Code.UNAUTHENTICATED, why)
    assert kube.requests["create tokenreviews"] == 0


async def test_a_token_whose_claims_nest_without_end_is_no_bug_of_the_servers(client: Client, kube: KubeApi) -> None:
    claims = f'{{"aud":"{AUDIENCE}","x":{"[" * 5000}{"]" * 5000}}}'.encode()
    token = f"a.{base64.urlsafe_b64encode(claims).decode()}.c"
    assert await refusal(ask(client, token, "10.0.0.1")) == (
        Code.UNAUTHENTICATED,
        "the token is no projected service account token",
    )


async def test_a_forged_signature_is_refused(client: Client, kube: KubeApi) -> None:
    head = kube.issue_token(of(kube, "a"), AUDIENCE).rpartition(".")[0]
    assert await refusal(ask(client, f"{head}.00", "10.0.0.1")) == (
        Code.UNAUTHENTICATED,
        "the Kubernetes API doesn't accept the token",
    )


async def test_a_replayed_token_of_a_deleted_pod_is_refused_although_its_review_is_remembered(
    client: Client, kube: KubeApi
) -> None:
    token = kube.issue_token(of(kube, "a"), AUDIENCE)
    await ask(client, token, "10.0.0.1")
    kube.delete("pods", "a", "default")
    kube.apply(pod("heir", "10.0.0.1", "role-b"))
    await until(lambda: kube.requests["create tokenreviews"] == 1)

    async def refused() -> bool:
        try:
            await ask(client, token, "10.0.0.1", seconds=None)
        except aio.AioRpcError as error:
            return error.code() in (Code.NOT_FOUND, Code.UNAUTHENTICATED)
        return False

    await until(refused)


async def test_concurrent_and_repeated_questions_share_one_review(client: Client, kube: KubeApi) -> None:
    token = kube.issue_token(of(kube, "a"), AUDIENCE)
    await asyncio.gather(*(ask(client, token, "10.0.0.1") for _ in range(20)))
    await ask(client, token, "10.0.0.1")
    assert kube.requests["create tokenreviews"] == 1


async def test_a_pod_whose_address_is_not_known_yet_is_held_until_it_is(client: Client, kube: KubeApi) -> None:
    kube.apply(pod("new", None, "role-a"))
    token = kube.issue_token(of(kube, "new"), AUDIENCE)
    call = asyncio.create_task(ask(client, token, "10.0.0.9", seconds=20))
    await until(lambda: kube.requests["create tokenreviews"] == 1)
    kube.apply(pod("new", "10.0.0.9", "role-a", uid=of(kube, "new")["metadata"]["uid"]))
    assert (await call).credentials.code == "Success"


async def test_with_the_kernels_word_no_address_is_needed(client: Client, kube: KubeApi) -> None:
    kube.apply(pod("new", None, "role-a"))
    new = of(kube, "new")
    answer = await ask(client, kube.issue_token(new, AUDIENCE), "10.0.0.9", new["metadata"]["uid"])
    assert answer.credentials.code == "Success"


async def test_an_api_that_fails_is_try_again_and_no_credentials(client: Client, kube: KubeApi) -> None:
    token = kube.issue_token(of(kube, "a"), AUDIENCE)
    await client.role("10.0.0.1")
    kube.faults.fail = 1
    assert (await refusal(ask(client, token, "10.0.0.1")))[0] is Code.UNAVAILABLE
    assert (await ask(client, token, "10.0.0.1")).credentials.code == "Success"


async def test_off_by_default(sandbox: Sandbox, kube: KubeApi) -> None:
    client = await sandbox.connect(await sandbox.start())
    assert (await refusal(ask(client, "", "10.0.0.1")))[0] is Code.UNIMPLEMENTED
