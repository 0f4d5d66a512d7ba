"""The age of the server's word, and a server that is cut off from the Kubernetes API."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from datetime import timedelta

import grpc
import pytest
from grpc import aio

from kiam.rpc import kiam_pb2
from tests.integration.server.conftest import Client, Sandbox
from tests.sandbox.kubeapi import KubeApi, namespace, pod
from tests.sandbox.process import until

PROVE = (("kiam-prove", "1"),)
SWAPS, ASKS = 4, 1000
"""Times, and questions for each address while the API is away, when it is back, and when the server has caught up."""


@pytest.fixture(autouse=True)
def cluster(kube: KubeApi) -> None:
    kube.load([namespace("default", ".*"), pod("a", "10.0.0.1", "role-a", node="n1", uid="uid-a")])


async def test_word_is_proved_when_a_stream_opens_and_when_a_call_asks_for_it(sandbox: Sandbox) -> None:
    client = await sandbox.connect(await sandbox.start())
    watch = client.watch(node_name="n1")
    hello = (await watch.next()).hello
    assert hello.HasField("watch_age_milliseconds")
    await watch.snapshot()
    request = kiam_pb2.GetPodRoleRequest(ip="10.0.0.1")
    assert not (await client.stub.GetPodRole(request, timeout=60)).HasField("watch_age_milliseconds")
    role = await client.stub.GetPodRole(request, timeout=60, metadata=PROVE)
    assert role.HasField("watch_age_milliseconds")
    asked = kiam_pb2.GetPodCredentialsRequest(ip="10.0.0.1", role="role-a")
    credentials = await client.stub.GetPodCredentials(asked, timeout=60, metadata=PROVE)
    assert credentials.HasField("watch_age_milliseconds")


async def test_refusal_says_how_old_it_is_to_those_who_ask(sandbox: Sandbox, kube: KubeApi) -> None:
    kube.load([pod("bare", "10.0.0.3", node="n1", uid="uid-bare")])
    client = await sandbox.connect(await sandbox.start())
    assert await client.role("10.0.0.3") == ""
    for address, code in (
        ("10.0.0.1", grpc.StatusCode.PERMISSION_DENIED),
        ("10.0.0.3", grpc.StatusCode.INVALID_ARGUMENT),
    ):
        request = kiam_pb2.GetPodCredentialsRequest(ip=address, role="another")
        for metadata, is_told in ((PROVE, True), ((), False)):
            with pytest.raises(aio.AioRpcError) as error:
                await client.stub.GetPodCredentials(request, timeout=60, metadata=metadata)
            assert error.value.code() is code
            ages = [value for key, value in error.value.trailing_metadata() if key == "kiam-watch-age-milliseconds"]
            assert (len(ages) == 1 and int(ages[0]) < 5000) if is_told else not ages


async def test_concurrent_askers_for_one_node_share_a_few_lists(sandbox: Sandbox, kube: KubeApi) -> None:
    client = await sandbox.connect(await sandbox.start())
    assert await client.role("10.0.0.1") == "role-a"
    before = kube.requests["list pods"]
    request = kiam_pb2.GetPodRoleRequest(ip="10.0.0.1")
    await asyncio.gather(*(client.stub.GetPodRole(request, timeout=60, metadata=PROVE) for _ in range(300)))
    assert 1 <= kube.requests["list pods"] - before <= 60


async def test_nobody_is_vouched_for_while_the_api_is_cut_off_and_addresses_swap(
    sandbox: Sandbox, kube: KubeApi
) -> None:
    """What an agent would believe (an answer no older than the swap) is never wrong."""
    kube.load([pod("b", "10.0.0.2", "role-b", node="n1", uid="uid-b")])
    client = await sandbox.connect(await sandbox.start())
    assert await client.role("10.0.0.2") == "role-b"
    owner = {"10.0.0.1": "role-a", "10.0.0.2": "role-b"}
    loop = asyncio.get_running_loop()
    believed = wrong = 0
    for swap in range(SWAPS):
        await kube.stop()
        first, second = ("10.0.0.2", "10.0.0.1") if swap % 2 == 0 else ("10.0.0.1", "10.0.0.2")
        kube.apply(pod("a", first, "role-a", node="n1", uid="uid-a"))
        kube.apply(pod("b", second, "role-b", node="n1", uid="uid-b"))
        owner = {first: "role-a", second: "role-b"}
        swapped_at = loop.time()

        async def ask(address: str) -> tuple[str, str, bool]:
            asked_at = loop.time()
            request = kiam_pb2.GetPodRoleRequest(ip=address)
            try:
                answer = await client.stub.GetPodRole(request, timeout=60, metadata=PROVE)
            except aio.AioRpcError as error:
                # Between the two events that make up the swap, both pods claim one address.
                if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                    raise
                return address, "", False
            age = answer.watch_age_milliseconds / 1000
            return address, answer.name, asked_at - age >= swapped_at  # noqa: B023  # awaited before the next swap

        for phase in ("cut off", "just back", "caught up"):
            if phase == "just back":
                await kube.start()
            elif phase == "caught up":
                await until(lambda: _is(_role(client, first), "role-a"), seconds=60)  # noqa: B023  # awaited here
            answers = await asyncio.gather(*(ask(address) for address in owner for _ in range(ASKS)))
            believed += sum(believe for *_, believe in answers)
            wrong += sum(believe and owner[address] != role for address, role, believe in answers)
            if phase == "cut off":
                assert not any(believe for *_, believe in answers)
    assert wrong == 0
    assert believed >= SWAPS * ASKS


async def test_server_that_hears_nothing_is_not_ready_ends_its_streams_and_recovers(
    sandbox: Sandbox, kube: KubeApi
) -> None:
    server = await sandbox.start(sync=timedelta(seconds=1), stale_after=timedelta(seconds=6))
    client = await sandbox.connect(server)
    await until(lambda: _is(client.health(), "ok"))
    watch = client.watch(node_name="n1")
    await watch.snapshot()
    await kube.stop()
    with pytest.raises(aio.AioRpcError) as error:
        await watch.until(lambda: False)
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    assert await client.health() == "not ready: waiting for pods"
    with pytest.raises(aio.AioRpcError) as error:
        await client.watch(node_name="n1").next()
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    await kube.start()
    await until(lambda: _is(client.health(), "ok"), seconds=60)
    again = client.watch(node_name="n1")
    await again.snapshot()
    assert set(again.pods) == {"a"}


async def _role(client: Client, address: str) -> str:
    try:
        return await client.role(address)
    except aio.AioRpcError:
        return ""


async def _is(health: Awaitable[str], wanted: str) -> bool:
    return await health == wanted
