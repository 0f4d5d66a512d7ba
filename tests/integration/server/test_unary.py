"""The unary calls: texts and codes, and calls that are held."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable
from typing import Any

import grpc
import pytest
from grpc import aio

from kiam.rpc import kiam_pb2
from tests.integration.server.conftest import Sandbox
from tests.sandbox.aws import AwsProcess
from tests.sandbox.kubeapi import KubeApi, namespace, pod
from tests.sandbox.process import until

SHORT = None
"""No deadline: held for as long as the server holds such calls, which is short in these tests."""


async def refusal(call: Awaitable[Any]) -> tuple[grpc.StatusCode, str | None]:
    with pytest.raises(aio.AioRpcError) as error:
        await call
    return error.value.code(), error.value.details()


@pytest.fixture(autouse=True)
def cluster(kube: KubeApi) -> None:
    kube.load([namespace("default", ".*"), pod("a", "10.0.0.1", "role-a", addresses=["2001:db8::1"])])


async def test_texts_are_the_conventional_ones_and_the_codes_fit(sandbox: Sandbox, kube: KubeApi) -> None:
    kube.load([pod("x", "10.0.0.2", "role-a"), pod("y", "10.0.0.2", "role-a")])
    client = await sandbox.connect(await sandbox.start())
    code = grpc.StatusCode
    assert await refusal(client.role("10.0.0.9", SHORT)) == (code.NOT_FOUND, "pod not found")
    assert await refusal(client.credentials("10.0.0.9", "role-a", SHORT)) == (code.NOT_FOUND, "no pod found")
    assert await refusal(client.role("10.0.0.2")) == (code.FAILED_PRECONDITION, "multiple running pods found")
    assert await refusal(client.credentials("10.0.0.1", "role-b")) == (code.PERMISSION_DENIED, "forbidden by policy")
    assert await refusal(client.credentials("10.0.0.1", "")) == (code.INVALID_ARGUMENT, "role can't be empty")


@pytest.mark.parametrize("ip", ["10.0.0.1", "::ffff:10.0.0.1", "2001:DB8:0::1", "2001:db8::1"])
async def test_every_spelling_of_an_address_finds_its_pod(sandbox: Sandbox, ip: str) -> None:
    assert await (await sandbox.connect(await sandbox.start())).role(ip) == "role-a"


@pytest.mark.parametrize("ip", ["", "010.0.0.1", "10.0.0.1 ", "fe80::1%eth0", "localhost"])
async def test_what_is_no_address_is_an_invalid_argument(sandbox: Sandbox, ip: str) -> None:
    client = await sandbox.connect(await sandbox.start())
    assert (await refusal(client.role(ip)))[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_call_is_held_until_a_pod_has_the_address(sandbox: Sandbox, kube: KubeApi) -> None:
    server = await sandbox.start()
    client = await sandbox.connect(server)
    await client.role("10.0.0.1")
    calls = [asyncio.create_task(client.role("10.0.0.7", 20)) for _ in range(3)]
    held = asyncio.create_task(client.credentials("10.0.0.7", "role-n", 20))
    await until(lambda: server.service is not None and len(server.service.arrivals) == 4)
    assert not any(call.done() for call in (*calls, held))
    kube.apply(pod("new", None, "role-n"))
    kube.apply(pod("new", "10.0.0.7", "role-n"))
    assert await asyncio.gather(*calls) == ["role-n"] * 3
    assert (await held).code == "Success"


async def test_call_without_a_deadline_is_not_held_for_ever(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kiam.server.grpc.calls.LONGEST_HOLD", 0.2)
    client = await sandbox.connect(await sandbox.start())
    assert (await refusal(client.credentials("10.0.0.9", "x", None)))[0] is grpc.StatusCode.NOT_FOUND


async def test_calls_beyond_the_bound_are_answered_at_once(sandbox: Sandbox) -> None:
    server = await sandbox.start()
    client = await sandbox.connect(server)
    await client.role("10.0.0.1")
    assert server.service is not None
    server.service.arrivals.most = 2
    held = [asyncio.create_task(client.role(f"10.9.0.{number}", 20)) for number in range(2)]
    await until(lambda: server.service is not None and len(server.service.arrivals) == 2)
    assert (await refusal(client.role("10.9.0.9", 20)))[0] is grpc.StatusCode.NOT_FOUND
    for call in held:
        call.cancel()
    await until(lambda: server.service is not None and len(server.service.arrivals) == 0)


async def test_namespace_not_seen_yet_is_waited_for_and_never_a_final_no(sandbox: Sandbox, kube: KubeApi) -> None:
    server = await sandbox.start()
    client = await sandbox.connect(server)
    kube.apply(pod("early", "10.0.0.5", "role-a", namespace="late"))
    assert await client.role("10.0.0.5") == "role-a"
    assert await refusal(client.credentials("10.0.0.5", "role-a", SHORT)) == (
        grpc.StatusCode.UNAVAILABLE,
        "namespace 'late' is not known yet",
    )
    held = asyncio.create_task(client.credentials("10.0.0.5", "role-a", 20))
    await until(lambda: server.service is not None and len(server.service.arrivals) == 1)
    kube.apply(namespace("late", ".*"))
    assert (await held).code == "Success"


async def test_host_network_pod_is_not_served_as_its_node(sandbox: Sandbox, kube: KubeApi) -> None:
    kube.apply(pod("tool", "192.0.2.10", "role-a", host_network=True))
    client = await sandbox.connect(await sandbox.start())
    assert (await refusal(client.credentials("192.0.2.10", "role-a", SHORT)))[0] is grpc.StatusCode.NOT_FOUND


async def test_pod_without_annotation_has_the_empty_role_and_no_credentials(sandbox: Sandbox, kube: KubeApi) -> None:
    kube.apply(pod("plain", "10.0.0.6"))
    client = await sandbox.connect(await sandbox.start())
    assert await client.role("10.0.0.6") == ""
    assert await refusal(client.credentials("10.0.0.6", "x")) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "role can't be empty",
    )


async def test_failure_of_sts_is_unavailable_with_its_reason_and_when_to_ask_again(
    sandbox: Sandbox, aws: AwsProcess, kube: KubeApi
) -> None:
    aws.faults(sts="denied")
    kube.apply(pod("refused", "10.0.0.8", "role-refused"))
    client = await sandbox.connect(await sandbox.start())
    for _ in range(3):
        with pytest.raises(aio.AioRpcError) as error:
            await client.credentials("10.0.0.8", "role-refused")
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        assert str(error.value.details()).startswith("AccessDenied: User is not authorized")
        assert int(dict(error.value.trailing_metadata() or ())["retry-after"]) >= 1
    assert aws.count("role-refused") == 1
    (event,) = await until(kube.events)
    assert event["message"].startswith("failed retrieving credentials: AccessDenied: ")


async def test_calls_are_held_while_the_api_is_away_and_answered_once_it_is_there(
    sandbox: Sandbox, kube: KubeApi
) -> None:
    await kube.stop()
    client = await sandbox.connect(await sandbox.start())
    assert (await client.health()).startswith("not ready: waiting for ")
    code, text = await refusal(client.role("10.0.0.1", SHORT))
    assert code is grpc.StatusCode.UNAVAILABLE
    assert str(text).startswith("not ready: waiting for pods, namespaces")
    call = asyncio.create_task(client.role("10.0.0.1", 30))
    await kube.start()
    assert await call == "role-a"
    await until(lambda: _is_ok(client.health()))


async def _is_ok(health: Awaitable[str]) -> bool:
    return await health == "ok"


async def test_sts_away_is_not_ready_but_pods_are_known(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:9")
    client = await sandbox.connect(await sandbox.start())
    assert await client.role("10.0.0.1") == "role-a"
    assert await client.health() == "not ready: waiting for STS"
    code, text = await refusal(client.credentials("10.0.0.1", "role-a"))
    assert code is grpc.StatusCode.UNAVAILABLE
    assert str(text).startswith("EndpointConnectionError: ")


async def test_health_of_a_server_that_is_not_ready_is_an_error_and_any_answer_is_a_sign_of_life(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:9")
    server = await sandbox.start()
    client = await sandbox.connect(server)
    await until(lambda: _waits_for_sts_alone(client.health()))
    # A conventional kiam health knows errors only.
    assert await refusal(client.stub.GetHealth(kiam_pb2.GetHealthRequest(), timeout=5)) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "not ready: waiting for STS",
    )
    files = sandbox.pki.agent
    flags = [f"--server-address=localhost:{server.port}", "--timeout=10s"]
    flags += [f"--cert={files.cert}", f"--key={files.key}", f"--ca={files.ca}"]
    ended = await asyncio.to_thread(_kiam_health, *flags)
    assert (ended.returncode, ended.stderr) == (
        1,
        f"kiam health: the server at localhost:{server.port} answers, but isn't ready: 'not ready: waiting for STS'\n",
    )
    assert (await asyncio.to_thread(_kiam_health, *flags, "--live")).returncode == 0


async def _waits_for_sts_alone(health: Awaitable[str]) -> bool:
    return await health == "not ready: waiting for STS"


def _kiam_health(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kiam", "health", *flags], capture_output=True, text=True, timeout=120, check=False
    )


async def test_draining_server_answers_held_calls_at_once(sandbox: Sandbox) -> None:
    server = await sandbox.start()
    client = await sandbox.connect(server)
    await client.role("10.0.0.1")
    held = asyncio.create_task(refusal(client.role("10.0.0.9", 30)))
    await until(lambda: server.service is not None and len(server.service.arrivals) == 1)
    await server.drain(20)
    assert await held == (grpc.StatusCode.UNAVAILABLE, "shutting down")


async def test_repeated_refusals_are_counted_on_one_event(
    sandbox: Sandbox, kube: KubeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kiam.server.kubernetes.events.REPEAT_INTERVAL", 0.2)
    client = await sandbox.connect(await sandbox.start())
    for _ in range(5):
        await refusal(client.credentials("10.0.0.1", "role-b"))
    (event,) = await until(lambda: [event for event in kube.events() if event["count"] == 5])
    assert (event["type"], event["reason"], event["source"]) == (
        "Warning",
        "KiamRoleForbidden",
        {"component": "kiam.server"},
    )
    assert event["message"] == (
        "failed assuming role \"role-b\": requested 'role-b' but annotated with 'role-a', forbidden"
    )


async def test_pod_that_asks_for_ever_new_roles_gets_few_events(sandbox: Sandbox, kube: KubeApi) -> None:
    client = await sandbox.connect(await sandbox.start())
    for number in range(30):
        await refusal(client.credentials("10.0.0.1", f"guess-{number}"))
    await until(lambda: [e for e in kube.events() if e["message"].startswith("(combined from similar events)")])
    await until(lambda: len(kube.events()) == 11)
