"""WatchNode: what a node's agent is pushed, and what it is not."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from grpc import aio

from kiam.rpc import kiam_pb2
from tests.integration.server.conftest import Client, Sandbox, Watch
from tests.sandbox.aws import ROLE_BASE_ARN, AwsProcess
from tests.sandbox.kubeapi import KubeApi, namespace, pod
from tests.sandbox.process import until


@pytest.fixture(autouse=True)
def cluster(kube: KubeApi) -> None:
    kube.load(
        [
            namespace("default", ".*"),
            pod("a", "10.0.0.1", "role-a", node="n1", host_address="192.0.2.1"),
            pod("b", "10.0.0.2", "role-b", node="n1", host_address="192.0.2.1"),
            pod("elsewhere", "10.0.1.1", "role-c", node="n2", host_address="192.0.2.2"),
        ]
    )


async def test_snapshot_is_hello_then_the_nodes_pods_and_credentials_then_the_marker(sandbox: Sandbox) -> None:
    watch = (await sandbox.connect(await sandbox.start())).watch(node_name="n1")
    hello = (await watch.next()).hello
    assert (hello.node_name, hello.role_base_arn) == ("n1", ROLE_BASE_ARN)
    await watch.snapshot()
    assert watch.log[0] == "hello"
    assert set(watch.pods) == {"a", "b"}
    a = watch.pods["a"]
    assert (a.namespace, list(a.addresses), a.role) == ("default", ["10.0.0.1"], "role-a")
    assert a.identity == kiam_pb2.Identity(role_arn=f"{ROLE_BASE_ARN}role-a", session_name="kiam-kiam")
    assert a.decision == kiam_pb2.Decision(allowed=True)
    assert len(a.fingerprint) == 16
    await watch.until(lambda: set(watch.credentials) == {"role-a", "role-b"})


async def test_node_is_found_by_its_address_when_it_is_not_named(sandbox: Sandbox) -> None:
    watch = (await sandbox.connect(await sandbox.start())).watch(host_ip="::ffff:192.0.2.2")
    assert (await watch.next()).hello.node_name == "n2"
    await watch.snapshot()
    assert set(watch.pods) == {"elsewhere"}


async def test_first_pod_of_a_node_known_by_address_only_is_pushed(sandbox: Sandbox, kube: KubeApi) -> None:
    watch = (await sandbox.connect(await sandbox.start())).watch(host_ip="192.0.2.9")
    await watch.snapshot()
    assert not watch.pods
    kube.apply(pod("first", "10.0.9.1", "role-a", node="n9", host_address="192.0.2.9"))
    await watch.until(lambda: "first" in watch.pods)


async def opened(client: Client, node: str) -> Watch:
    watch = client.watch(node_name=node)
    await watch.snapshot()
    return watch


async def test_of_too_many_streams_for_one_node_the_oldest_ends(sandbox: Sandbox, kube: KubeApi) -> None:
    client = await sandbox.connect(await sandbox.start())
    other, *watches = [await opened(client, node) for node in ("n2", *["n1"] * 9)]
    with pytest.raises(aio.AioRpcError) as failed:
        await watches[0].until(lambda: False)
    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
    kube.apply(pod("late", "10.0.0.3", "role-a", node="n1", host_address="192.0.2.1"))
    await watches[1].until(lambda: "late" in watches[1].pods)
    kube.apply(pod("late-elsewhere", "10.0.1.3", "role-a", node="n2", host_address="192.0.2.2"))
    await other.until(lambda: "late-elsewhere" in other.pods)


async def test_stream_for_no_node_is_refused(sandbox: Sandbox) -> None:
    watch = (await sandbox.connect(await sandbox.start())).watch()
    with pytest.raises(aio.AioRpcError) as refusal:
        await watch.next()
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_resumed_stream_carries_only_what_differs(sandbox: Sandbox, kube: KubeApi) -> None:
    server = await sandbox.start()
    client = await sandbox.connect(server)
    first = client.watch(node_name="n1")
    await first.snapshot()
    await first.until(lambda: len(first.credentials) == 2)
    first.call.cancel()
    kube.delete("pods", "b", "default")
    kube.apply(pod("new", "10.0.0.3", "role-a", node="n1", host_address="192.0.2.1"))
    await until(lambda: sandbox.metric("kiam_server_node_streams") == 0)
    probe = client.watch(node_name="n1")
    await probe.until(lambda: "new" in probe.pods and "b" not in probe.pods)
    known = [kiam_pb2.KnownPod(uid=p.uid, fingerprint=p.fingerprint) for p in first.pods.values()]
    identities = [
        kiam_pb2.KnownCredentials(identity=p.identity, expiration=first.credentials[p.role].expiration)
        for p in first.pods.values()
    ]
    stale = kiam_pb2.KnownPod(uid="never-existed", fingerprint="x")
    again = client.watch(node_name="n1", known_pods=[*known, stale], known_credentials=identities)
    await again.snapshot()
    assert sorted(again.log) == ["hello", "pod", "pod_withdrawn", "pod_withdrawn", "snapshot_complete"]
    assert set(again.pods) == {"new"}


async def test_fingerprints_are_the_same_on_every_replica(sandbox: Sandbox) -> None:
    seen = []
    for _ in range(2):
        watch = (await sandbox.connect(await sandbox.start())).watch(node_name="n1")
        await watch.snapshot()
        seen.append({name: p.fingerprint for name, p in watch.pods.items()})
    assert seen[0] == seen[1]
    assert len(set(seen[0].values())) == 2


async def test_changes_are_pushed_as_they_happen(sandbox: Sandbox, kube: KubeApi) -> None:
    watch = (await sandbox.connect(await sandbox.start())).watch(node_name="n1")
    await watch.snapshot()
    await watch.until(lambda: len(watch.credentials) == 2)
    # Annotation.
    kube.apply(pod("a", "10.0.0.1", "role-d", node="n1", host_address="192.0.2.1", uid=watch.pods["a"].uid))
    await watch.until(lambda: watch.pods["a"].role == "role-d" and "role-d" in watch.credentials)
    # Address.
    kube.apply(pod("a", "10.0.0.7", "role-d", node="n1", host_address="192.0.2.1", uid=watch.pods["a"].uid))
    await watch.until(lambda: list(watch.pods["a"].addresses) == ["10.0.0.7"])
    # Phase.
    kube.apply(
        pod("a", "10.0.0.7", "role-d", node="n1", host_address="192.0.2.1", uid=watch.pods["a"].uid, phase="Succeeded")
    )
    await watch.until(lambda: "a" not in watch.pods)
    # Deletion.
    kube.delete("pods", "b", "default")
    await watch.until(lambda: not watch.pods)


async def test_namespace_that_permits_no_more_withdraws_the_permission_at_once(sandbox: Sandbox, kube: KubeApi) -> None:
    watch = (await sandbox.connect(await sandbox.start())).watch(node_name="n1")
    await watch.snapshot()
    kube.apply(namespace("default", ".*/role-b"))
    await watch.until(lambda: not watch.pods["a"].decision.allowed)
    assert watch.pods["a"].decision.explanation == (
        f"namespace policy expression '.*/role-b' forbids role '{ROLE_BASE_ARN}role-a'"
    )
    assert watch.pods["b"].decision.allowed
    kube.delete("namespaces", "default")
    await watch.until(lambda: "b" not in watch.pods)


async def test_token_mode_is_the_pods_annotation_or_its_namespaces(sandbox: Sandbox, kube: KubeApi) -> None:
    watch = (await sandbox.connect(await sandbox.start())).watch(node_name="n1")
    await watch.snapshot()
    assert watch.pods["a"].imds_tokens == ""
    marked = namespace("default", ".*")
    marked["metadata"].setdefault("annotations", {})["iam.amazonaws.com/imds-tokens"] = "required\n"
    kube.apply(marked)
    await watch.until(lambda: {pod.imds_tokens for pod in watch.pods.values()} == {"required"})
    own = pod("a", "10.0.0.2", "role-a", node="n1", host_address="192.0.2.1")
    own["metadata"]["annotations"]["iam.amazonaws.com/imds-tokens"] = "passed-on"
    kube.apply(own)
    await watch.until(lambda: watch.pods["a"].imds_tokens == "passed-on")
    assert watch.pods["b"].imds_tokens == "required"


async def test_other_nodes_pods_and_credentials_are_never_sent(sandbox: Sandbox, kube: KubeApi) -> None:
    watch = (await sandbox.connect(await sandbox.start())).watch(node_name="n1")
    await watch.snapshot()
    await watch.until(lambda: len(watch.credentials) == 2)
    await watch.quiet(
        lambda: kube.load(
            [
                pod("elsewhere", "10.0.1.2", "role-e", node="n2", host_address="192.0.2.2"),
                pod("another", "10.0.1.3", "role-a", node="n3", host_address="192.0.2.3"),
                pod("unannotated", "10.0.0.4", node="n1", host_address="192.0.2.1"),
            ]
        )
    )
    assert set(watch.pods) == {"a", "b", "unannotated"}
    assert set(watch.credentials) == {"role-a", "role-b"}
    assert not watch.pods["unannotated"].HasField("identity")


async def test_host_network_and_finished_pods_are_not_sent(sandbox: Sandbox, kube: KubeApi) -> None:
    kube.load(
        [
            pod("host", "192.0.2.1", "role-a", node="n1", host_address="192.0.2.1", host_network=True),
            pod("done", "10.0.0.5", "role-a", node="n1", host_address="192.0.2.1", phase="Failed"),
        ]
    )
    watch = (await sandbox.connect(await sandbox.start())).watch(node_name="n1")
    await watch.snapshot()
    assert set(watch.pods) == {"a", "b"}


async def test_annotated_host_network_pods_are_sent_without_addresses_to_those_who_ask(
    sandbox: Sandbox, kube: KubeApi
) -> None:
    on_node: dict[str, Any] = {"node": "n1", "host_address": "192.0.2.1", "host_network": True}
    kube.load([pod("host", "192.0.2.1", "role-h", **on_node), pod("plain", "192.0.2.1", **on_node)])
    client = await sandbox.connect(await sandbox.start())
    before = client.watch(node_name="n1")
    await before.snapshot()
    await before.until(lambda: len(before.credentials) == 2)
    watch = client.watch(node_name="n1", host_network_pods=True)
    await watch.until(lambda: "role-h" in watch.credentials)
    assert set(watch.pods) == {"a", "b", "host"}
    host = watch.pods["host"]
    assert host.host_network
    assert not host.addresses
    assert host.decision.allowed
    # By address they stay unknown, and who doesn't ask hears nothing of them.
    with pytest.raises(aio.AioRpcError) as refusal:
        await client.stub.GetPodRole(kiam_pb2.GetPodRoleRequest(ip="192.0.2.1"), timeout=0.5)
    assert refusal.value.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.DEADLINE_EXCEEDED)
    later = pod("later", "10.0.0.4", node="n1", host_address="192.0.2.1")
    await before.quiet(lambda: kube.load([pod("host", "192.0.2.1", "role-i", uid=host.uid, **on_node), later]))
    await watch.until(lambda: "role-i" in watch.credentials)
    assert set(before.pods) == {"a", "b", "later"}
    # The annotation gone, so is the pod.
    kube.apply(pod("host", "192.0.2.1", uid=host.uid, **on_node))
    await watch.until(lambda: "host" not in watch.pods)


async def test_host_network_pod_is_withdrawn_from_an_agent_that_no_longer_tells_them_apart(
    sandbox: Sandbox, kube: KubeApi
) -> None:
    kube.apply(pod("host", "192.0.2.1", "role-a", node="n1", host_address="192.0.2.1", host_network=True))
    client = await sandbox.connect(await sandbox.start())
    watch = client.watch(node_name="n1", host_network_pods=True)
    await watch.until(lambda: "host" in watch.pods)
    host = watch.pods["host"]
    known = [kiam_pb2.KnownPod(uid=host.uid, fingerprint=host.fingerprint)]
    again = client.watch(node_name="n1", known_pods=known)
    await again.snapshot()
    assert "pod_withdrawn" in again.log
    assert set(again.pods) == {"a", "b"}


async def test_contested_address_is_sent_with_nobody_until_one_claim_is_left(sandbox: Sandbox, kube: KubeApi) -> None:
    watch = (await sandbox.connect(await sandbox.start())).watch(node_name="n1")
    await watch.snapshot()
    kube.apply(pod("thief", "10.0.0.1", "role-b", node="n1", host_address="192.0.2.1"))
    await watch.until(lambda: "thief" in watch.pods)
    assert not watch.pods["a"].addresses
    assert not watch.pods["thief"].addresses
    kube.delete("pods", "a", "default")
    await watch.until(lambda: "a" not in watch.pods and list(watch.pods["thief"].addresses) == ["10.0.0.1"])


async def test_terminating_pod_gives_its_address_to_the_newcomer_and_first_loses_it(
    sandbox: Sandbox, kube: KubeApi
) -> None:
    watch = (await sandbox.connect(await sandbox.start())).watch(node_name="n1")
    await watch.snapshot()
    leaving = kube.get("pods", "a", "default")
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    kube.apply(leaving)
    kube.apply(pod("newcomer", "10.0.0.1", "role-b", node="n1", host_address="192.0.2.1"))
    owners: set[str] = {"a"}
    while "newcomer" not in watch.pods or not watch.pods["newcomer"].addresses:
        await watch.next()
        owners = {name for name, p in watch.pods.items() if "10.0.0.1" in p.addresses}
        assert len(owners) <= 1
    assert owners == {"newcomer"}


async def test_refusal_of_sts_is_pushed_with_its_reason_and_explained_by_an_event(
    sandbox: Sandbox, kube: KubeApi, aws: AwsProcess
) -> None:
    aws.faults(sts="denied", roles="role-a$")
    watch = (await sandbox.connect(await sandbox.start())).watch(node_name="n1")
    await watch.until(lambda: "role-a" in watch.failures)
    failure = watch.failures["role-a"]
    assert failure.message.startswith("AccessDenied: User is not authorized to perform: sts:AssumeRole")
    assert failure.retry_after_seconds >= 1
    (event,) = await until(kube.events)
    assert event["reason"] == "KiamCredentialError"
    assert event["message"] == f"failed retrieving credentials: {failure.message}"
    assert event["involvedObject"]["name"] == "a"
    aws.faults()
    await watch.until(lambda: "role-a" in watch.credentials)


async def test_renewed_credentials_are_pushed(sandbox: Sandbox, aws: AwsProcess) -> None:
    aws.faults(lifetime=4)
    watch = (await sandbox.connect(await sandbox.start())).watch(node_name="n1")
    await watch.until(lambda: "role-a" in watch.credentials)
    first = watch.credentials["role-a"]
    await watch.until(lambda: watch.credentials["role-a"].access_key_id != first.access_key_id)
    assert watch.credentials["role-a"].expiration > first.expiration


async def test_server_that_ends_ends_its_streams_with_unavailable(sandbox: Sandbox) -> None:
    server = await sandbox.start()
    watch = (await sandbox.connect(server)).watch(node_name="n1")
    await watch.snapshot()
    await server.drain(5)
    with pytest.raises(aio.AioRpcError) as end:
        await watch.until(lambda: False)
    assert end.value.code() is grpc.StatusCode.UNAVAILABLE
    assert sandbox.metric("kiam_server_node_streams") == 0


async def test_agent_that_reads_nothing_is_later_sent_the_latest_and_not_every_change(
    sandbox: Sandbox, kube: KubeApi
) -> None:
    client = await sandbox.connect(await sandbox.start())
    watch = client.watch(node_name="n1")
    await watch.snapshot()
    await watch.until(lambda: len(watch.credentials) == 2)
    long = "x" * 1500
    total = 400
    for number in range(total):
        kube.apply(
            pod("b", "10.0.0.2", f"{long}-{number}", node="n1", host_address="192.0.2.1", uid=watch.pods["b"].uid)
        )
    kube.apply(pod("last", "10.0.0.6", node="n1", host_address="192.0.2.1"))
    other = client.watch(node_name="n1")
    await other.until(lambda: "last" in other.pods)
    before = len(watch.log)
    await watch.until(lambda: "last" in watch.pods and watch.pods["b"].role.endswith(f"-{total - 1}"))
    assert len(watch.log) - before < total


@pytest.mark.parametrize("request_", [{"node_name": "n1"}, {"host_ip": "192.0.2.1"}])
async def test_pod_is_pushed_from_the_moment_it_is_scheduled_and_its_credentials_are_fetched(
    sandbox: Sandbox, kube: KubeApi, request_: dict[str, str]
) -> None:
    watch = (await sandbox.connect(await sandbox.start())).watch(**request_)
    await watch.snapshot()
    scheduled = pod("early", None, "role-early", node="n1", phase="Pending", uid="u-early")
    scheduled["status"] = {"phase": "Pending"}
    kube.apply(scheduled)
    await watch.until(lambda: "early" in watch.pods and "role-early" in watch.credentials)
    assert (watch.pods["early"].uid, list(watch.pods["early"].addresses)) == ("u-early", [])
    kube.apply(pod("early", "10.0.0.77", "role-early", node="n1", host_address="192.0.2.1", uid="u-early"))
    await watch.until(lambda: list(watch.pods["early"].addresses) == ["10.0.0.77"])
    assert "pod_withdrawn" not in watch.log
