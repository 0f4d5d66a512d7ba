"""The mutating webhook over HTTPS, asked as the Kubernetes API server asks."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import json
import ssl
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest

from kiam.server.webhook.listener import Webhook
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
    def __init__(self, session: aiohttp.ClientSession, url: str, port: int, trust: ssl.SSLContext) -> None:
        self._session, self._url, self.port, self._trust = session, url, port, trust

    async def connect(self, source: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection from an address, over which nothing is said."""
        return await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=self._trust, server_hostname="localhost", local_addr=(source, 0)
        )

    async def post(self, body: bytes, encoding: str = "identity") -> tuple[int, bytes]:
        headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
        async with self._session.post(self._url, data=body, headers=headers) as answer:
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
        yield Asker(session, f"https://localhost:{server.webhook.port}/mutate", server.webhook.port, trust)


SMALL = 64 << 10


class NoRoles:
    async def role(self, namespace: str, name: str) -> str:
        return ""


class Stranger:
    """Somebody whose review comes in pieces, and perhaps never to its end."""

    def __init__(self, piece: bytes = b" " * (SMALL + 1), *, ends: bool = False) -> None:
        self.taken, self._left, self._piece, self._ends = 0, 1 if ends else 20, piece, ends
        self.request: Any = SimpleNamespace(content=self, read=self.read)

    async def readany(self) -> bytes:
        if not self._left:
            if self._ends:
                return b""
            await asyncio.Event().wait()
        self._left -= 1
        self.taken += len(self._piece)
        return self._piece

    async def read(self) -> bytes:
        """As a request does it by itself."""
        body = b""
        while piece := await self.readany():
            body += piece
        return body


async def wait_until_idle() -> None:
    """Until nothing that can go on has more to do."""
    for _ in range(100):
        await asyncio.sleep(0)


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
    assert (await asker.post(b'{"request": {"uid": "1", "object": ' + b"[" * 60_000))[0] == 400
    # Never decompressed, as it could be a thousand times as large then.
    assert (await asker.post(gzip.compress(b'{"request": {"uid": "1"}}'), "gzip"))[0] == 400
    assert (await asker.post(b" " * (4 << 20)))[0] == 413


async def test_of_too_many_connections_those_of_whoever_has_most_end(
    asker: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kiam.server.webhook.connections.MOST", 8, raising=False)
    quiet = await asker.connect("127.0.0.3")
    flood = [await asker.connect("127.0.0.2") for _ in range(12)]
    try:
        for reader, _ in flood[:5]:
            with contextlib.suppress(OSError):
                assert await asyncio.wait_for(reader.read(), 10) == b""
        # Others are served as before, and those that were open stay so.
        assert "patch" in await asker.review(pod("cart"))
        quiet[1].write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await asyncio.wait_for(quiet[0].readline(), 10)).startswith(b"HTTP/1.1 404")
    finally:
        for _, writer in (quiet, *flood):
            writer.transport.abort()


async def test_large_reviews_that_never_end_take_little_memory_and_hold_up_no_small_one() -> None:
    most = 8
    strangers = [Stranger() for _ in range(3 * most)]
    webhook = Webhook(NoRoles())
    held = [asyncio.create_task(webhook.answer(stranger.request)) for stranger in strangers]
    try:
        await wait_until_idle()
        assert sum(stranger.taken > 2 * SMALL for stranger in strangers) == most
        small = Stranger(b'{"request": {"uid": "1"}}', ends=True)
        assert (await asyncio.wait_for(webhook.answer(small.request), 10)).status == 200
    finally:
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)
