"""kiam explain: asked of a server, and worked out from the same cluster without one."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

import grpc
import pytest

from kiam.rpc import kiam_pb2
from kiam.server.run import Server
from kiam.tls import TLSFiles
from tests.integration.server.conftest import Client, Sandbox
from tests.integration.server.test_unary import refusal
from tests.integration.verify.site import KIAM
from tests.sandbox.aws import ROLE_BASE_ARN, AwsProcess
from tests.sandbox.kubeapi import KubeApi, namespace, pod

DIFFERENT = {"written", "sts", "claims", "node"}
"""Steps of which one of the two knows more."""


@pytest.fixture(autouse=True)
def cluster(kube: KubeApi) -> None:
    kube.load(
        [
            namespace("default", f"{ROLE_BASE_ARN}role-[a-d]"),
            pod("a", "10.0.0.1", " role-a\n", node="n1"),
            pod("b", "10.0.0.2", "role-z", node="n1"),
            pod("plain", "10.0.0.3", node="n1"),
            pod("c", "10.0.0.4", "role-c", node="n2"),
            pod("d", "10.0.0.4", "role-d", node="n2"),
        ]
    )


async def explain(client: Client, **request: str) -> dict[str, dict[str, kiam_pb2.ExplanationStep]]:
    answer = await client.stub.Explain(kiam_pb2.ExplainRequest(**request), timeout=5, wait_for_ready=True)
    return {one.pod: {step.name: step for step in one.steps} for one in answer.explanations}


async def ready(server: Server, client: Client, *addresses: str) -> None:
    await server.wait_ready()
    for address in addresses:
        await client.role(address)


def flags(files: TLSFiles, server: Server) -> list[str]:
    return [
        f"--cert={files.cert}",
        f"--key={files.key}",
        f"--ca={files.ca}",
        f"--server-address=localhost:{server.port}",
    ]


async def kiam(*words: str) -> tuple[int, str, str]:
    done = await asyncio.to_thread(
        subprocess.run, [KIAM, "explain", "--timeout=30s", *words], capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


async def test_server_knows_credentials_claimants_and_streams(sandbox: Sandbox) -> None:
    server = await sandbox.start()
    client = await sandbox.connect(server)
    await ready(server, client, "10.0.0.1")
    held = await client.credentials("10.0.0.1", "role-a")
    steps = (await explain(client, namespace="default", pod="a"))["a"]
    assert (steps["sts"].outcome, steps["node"].outcome) == ("ok", "note")
    assert held.expiration in steps["sts"].text
    watch = client.watch(node_name="n1")
    await watch.snapshot()
    steps = (await explain(client, namespace="default", pod="a"))["a"]
    assert {step.outcome for step in steps.values()} == {"ok", "note"}
    assert "has a stream" in steps["node"].text
    contested = (await explain(client, node="n2"))["c"]["claims"]
    assert (contested.outcome, "default/d" in contested.text) == ("failed", True)


async def test_aws_words_are_a_step_and_secrets_are_in_none(sandbox: Sandbox, aws: AwsProcess) -> None:
    aws.faults(sts="denied", roles="role-b$")
    sandbox.kube.load([pod("refused", "10.0.0.9", "role-b", node="n3")])
    server = await sandbox.start()
    client = await sandbox.connect(server)
    await ready(server, client, "10.0.0.9")
    held = await client.credentials("10.0.0.1", "role-a")
    await refusal(client.credentials("10.0.0.9", "role-b"))
    step = (await explain(client, namespace="default", pod="refused"))["refused"]["sts"]
    assert (step.outcome, "AccessDenied" in step.text) == ("failed", True)
    request = kiam_pb2.ExplainRequest(namespace="default", pod="a")
    said = str(await client.stub.Explain(request, timeout=5))
    for secret in (held.secret_access_key, held.token, held.access_key_id):
        assert secret not in said


async def test_certificate_of_a_node_explains_the_pods_of_that_node_only(sandbox: Sandbox) -> None:
    sandbox.kube.load([pod("twin", "10.0.0.1", "role-b", node="n2")])
    server = await sandbox.start(node_authorization=True)
    client = await sandbox.connect(server, sandbox.pki.issue("n1", ("n1",)))
    await ready(server, client, "10.0.0.1")
    assert set(await explain(client, node="n1")) == {"a", "b", "plain"}
    assert "claims" not in (await explain(client, namespace="default", pod="a"))["a"]
    other = (await explain(client, namespace="default", pod="c"))["c"]
    missing = (await explain(client, namespace="default", pod="nowhere"))["nowhere"]
    assert other["pod"].text == missing["pod"].text
    assert set(other) == {"pod"}
    code, text = await refusal(explain(client, node="n2"))
    assert (code, text) == (grpc.StatusCode.PERMISSION_DENIED, "the certificate speaks for n1, not for 'n2'")


async def test_pod_on_the_host_network_is_known_while_its_agent_tells_it_by_uid(sandbox: Sandbox) -> None:
    sandbox.kube.load([pod("host", "192.0.2.10", "role-a", node="n1", host_network=True)])
    server = await sandbox.start()
    client = await sandbox.connect(server)
    await ready(server, client, "10.0.0.1")
    before = (await explain(client, namespace="default", pod="host"))["host"]
    assert before["pod"].outcome == "failed"
    assert "--host-network=redirect" in before["pod"].text
    watch = client.watch(node_name="n1", host_network_pods=True)
    await watch.snapshot()
    steps = (await explain(client, namespace="default", pod="host"))["host"]
    assert (steps["host-network"].outcome, steps["permission"].outcome, steps["node"].outcome) == ("ok", "ok", "ok")


async def test_what_asks_about_nothing_is_an_invalid_argument(sandbox: Sandbox) -> None:
    client = await sandbox.connect(await sandbox.start())
    assert (await refusal(explain(client, namespace="default")))[0] is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(("name", "code"), [("a", 0), ("b", 1), ("plain", 1), ("nowhere", 1)])
async def test_command_says_the_same_with_a_server_and_without(
    sandbox: Sandbox, pki_flags: list[str], alone_flags: list[str], name: str, code: int
) -> None:
    asked, alone = await asyncio.gather(
        kiam(name, "--output=json", *pki_flags), kiam(name, "--output=json", *alone_flags)
    )
    assert (asked[0], alone[0]) == (code, code), (asked, alone)
    assert common(asked[1]) == common(alone[1]) != []


async def test_command_explains_a_node_and_counts_the_pods_that_name_a_role(
    sandbox: Sandbox, pki_flags: list[str], alone_flags: list[str]
) -> None:
    for found in (await kiam("--node=n1", *pki_flags), await kiam("--node=n1", *alone_flags)):
        code, out, _ = found
        assert code == 1
        assert "default/a gets its role\n" in out
        assert "default/b does not get a role\n" in out
        assert "-> kubectl annotate --overwrite namespace default 'iam.amazonaws.com/permitted=(?:" in out
    sandbox.kube.delete("pods", "b", "default")
    assert (await kiam("--node=n1", *alone_flags))[0] == 0


@pytest.mark.parametrize(
    ("name", "given", "outcome", "code"),
    [
        ("host", [], "undecided", 1),
        ("host", ["--host-network=ignore"], "failed", 1),
        ("host", ["--host-network=deny"], "failed", 1),
        ("host", ["--host-network=redirect"], "ok", 0),
        ("bare", ["--host-network=redirect"], "failed", 1),
    ],
)
async def test_command_decides_about_the_host_network_by_the_agents_flag(
    sandbox: Sandbox, alone_flags: list[str], name: str, given: list[str], outcome: str, code: int
) -> None:
    role = "role-a" if name == "host" else None
    sandbox.kube.load([pod(name, "192.0.2.10", role, node="n1", host_network=True)])
    ended, out, _ = await kiam(name, "--output=json", *alone_flags, *given)
    (explained,) = json.loads(out)["pods"]
    assert ended == code
    assert [step["outcome"] for step in explained["steps"] if step["name"] == "host-network"] == [outcome]


async def test_annotation_as_written_is_known_without_a_server(alone_flags: list[str]) -> None:
    _, out, _ = await kiam("a", *alone_flags)
    assert r"iam.amazonaws.com/role is written ' role-a\n', and trimmed" in out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["a"], "a server is asked with --cert, --key and --ca; or give --kubeconfig"),
        ([], "give a pod's name, or a node's with --node"),
        (["a", "--node=n1"], "give a pod's name, or a node's with --node"),
        (["a", "--kubeconfig=x"], "--kubeconfig needs --role-base-arn"),
        (["a", "--kubeconfig=/nowhere", f"--role-base-arn={ROLE_BASE_ARN}"], "--kubeconfig: /nowhere: No such file"),
    ],
)
async def test_what_is_missing_is_one_line(words: list[str], line: str) -> None:
    code, out, err = await kiam(*words)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert line in err


async def test_server_that_cannot_be_reached_or_refuses_is_one_line(sandbox: Sandbox) -> None:
    server = await sandbox.start(node_authorization=True)
    client = await sandbox.connect(server, sandbox.pki.issue("n1", ("n1",)))
    await ready(server, client, "10.0.0.1")
    mine = flags(sandbox.pki.issue("n1b", ("n1",)), server)
    code, out, err = await kiam("--node=n2", *mine)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "speaks for n1, not for 'n2'; use a certificate of that node" in err
    code, out, err = await kiam("a", *mine, "--server-address=127.0.0.1:9")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "no connection to the server at 127.0.0.1:9" in err


@pytest.fixture
async def pki_flags(sandbox: Sandbox) -> list[str]:
    server = await sandbox.start()
    await ready(server, await sandbox.connect(server), "10.0.0.1", "10.0.0.2", "10.0.0.3")
    return flags(sandbox.pki.agent, server)


@pytest.fixture
def alone_flags(sandbox: Sandbox, tmp_path: Path) -> list[str]:
    return [f"--kubeconfig={sandbox.config.kubeconfig}", f"--role-base-arn={ROLE_BASE_ARN}"]


def common(out: str) -> list[dict[str, Any]]:
    """The steps that both know, of the one pod."""
    (explained,) = json.loads(out)["pods"]
    return [step for step in explained["steps"] if step["name"] not in DIFFERENT]
