"""List and watch against an API that pages, forgets, breaks off and lies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kiam.errors import UserError
from kiam.server.kubernetes import reflector as module
from kiam.server.kubernetes.api import KubeApi as Client
from kiam.server.kubernetes.api import KubeError
from kiam.server.kubernetes.reflector import Reflector
from kiam.server.kubernetes.resources import PODS
from kiam.server.kubernetes.store import PodStore
from tests.sandbox.kubeapi import KubeApi, many_pods, namespace, pod, write_kubeconfig
from tests.sandbox.process import until


@pytest.fixture
async def kube() -> AsyncIterator[KubeApi]:
    async with KubeApi() as api:
        yield api


@asynccontextmanager
async def reflecting(kube: KubeApi, directory: Path, seconds: float = 60) -> AsyncIterator[PodStore]:
    store = PodStore()
    client = await Client.connect(str(write_kubeconfig(directory / "kubeconfig", kube.url)))
    task = asyncio.create_task(Reflector(client, PODS, store, seconds).run())
    try:
        yield store
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await client.close()


def names(store: PodStore) -> set[str]:
    return {pod.name for uid in store.uids() if (pod := store.get(uid))}


async def test_list_is_read_in_pages(kube: KubeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE_LIMIT", 30)
    kube.load(many_pods(100))
    async with reflecting(kube, tmp_path) as store:
        await until(lambda: len(store) == 100)
        assert kube.requests["list pods"] == 4


async def test_pages_of_large_pods_get_shorter(kube: KubeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE_LIMIT", 100)
    monkeypatch.setattr(module, "PAGE_BYTES", 200_000)
    monkeypatch.setattr(module, "MINIMUM_PAGE_LIMIT", 5)
    kube.load(many_pods(150, size=10_000))
    async with reflecting(kube, tmp_path) as store:
        await until(lambda: len(store) == 150)
        # 100 pods of 10 kB are five times too much: the next pages have 10 at most, or a few more.
        assert kube.requests["list pods"] >= 5


async def test_changes_come_by_the_watch_and_without_another_list(kube: KubeApi, tmp_path: Path) -> None:
    kube.apply(pod("a", "10.0.0.1"))
    async with reflecting(kube, tmp_path) as store:
        await until(lambda: names(store) == {"a"})
        kube.apply(pod("b", "10.0.0.2"))
        await until(lambda: names(store) == {"a", "b"})
        kube.delete("pods", "a", "default")
        await until(lambda: names(store) == {"b"})
        assert kube.requests["list pods"] == 1


@pytest.mark.parametrize("as_event", [True, False])
async def test_version_too_old_means_a_new_list_that_also_finds_what_went(
    kube: KubeApi, tmp_path: Path, as_event: bool
) -> None:
    kube.faults.gone_as_event = as_event
    kube.load([pod("a", "10.0.0.1"), pod("b", "10.0.0.2")])
    async with reflecting(kube, tmp_path) as store:
        await until(lambda: kube.watches() == 1)
        await kube.stop()
        kube.delete("pods", "a", "default")
        kube.apply(pod("c", "10.0.0.3"))
        kube.compact()
        await kube.start()
        await until(lambda: names(store) == {"b", "c"})
        assert kube.requests["list pods"] == 2


async def test_list_whose_continuation_is_too_old_starts_over(
    kube: KubeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE_LIMIT", 20)
    kube.load(many_pods(100))
    kube.faults.delay = 0.1
    async with reflecting(kube, tmp_path) as store:
        await until(lambda: kube.requests["list pods"] >= 2)
        kube.compact()
        kube.faults.delay = 0
        await until(lambda: len(store) == 100 and kube.watches() == 1)
        assert kube.requests["list pods"] > 5


async def test_watch_that_is_cut_goes_on_where_it_was(kube: KubeApi, tmp_path: Path) -> None:
    async with reflecting(kube, tmp_path) as store:

        def holds(pods: int) -> Callable[[], bool]:
            return lambda: len(store) == pods

        for number in range(5):
            await until(lambda: kube.watches() == 1)
            kube.drop_streams()
            kube.apply(pod(f"p{number}", f"10.0.0.{number}"))
            await until(holds(number + 1))
        assert kube.requests["list pods"] == 1


async def test_bookmark_spares_a_list_after_compaction(kube: KubeApi, tmp_path: Path) -> None:
    store = PodStore()
    client = await Client.connect(str(write_kubeconfig(tmp_path / "kubeconfig", kube.url)))
    reflector = Reflector(client, PODS, store, 60)
    task = asyncio.create_task(reflector.run())
    await until(lambda: kube.watches() == 1)
    # Other resources move the version on; without bookmarks the watcher of pods would never hear of it.
    kube.load(namespace(f"n{number}") for number in range(5))
    kube.send_bookmarks()
    await until(lambda: reflector.version == str(kube.version))
    kube.collections["pods"].compact(kube.version)
    kube.drop_streams()
    await until(lambda: kube.requests["watch pods"] == 2)
    kube.apply(pod("b", "10.0.0.2"))
    await until(lambda: names(store) == {"b"})
    assert kube.requests["list pods"] == 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await client.close()


async def test_half_a_line_is_not_an_event(kube: KubeApi, tmp_path: Path) -> None:
    async with reflecting(kube, tmp_path) as store:
        await until(lambda: kube.watches() == 1)
        kube.faults.garbage = 2
        kube.drop_streams()
        kube.apply(pod("a", "10.0.0.1"))
        await until(lambda: names(store) == {"a"})


async def test_watch_ends_after_its_time_and_is_begun_anew(kube: KubeApi, tmp_path: Path) -> None:
    async with reflecting(kube, tmp_path, seconds=1) as store:
        await until(lambda: kube.requests["watch pods"] >= 3)
        kube.apply(pod("a", "10.0.0.1"))
        await until(lambda: names(store) == {"a"})
        assert kube.requests["list pods"] == 1


async def test_dead_watch_is_noticed_when_its_time_is_over(
    kube: KubeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WATCH_GRACE", 0.5)
    async with reflecting(kube, tmp_path, seconds=1) as store:
        await until(lambda: kube.watches() == 1)
        # The API goes on without a word: neither an event nor an end reaches the watcher.
        kube.faults.delay = 30
        await until(lambda: kube.requests["watch pods"] >= 1)
        kube.apply(pod("a", "10.0.0.1"))
        kube.faults.delay = 0
        await until(lambda: names(store) == {"a"})


async def test_errors_are_retried_and_retry_after_is_heeded(kube: KubeApi, tmp_path: Path) -> None:
    kube.faults.fail, kube.faults.fail_status, kube.faults.fail_retry_after = 2, 429, 1
    kube.apply(pod("a", "10.0.0.1"))
    started = asyncio.get_running_loop().time()
    async with reflecting(kube, tmp_path) as store:
        await until(lambda: names(store) == {"a"})
    assert asyncio.get_running_loop().time() - started >= 2


async def test_rotated_token_is_read_again_after_a_401(kube: KubeApi, tmp_path: Path) -> None:
    kube.apply(pod("a", "10.0.0.1"))
    async with reflecting(kube, tmp_path) as store:
        await until(lambda: names(store) == {"a"})
        kube.token = "rotated"
        kube.drop_streams()
        write_kubeconfig(tmp_path / "kubeconfig", kube.url, token="rotated")
        kube.apply(pod("b", "10.0.0.2"))
        await until(lambda: names(store) == {"a", "b"})


async def test_refusal_says_what_the_api_says(kube: KubeApi, tmp_path: Path) -> None:
    client = await Client.connect(str(write_kubeconfig(tmp_path / "kubeconfig", kube.url)))
    with pytest.raises(KubeError, match=r"HTTP 403: .*cannot") as error:
        await client.get("/api/v1/events", {"limit": "1"})
    assert error.value.status == 403
    await client.close()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "can't be used"),
        ("just text", "can't be used"),
        ("{", "can't be used"),
        ("apiVersion: v1\nkind: Config\n", "can't be used"),
        (
            json.dumps({"current-context": "x", "contexts": [], "clusters": [], "users": []}),
            "Expected object with name x",
        ),
        (
            json.dumps(
                {
                    "current-context": "x",
                    "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                    "clusters": [
                        {"name": "c", "cluster": {"server": "https://h", "certificate-authority": "/nowhere"}}
                    ],
                    "users": [{"name": "u", "user": {}}],
                }
            ),
            "/nowhere",
        ),
    ],
)
async def test_bad_kubeconfig_is_one_clear_line(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(content)
    with pytest.raises(UserError) as error:
        await Client.connect(str(path))
    assert str(error.value).startswith("--kubeconfig: ")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


async def test_missing_kubeconfig_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"--kubeconfig: {tmp_path}/none: No such file"):
        await Client.connect(str(tmp_path / "none"))


async def test_neither_kubeconfig_nor_cluster_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(
        UserError, match=r"no --kubeconfig, and not in a cluster's pod: [^;]*[^.;]; give --kubeconfig a path"
    ):
        await Client.connect("")


async def test_service_account_of_a_pod_is_used_and_its_token_followed(
    kube: KubeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ssl

    from kubernetes.aio.config import incluster_config

    from tests.sandbox.pki import make_pki

    pki = make_pki(tmp_path / "pki", server_names=("127.0.0.1",))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki.server.cert, pki.server.key)
    token = tmp_path / "token"
    token.write_text("first")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(token))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(pki.ca))
    async with KubeApi(tls=context, token="Bearer-checked-below") as secure:
        secure.token = "first"
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(secure.port))
        secure.apply(pod("a", "10.0.0.1"))
        client = await Client.connect("")
        try:
            assert b'"a"' in await client.get("/api/v1/pods", {"limit": "1"})
            secure.token = "second"
            token.write_text("second")
            with pytest.raises(KubeError):
                await client.get("/api/v1/pods", {"limit": "1"})
            assert b'"a"' in await client.get("/api/v1/pods", {"limit": "1"})
        finally:
            await client.close()
