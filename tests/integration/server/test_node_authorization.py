"""--node-authorization: a certificate is worth the pods of the node it names."""

from __future__ import annotations

import grpc
import pytest
from grpc import aio

from tests.integration.server.conftest import Client, Sandbox
from tests.integration.server.test_unary import SHORT, refusal
from tests.sandbox.kubeapi import KubeApi, namespace, pod


@pytest.fixture(autouse=True)
def cluster(kube: KubeApi) -> None:
    kube.load(
        [
            namespace("default", ".*"),
            pod("a", "10.0.0.1", "role-a", node="n1", host_address="192.0.2.1"),
            pod("b", "10.0.1.1", "role-b", node="n2.example.internal", host_address="192.0.2.2"),
        ]
    )


async def _client(sandbox: Sandbox, *names: str, required: bool = True) -> Client:
    server = await sandbox.start(node_authorization=required)
    return await sandbox.connect(server, sandbox.pki.issue("-".join(names).replace("*", "any"), names))


async def test_unary_calls_find_the_certificates_node_only(sandbox: Sandbox) -> None:
    client = await _client(sandbox, "n1")
    assert await client.role("10.0.0.1") == "role-a"
    assert (await client.credentials("10.0.0.1", "role-a")).code == "Success"
    assert (await refusal(client.role("10.0.1.1", SHORT)))[0] is grpc.StatusCode.NOT_FOUND
    assert (await refusal(client.credentials("10.0.1.1", "role-b", SHORT)))[0] is grpc.StatusCode.NOT_FOUND


async def test_stream_of_the_certificates_node_is_open_and_of_another_refused(sandbox: Sandbox) -> None:
    client = await _client(sandbox, "n2.example.internal")
    own = client.watch(node_name="n2.example.internal")
    await own.snapshot()
    assert set(own.pods) == {"b"}
    with pytest.raises(aio.AioRpcError) as error:
        await client.watch(node_name="n1").next()
    assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "speaks for n2.example.internal, not for 'n1'" in str(error.value.details())


async def test_address_of_another_node_does_not_open_its_stream(sandbox: Sandbox) -> None:
    watch = (await _client(sandbox, "n1")).watch(host_ip="192.0.2.2")
    assert (await watch.next()).hello.node_name == "n1"
    await watch.snapshot()
    assert set(watch.pods) == {"a"}


@pytest.mark.parametrize("names", [("agent",), ("*.example.internal",), ("10.0.0.1",), ("192.0.2.1",)])
async def test_certificate_that_names_no_node_gets_nothing(sandbox: Sandbox, names: tuple[str, ...]) -> None:
    client = await _client(sandbox, *names)
    assert (await refusal(client.role("10.0.0.1", SHORT)))[0] is grpc.StatusCode.NOT_FOUND
    for node in ("n1", "n2.example.internal"):
        with pytest.raises(aio.AioRpcError) as error:
            await client.watch(node_name=node).next()
        assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert await client.health() in ("ok", "not ready: waiting for STS")


async def test_certificate_may_name_several_nodes(sandbox: Sandbox) -> None:
    client = await _client(sandbox, "n1", "n2.example.internal")
    assert [await client.role("10.0.0.1"), await client.role("10.0.1.1")] == ["role-a", "role-b"]
    with pytest.raises(aio.AioRpcError) as error:
        await client.watch(host_ip="192.0.2.1").next()
    assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_without_the_flag_every_certificate_is_as_good_as_before(sandbox: Sandbox) -> None:
    client = await _client(sandbox, "agent", required=False)
    assert [await client.role("10.0.0.1"), await client.role("10.0.1.1")] == ["role-a", "role-b"]
    watch = client.watch(node_name="n1")
    await watch.snapshot()
    assert set(watch.pods) == {"a"}


async def test_two_nodes_with_one_address_are_told_apart_by_the_certificate(sandbox: Sandbox, kube: KubeApi) -> None:
    kube.apply(pod("twin", "10.0.0.1", "role-t", node="n2.example.internal", host_address="192.0.2.2"))
    client = await _client(sandbox, "n2.example.internal")
    assert await client.role("10.0.0.1") == "role-t"
