"""Session tags, names and source identity, as STS receives them; and who then shares credentials."""

from __future__ import annotations

import pytest

from kiam.rpc import kiam_pb2
from kiam.server.settings import SessionSettings, TagScope
from tests.integration.server.conftest import Sandbox, Watch
from tests.sandbox.aws import AwsProcess
from tests.sandbox.kubeapi import KubeApi, namespace, pod
from tests.sandbox.process import until

CLUSTER = ("kubernetes-cluster", "prod")
NAMESPACE = ("kubernetes-namespace", "default")
ACCOUNT = ("kubernetes-service-account", "cart")
POD = (("kubernetes-pod-name", "a"), ("kubernetes-pod-uid", "u-a"))


@pytest.fixture(autouse=True)
def cluster(kube: KubeApi) -> None:
    kube.load(
        [
            namespace("default", ".*"),
            pod("a", "10.0.0.1", "app", node="n1", uid="u-a", service_account="cart"),
            pod("b", "10.0.0.2", "app", node="n1", uid="u-b", service_account="cart"),
        ]
    )


@pytest.mark.parametrize(
    ("scope", "tags", "calls"),
    [
        (TagScope.NONE, (), 1),
        (TagScope.NAMESPACE, (CLUSTER, NAMESPACE), 1),
        (TagScope.SERVICE_ACCOUNT, (CLUSTER, NAMESPACE, ACCOUNT), 1),
        (TagScope.POD, (CLUSTER, NAMESPACE, ACCOUNT, *POD), 2),
    ],
)
@pytest.mark.parametrize("transitive", [True, False])
async def test_sts_receives_the_tags_and_pods_alike_share_a_call(
    sandbox: Sandbox,
    aws: AwsProcess,
    scope: TagScope,
    tags: tuple[tuple[str, str], ...],
    calls: int,
    transitive: bool,
) -> None:
    settings = SessionSettings(cluster="prod", tags=scope)
    client = await sandbox.connect(await sandbox.start(sessions=settings, session_tags_transitive=transitive))
    one, other = await client.credentials("10.0.0.1", "app"), await client.credentials("10.0.0.2", "app")
    assert (one == other) is (calls == 1)
    received = aws.calls()
    assert len(received) == calls
    (first,) = [call for call in received if calls == 1 or call.tags["kubernetes-pod-uid"] == "u-a"]
    assert first.tags == dict(tags)
    assert first.transitive_tags == ([key for key, _ in tags] if transitive else [])


async def test_session_name_and_source_identity_are_filled_cut_and_hashed(
    sandbox: Sandbox, kube: KubeApi, aws: AwsProcess
) -> None:
    long = "x" * 60
    kube.load([pod(f"{long}-{end}", f"10.0.1.{end}", f"long{end}", uid=f"l{end}") for end in (1, 2)])
    settings = SessionSettings(
        session="{cluster}.{namespace}.{serviceaccount}.{pod}", cluster="prod/eu", source_identity="{namespace}.{pod}"
    )
    client = await sandbox.connect(await sandbox.start(sessions=settings))
    await client.credentials("10.0.0.1", "app")
    for end in (1, 2):
        await client.credentials(f"10.0.1.{end}", f"long{end}")
    calls = {call.role_arn.rpartition("/")[2] + call.source_identity[-1]: call for call in aws.calls()}
    assert calls["appa"].session_name == "kiam-prod-eu.default.cart.a"
    assert calls["appa"].source_identity == "default.a"
    longs = [call for call in aws.calls() if "/long" in call.role_arn]
    assert {len(call.session_name) for call in longs} == {64}
    assert len({call.session_name for call in longs}) == len({call.source_identity for call in longs}) == 2


async def test_pods_annotation_replaces_the_session_name_but_no_tag_and_no_source_identity(
    sandbox: Sandbox, kube: KubeApi, aws: AwsProcess
) -> None:
    forged = {"iam.amazonaws.com/session-name": "prod.default.admin"}
    kube.load([pod("forger", "10.0.0.9", "forged", annotations=forged, uid="u-f")])
    settings = SessionSettings(session="{pod}", cluster="prod", tags=TagScope.POD, source_identity="{pod}")
    client = await sandbox.connect(await sandbox.start(sessions=settings))
    await client.credentials("10.0.0.9", "forged")
    (call,) = [call for call in aws.calls() if call.role_arn.endswith("/forged")]
    assert call.session_name == "kiam-prod.default.admin"
    assert (call.source_identity, call.tags["kubernetes-pod-uid"]) == ("forger", "u-f")


def key_of_an_older_agent(identity: kiam_pb2.Identity) -> tuple[str, str, str]:
    return identity.role_arn, identity.session_name, identity.external_id


class OlderAgent:
    """Knows three fields of an identity, and keeps one set of credentials for each such key."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.identity_of: dict[str, tuple[str, str, str]] = {}
        self.held: dict[tuple[str, str, str], str] = {}

    async def until_pods_have_credentials(self, *names: str) -> dict[str, str]:
        while True:
            answers = {name: self.held[key] for name, key in self.identity_of.items() if key in self.held}
            if set(names) <= set(answers):
                return answers
            update = await self.watch.next()
            if update.HasField("pod"):
                self.identity_of[update.pod.name] = key_of_an_older_agent(update.pod.identity)
            elif update.HasField("credentials"):
                key = key_of_an_older_agent(update.credentials.identity)
                self.held[key] = update.credentials.credentials.access_key_id


@pytest.mark.parametrize(
    "settings",
    [
        SessionSettings(cluster="prod", tags=TagScope.POD),
        SessionSettings(source_identity="{pod}"),
    ],
)
async def test_older_agent_never_gives_one_pod_the_credentials_that_carry_another_ones_tags(
    sandbox: Sandbox, settings: SessionSettings
) -> None:
    client = await sandbox.connect(await sandbox.start(sessions=settings))
    answers = await OlderAgent(client.watch(node_name="n1")).until_pods_have_credentials("a", "b")
    assert answers["a"] == (await client.credentials("10.0.0.1", "app")).access_key_id
    assert answers["b"] == (await client.credentials("10.0.0.2", "app")).access_key_id
    assert answers["a"] != answers["b"]


async def test_external_id_that_looks_like_another_identitys_key_is_refused(
    sandbox: Sandbox, kube: KubeApi, aws: AwsProcess
) -> None:
    settings = SessionSettings(cluster="prod", tags=TagScope.POD)
    server = await sandbox.start(sessions=settings)
    client = await sandbox.connect(server)
    watch = client.watch(node_name="n1")
    await watch.until(lambda: "a" in watch.pods)
    stolen = {"iam.amazonaws.com/external-id": watch.pods["a"].identity.external_id}
    kube.apply(pod("thief", "10.0.0.3", "app", node="n1", annotations=stolen))
    await watch.until(lambda: "thief" in watch.pods)
    assert not watch.pods["thief"].decision.allowed
    await until(lambda: any("external id" in event["message"] for event in kube.events()))


async def test_resumed_stream_skips_tagged_credentials_that_the_agent_holds(sandbox: Sandbox, kube: KubeApi) -> None:
    settings = SessionSettings(cluster="prod", tags=TagScope.POD)
    client = await sandbox.connect(await sandbox.start(sessions=settings))
    first = client.watch(node_name="n1")
    held: dict[str, kiam_pb2.IdentityCredentials] = {}
    while len(held) < 2:
        update = await first.next()
        if update.HasField("credentials"):
            held[update.credentials.identity.external_id] = update.credentials
    again = client.watch(
        node_name="n1",
        known_pods=[kiam_pb2.KnownPod(uid=p.uid, fingerprint=p.fingerprint) for p in first.pods.values()],
        known_credentials=[
            kiam_pb2.KnownCredentials(identity=one.identity, expiration=one.credentials.expiration)
            for one in held.values()
        ],
    )
    await again.snapshot()
    kube.apply(pod("c", "10.0.0.3", None, node="n1"))
    await again.until(lambda: "c" in again.pods)
    assert again.log == ["hello", "snapshot_complete", "pod"]
