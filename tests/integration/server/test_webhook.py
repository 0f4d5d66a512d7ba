"""The mutating webhook over HTTPS, asked as the Kubernetes API server asks."""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from tests.integration.server.conftest import Sandbox
from tests.sandbox.kubeapi import KubeApi, namespace

Json = dict[str, Any]


@pytest.fixture(autouse=True)
def cluster(kube: KubeApi) -> None:
    account = {
        "kind": "ServiceAccount",
        "metadata": {"name": "cart", "namespace": "shop", "annotations": {"iam.amazonaws.com/role": "cart"}},
    }
    plain = {"kind": "ServiceAccount", "metadata": {"name": "default", "namespace": "shop"}}
    kube.load([namespace("shop", ".*"), account, plain])


class Asker:
    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session, self._url = session, url

    async def post(self, body: bytes) -> tuple[int, bytes]:
        async with self._session.post(self._url, data=body, headers={"Content-Type": "application/json"}) as answer:
            return answer.status, await answer.read()

    async def review(self, pod: Json) -> Json:
        request = {"uid": "705ab4f5", "namespace": "shop", "operation": "CREATE", "object": pod}
        review = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}
        status, body = await self.post(json.dumps(review).encode())
        assert status == 200
        answer: Json = json.loads(body)
        assert (answer["apiVersion"], answer["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
        assert (answer["response"]["uid"], answer["response"]["allowed"]) == ("705ab4f5", True)
        return dict(answer["response"])


@pytest.fixture
async def asker(sandbox: Sandbox) -> AsyncIterator[Asker]:
    server = await sandbox.start(container_credentials_webhook="127.0.0.1:0")
    await server.wait_ready()
    assert server.webhook is not None
    trust = ssl.create_default_context(cafile=str(sandbox.pki.server.ca))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust)) as session:
        yield Asker(session, f"https://localhost:{server.webhook.port}/mutate")


def pod(account: str | None = None, wish: str | None = None) -> Json:
    annotations = {} if wish is None else {"iam.amazonaws.com/container-credentials": wish}
    spec: Json = {"containers": [{"name": "main", "image": "example.invalid/app:1"}]}
    if account is not None:
        spec["serviceAccountName"] = account
    return {"metadata": {"generateName": "app-", "annotations": annotations}, "spec": spec}


async def test_pods_of_a_service_account_with_a_role_are_given_token_and_variables(asker: Asker) -> None:
    response = await asker.review(pod("cart"))
    assert response["patchType"] == "JSONPatch"
    paths = [operation["path"] for operation in json.loads(base64.b64decode(response["patch"]))]
    assert paths == ["/spec/containers/0/env", "/spec/containers/0/volumeMounts", "/spec/volumes"]


@pytest.mark.parametrize(
    ("account", "wish", "is_patched"),
    [
        (None, None, False),
        ("default", None, False),
        ("default", "true", True),
        ("cart", "false", False),
        ("unknown", None, False),
    ],
)
async def test_who_is_patched(asker: Asker, account: str | None, wish: str | None, is_patched: bool) -> None:
    assert ("patch" in await asker.review(pod(account, wish))) is is_patched


async def test_an_api_that_fails_leaves_the_pod_as_it_is(asker: Asker, kube: KubeApi) -> None:
    kube.faults.fail = 1
    assert "patch" not in await asker.review(pod("cart"))
    assert "patch" in await asker.review(pod("cart"))


async def test_what_is_no_review_is_400_and_what_is_too_large_413(asker: Asker) -> None:
    assert (await asker.post(b"{}"))[0] == 400
    assert (await asker.post(b'{"request": {"uid": 1}}'))[0] == 400
    assert (await asker.post(b" " * (4 << 20)))[0] == 413
