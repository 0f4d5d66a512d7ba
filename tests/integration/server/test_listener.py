"""Mutual TLS: who gets in, and how certificates change under way."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest
from grpc import aio

from kiam.errors import UserError
from kiam.rpc import kiam_pb2, kiam_pb2_grpc
from tests.integration.server.conftest import Sandbox
from tests.sandbox.kubeapi import KubeApi, namespace, pod
from tests.sandbox.pki import Pki, make_pki
from tests.sandbox.process import until


@pytest.fixture
def rotating(tmp_path: Path) -> Pki:
    return make_pki(tmp_path / "rotating")


def _install(source: Pki, target: Pki) -> None:
    """As Kubernetes does it: each file is another one from one moment to the next."""
    for old, new in (
        (target.server.cert, source.server.cert), (target.server.key, source.server.key), (target.ca, source.ca)
    ):  # fmt: skip
        moved = old.with_suffix(".next")
        moved.write_bytes(new.read_bytes())
        moved.replace(old)


async def test_client_without_a_certificate_of_the_authority_is_not_let_in(sandbox: Sandbox, tmp_path: Path) -> None:
    server = await sandbox.start()
    stranger = make_pki(tmp_path / "other").agent
    root = sandbox.pki.ca.read_bytes()
    for credentials in (
        grpc.ssl_channel_credentials(root),
        grpc.ssl_channel_credentials(root, stranger.key.read_bytes(), stranger.cert.read_bytes()),
    ):
        async with aio.secure_channel(
            f"localhost:{server.port}", credentials, options=[("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            with pytest.raises(aio.AioRpcError) as error:
                await kiam_pb2_grpc.KiamServiceStub(channel).GetHealth(kiam_pb2.GetHealthRequest(), timeout=5)
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_plaintext_is_not_spoken(sandbox: Sandbox) -> None:
    server = await sandbox.start()
    async with aio.insecure_channel(f"localhost:{server.port}") as channel:
        with pytest.raises(aio.AioRpcError):
            await kiam_pb2_grpc.KiamServiceStub(channel).GetHealth(kiam_pb2.GetHealthRequest(), timeout=3)


async def test_new_certificate_serves_new_connections_and_cuts_no_old_one(
    sandbox: Sandbox, rotating: Pki, tmp_path: Path, kube: KubeApi
) -> None:
    kube.load([namespace("default", ".*"), pod("a", "10.0.0.1", "role-a", node="n1")])
    server = await sandbox.start(tls=rotating.server)
    old = await sandbox.connect(server, rotating.agent)
    stream = old.watch(node_name="n1")
    await stream.snapshot()
    successor = make_pki(tmp_path / "successor")
    _install(successor, rotating)
    new = await until(lambda: _connects(sandbox, server, successor))
    assert new
    assert await old.role("10.0.0.1") == "role-a"
    kube.apply(pod("b", "10.0.0.2", "role-b", node="n1"))
    await stream.until(lambda: "b" in stream.pods)


async def test_many_handshakes_at_once_while_certificates_change(sandbox: Sandbox, rotating: Pki) -> None:
    server = await sandbox.start(tls=rotating.server)
    for generation in range(3):
        await asyncio.gather(*(_connects(sandbox, server, rotating) for _ in range(50)))
        renewed = rotating.issue(f"renewed-{generation}", rotating.server_names)
        for old, new in ((rotating.server.key, renewed.key), (rotating.server.cert, renewed.cert)):
            new.replace(old)
        await asyncio.gather(*(_connects(sandbox, server, rotating) for _ in range(50)))
    assert await until(lambda: _connects(sandbox, server, rotating))


async def _connects(sandbox: Sandbox, server: object, pki: Pki) -> bool:
    client = await sandbox.connect(server, pki.agent)  # type: ignore[arg-type]  # a Server, seen through a lambda
    try:
        await client.health()
    except aio.AioRpcError:
        return False
    return True


async def test_bad_new_file_leaves_the_old_certificate_in_use_and_is_shown(sandbox: Sandbox, rotating: Pki) -> None:
    server = await sandbox.start(tls=rotating.server)
    assert sandbox.metric("grpc_server_tls_certificate_update_error") == 0
    rotating.server.cert.write_text("-----BEGIN CERTIFICATE-----\nnonsense\n")
    await until(lambda: sandbox.metric("grpc_server_tls_certificate_update_error") == 1)
    files = rotating.agent
    client = await sandbox.connect(server, files)
    assert await client.health()


async def test_port_in_use_is_one_clear_line(sandbox: Sandbox) -> None:
    server = await sandbox.start()
    with pytest.raises(UserError) as error:
        await sandbox.start(bind=f"localhost:{server.port}")
    assert str(error.value).startswith(f"--bind: can't listen on localhost:{server.port}: ")


@pytest.mark.parametrize("bind", ["localhost", "localhost:http", "9610"])
async def test_bind_that_is_no_address_is_one_clear_line(sandbox: Sandbox, bind: str) -> None:
    with pytest.raises(UserError) as error:
        await sandbox.start(bind=bind)
    assert str(error.value).startswith(f"--bind: '{bind}' is not an address")


async def test_client_that_comes_before_grpc_is_there_is_connected_at_once_and_answered_later(sandbox: Sandbox) -> None:
    answers = []

    async def early(port: int) -> None:
        client = await sandbox.connect(port)
        answers.append(asyncio.create_task(client.health(60)))
        async with asyncio.timeout(60):
            # gRPC calls a connection ready when it has the server's first SETTINGS.
            await client.channel.channel_ready()

    server = await sandbox.start(early)
    await server.wait_ready()
    (answer,) = answers
    # "ok", or what the server was still waiting for.
    assert await answer
    assert sandbox.metric("kiam_server_front_connections", stage="joined") == 1


async def test_there_is_one_socket_on_the_port_which_bounds_whoever_comes(sandbox: Sandbox) -> None:
    server = await sandbox.start(bind="127.0.0.1:0")
    assert _listening_at(server.port) == 1


def _listening_at(port: int) -> int:
    tables = (Path(f"/proc/self/net/{name}").read_text() for name in ("tcp", "tcp6"))
    lines = [line.split() for table in tables for line in table.splitlines()[1:]]
    # State 0A is LISTEN (proc_net(5)).
    return len([line for line in lines if line[1].endswith(f":{port:04X}") and line[3] == "0A"])
