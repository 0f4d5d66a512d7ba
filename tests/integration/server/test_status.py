"""``Status`` and ``kiam status``: what a server tells of itself, and to whom."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from grpc import aio

from kiam import __version__
from kiam.rpc import kiam_pb2
from kiam.server.run import Server
from kiam.tls import TLSFiles
from tests.integration.server.conftest import Client, Sandbox
from tests.sandbox.aws import AwsProcess
from tests.sandbox.kubeapi import KubeApi, namespace, pod
from tests.sandbox.process import until


@pytest.fixture(autouse=True)
def cluster(kube: KubeApi) -> None:
    kube.load(
        [
            namespace("default", ".*"),
            pod("a", "10.0.0.1", "role-a", node="n1", host_address="192.0.2.1"),
            pod("b", "10.0.1.1", "role-b", node="n2", host_address="192.0.2.2"),
        ]
    )


async def status(client: Client, settled: Callable[[Any], bool] = lambda _: True) -> kiam_pb2.ServerStatus:
    """The status as soon as it is as awaited."""

    async def look() -> kiam_pb2.ServerStatus | None:
        found: kiam_pb2.ServerStatus = await client.stub.Status(
            kiam_pb2.StatusRequest(), timeout=10, wait_for_ready=True
        )
        return found if settled(found) else None

    awaited: kiam_pb2.ServerStatus = await until(look, "the status to be as awaited")
    return awaited


def states(found: kiam_pb2.ServerStatus) -> dict[str, str]:
    return {role.role_arn.rpartition("/")[2]: role.state for role in found.roles}


async def test_server_tells_of_agents_pods_roles_calls_and_certificates(sandbox: Sandbox) -> None:
    client = await sandbox.connect(await sandbox.start())
    watch = client.watch(node_name="n1", agent_version="9.8.7")
    await watch.snapshot()
    await watch.until(lambda: "role-a" in watch.credentials)
    found = await status(
        client,
        lambda it: (
            it.readiness == "ok"
            and states(it) == {"role-a": "held", "role-b": "held"}
            and any(row.HasField("stream") and not row.stream.pending for row in it.nodes)
        ),
    )
    assert (found.version, found.pods, found.namespaces) == (__version__, 2, 1)
    assert found.HasField("watch_age_milliseconds")
    assert not found.own_nodes_only
    n1, n2 = found.nodes
    assert (n1.node, n1.pods, n1.stream.agent_version) == ("n1", 1, "9.8.7")
    assert n1.stream.peer in ("127.0.0.1", "::1")
    assert (n2.node, n2.pods, n2.HasField("stream")) == ("n2", 1, False)
    assert all(role.expiration and role.namespaces == 1 and not role.error for role in found.roles)
    assert (found.sts.calls, found.sts.errors, found.sts.throttled, found.sts.running) == (2, 0, 0, 0)
    assert [one.kind for one in found.certificates] == ["server", "authority"]
    assert all(one.not_before < one.not_after for one in found.certificates)


async def test_refused_role_is_shown_with_aws_words_and_throttling_is_counted(
    sandbox: Sandbox, aws: AwsProcess
) -> None:
    aws.faults(sts="throttled")
    client = await sandbox.connect(await sandbox.start())
    found = await status(client, lambda it: it.sts.throttled >= 1 and "failing" in states(it).values())
    failing = [role for role in found.roles if role.state == "failing"]
    assert all("Throttling" in role.error and not role.expiration for role in failing)
    assert found.roles[0].state == "failing"
    assert found.sts.errors >= found.sts.throttled


async def test_no_secret_is_in_the_status(sandbox: Sandbox) -> None:
    client = await sandbox.connect(await sandbox.start())
    held = await client.credentials("10.0.0.1", "role-a")
    told = (await status(client, lambda it: states(it).get("role-a") == "held")).SerializeToString()
    for secret in (held.access_key_id, held.secret_access_key, held.token):
        assert secret.encode() not in told


async def test_certificate_of_a_node_sees_its_own_rows_only(sandbox: Sandbox) -> None:
    server = await sandbox.start(node_authorization=True)
    everything = await sandbox.connect(server, sandbox.pki.server)
    agent = await sandbox.connect(server, sandbox.pki.issue("n1", ["n1"]))
    nobody = await sandbox.connect(server, sandbox.pki.issue("wild", ["*.example.internal"]))
    all_held = {"role-a": "held", "role-b": "held"}
    found = await status(everything, lambda it: states(it) == all_held)
    assert ([row.node for row in found.nodes], found.own_nodes_only) == (["n1", "n2"], False)
    own = await status(agent)
    assert ([row.node for row in own.nodes], states(own), own.own_nodes_only) == (["n1"], {"role-a": "held"}, True)
    assert b"role-b" not in own.SerializeToString()
    none = await status(nobody)
    assert (list(none.nodes), list(none.roles), none.own_nodes_only) == ([], [], True)


async def test_version_of_an_agent_is_cut(sandbox: Sandbox) -> None:
    client = await sandbox.connect(await sandbox.start())
    watch = client.watch(node_name="n1", agent_version="9" * 10_000)
    await watch.snapshot()
    found = await status(client, lambda it: any(row.HasField("stream") for row in it.nodes))
    assert found.nodes[0].stream.agent_version == "9" * 64


async def test_server_that_is_not_ready_tells_its_status(sandbox: Sandbox, kube: KubeApi) -> None:
    kube.faults.fail = 1_000_000
    client = await sandbox.connect(await sandbox.start())
    found = await status(client)
    assert found.readiness.startswith("not ready: waiting for")
    assert not found.HasField("watch_age_milliseconds")


async def kiam_status(server: Server, files: TLSFiles, *flags: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "kiam", "status", f"--server-address=localhost:{server.port}"),
        *(f"--cert={files.cert}", f"--key={files.key}", f"--ca={files.ca}", *flags),
        env={**os.environ, "COLUMNS": "200"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def test_command_shows_a_table_and_json(sandbox: Sandbox) -> None:
    server = await sandbox.start()
    client = await sandbox.connect(server)
    watch = client.watch(node_name="n1", agent_version="9\x1b[31m")
    await watch.snapshot()
    await status(client, lambda it: states(it) == {"role-a": "held", "role-b": "held"})
    code, table, err = await kiam_status(server, sandbox.pki.agent)
    assert (code, err) == (0, "")
    for shown in ("n1", "no stream", "role-a", "held", "AssumeRole calls", "authority", r"9\x1b[31m"):
        assert shown in table
    assert "\x1b" not in table
    code, out, _ = await kiam_status(server, sandbox.pki.agent, "--output=json")
    told = json.loads(out)
    assert code == 0
    assert (told["version"], told["pods"], told["sts"]["calls"]) == (__version__, 2, 2)
    assert [("stream" in row) for row in told["nodes"]] == [True, False]


@contextlib.asynccontextmanager
async def watching(
    server: Server, files: TLSFiles, *flags: str, output: int = asyncio.subprocess.PIPE
) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "kiam", "status", f"--server-address=localhost:{server.port}", "--watch"),
        *(f"--cert={files.cert}", f"--key={files.key}", f"--ca={files.ca}", "--timeout=20s", *flags),
        env={**os.environ, "COLUMNS": "200", "TERM": "xterm"},
        stdout=output,
        stderr=asyncio.subprocess.PIPE,
        limit=1 << 20,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def line(stream: asyncio.StreamReader | None) -> str:
    assert stream is not None
    return (await asyncio.wait_for(stream.readline(), 60)).decode()


async def interrupt(process: asyncio.subprocess.Process) -> str:
    process.send_signal(signal.SIGINT)
    _, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0
    return err.decode()


async def test_watch_shows_what_changes_until_interrupted(sandbox: Sandbox, kube: KubeApi) -> None:
    server = await sandbox.start()
    client = await sandbox.connect(server)
    await status(client, lambda it: it.pods == 2)
    async with watching(server, sandbox.pki.agent, "--output=json") as process:
        assert json.loads(await line(process.stdout))["pods"] == 2
        kube.load([pod("c", "10.0.0.3", "role-a", node="n1", host_address="192.0.2.1")])
        seen = [json.loads(await line(process.stdout))["pods"]]
        while seen[-1] != 3:
            seen.append(json.loads(await line(process.stdout))["pods"])
        assert set(seen) <= {2, 3}
        assert await interrupt(process) == ""


async def test_watch_outlasts_a_server_that_does_not_tell(sandbox: Sandbox, kube: KubeApi) -> None:
    server = await sandbox.start()
    client = await sandbox.connect(server)
    await status(client, lambda it: it.pods == 2)
    assert server.service is not None
    reporter = server.service.status
    async with watching(server, sandbox.pki.agent, "--output=json") as process:
        await line(process.stdout)
        server.service.status = None
        assert (await line(process.stderr)).startswith("kiam status: the server at ")
        kube.load([pod("c", "10.0.0.3", "role-a", node="n1", host_address="192.0.2.1")])
        server.service.status = reporter
        while json.loads(await line(process.stdout))["pods"] != 3:
            pass
        assert {one[:12] for one in (await interrupt(process)).splitlines()} <= {"kiam status:"}


async def test_watch_draws_its_table_again_in_place(sandbox: Sandbox, kube: KubeApi) -> None:
    server = await sandbox.start()
    client = await sandbox.connect(server)
    await status(client, lambda it: states(it) == {"role-a": "held", "role-b": "held"})
    screen, terminal = os.openpty()
    try:
        async with watching(server, sandbox.pki.agent, output=terminal) as process:
            os.close(terminal)
            drawn = b""
            while b"role-b" not in drawn:
                drawn += await asyncio.to_thread(os.read, screen, 1 << 16)
            kube.load([pod("c", "10.0.2.1", "role-c", node="n3", host_address="192.0.2.3")])
            while b"role-c" not in drawn:
                drawn += await asyncio.to_thread(os.read, screen, 1 << 16)
            # ED or EL and CUU: over what was there (ECMA-48).
            assert b"\x1b[2K" in drawn
            process.send_signal(signal.SIGINT)
            assert await asyncio.wait_for(process.wait(), 60) == 0
    finally:
        os.close(screen)


async def test_command_says_in_one_line_that_there_is_no_server(sandbox: Sandbox) -> None:
    server = await sandbox.start()
    stranger = sandbox.pki.expired()
    code, out, err = await kiam_status(server, stranger, "--timeout=3s")
    assert (code, out) == (1, "")
    assert err.startswith("kiam status: ")
    assert len(err.splitlines()) == 1


async def test_command_says_that_a_server_is_too_old(sandbox: Sandbox) -> None:
    server = await sandbox.start()
    assert server.service is not None
    server.service.status = None
    client = await sandbox.connect(server)
    with pytest.raises(aio.AioRpcError) as error:
        await status(client)
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
    code, _, err = await kiam_status(server, sandbox.pki.agent)
    assert code == 1
    assert "doesn't tell its status" in err


async def test_stream_that_nobody_reads_is_behind_until_its_changes_are_taken(sandbox: Sandbox) -> None:
    server = await sandbox.start()
    client = await sandbox.connect(server)
    await status(client, lambda it: states(it) == {"role-a": "held", "role-b": "held"})
    assert server.service is not None
    streams = server.service._streams
    stream = streams.open("n1", "", kiam_pb2.WatchNodeRequest(), "192.0.2.9")
    found = await status(client, lambda it: it.nodes[0].stream.lag_milliseconds > 0)
    assert (found.nodes[0].stream.peer, found.nodes[0].stream.pending) == ("192.0.2.9", 1)
    taken = [update.WhichOneof("update") for update in stream.updates()]
    assert taken == ["pod", "credentials"]
    found = await status(client, lambda it: it.nodes[0].stream.lag_milliseconds == 0)
    assert found.nodes[0].stream.pending == 0
    streams.close(stream)
    await status(client, lambda it: not it.nodes[0].HasField("stream"))
