"""What the server reads: annotations that tenants write, the watch, and what agents send it."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from typing import Any, cast

import msgspec
from google.protobuf.message import DecodeError
from prometheus_client import CollectorRegistry

from kiam.arns import LONGEST_ARN
from kiam.identity import Identity
from kiam.rpc import kiam_pb2
from kiam.server.aws.credentials import CredentialsManager
from kiam.server.grpc.node_streams import NodeStreams
from kiam.server.kubernetes.api import KubeApi, KubeError
from kiam.server.kubernetes.events import EventRecorder
from kiam.server.kubernetes.objects import UNREADABLE, Namespace, Pod, WirePod, read_pod
from kiam.server.kubernetes.reflector import Reflector, _TooOldError
from kiam.server.kubernetes.resources import PODS
from kiam.server.kubernetes.store import NamespaceStore, PodStore
from kiam.server.policy.evaluator import Evaluator
from kiam.server.policy.expressions import decide_namespace
from kiam.server.policy.judge import Judge
from kiam.server.policy.permitted import Decision, forbidden_message
from kiam.server.policy.sessions import Sessions
from kiam.server.settings import PolicySettings, SessionSettings

BASE = "arn:aws:iam::123456789012:role/"
ROLE_ARN = re.compile(r"arn:[\w-]+:iam::\d{12}:role/(?:[!-~]+/)?[\w+=,.@-]{1,64}", re.ASCII)
"""IAM's own rules for a role's ARN (IAM and STS API reference)."""
_decoder = msgspec.json.Decoder(WirePod)
_loop = asyncio.new_event_loop()


def tenant(data: bytes) -> None:
    """A pod's annotations and its namespace's expression, one a line: a decision is made and explained in one line,
    what STS may be asked for is a role's ARN, and nothing but the namespace's own expression permits it."""
    role, session, external_id, expression = (data.decode(errors="replace").split("\n", 3) + [""] * 4)[:4]
    words = {"role": role, "session-name": session, "external-id": external_id}
    metadata = {"uid": "u", "name": "p", "namespace": "ns"}
    metadata_with = {**metadata, "annotations": {f"iam.amazonaws.com/{name}": text for name, text in words.items()}}
    pod = read_pod(_decoder.decode(msgspec.json.encode({"metadata": metadata_with})))
    namespaces = NamespaceStore()
    namespaces.put(Namespace("n", "ns", expression))
    judge = _judge(namespaces)
    decision = judge.decide(pod, pod.role)
    _explained(pod, decision)
    # What a worker process does with expressions that may be costly.
    _explained(pod, decide_namespace(f"{BASE}cart", expression, strict=True))
    if decision.allowed:
        identity = judge.identity(pod)
        assert ROLE_ARN.fullmatch(identity.role_arn), identity
        assert len(identity.role_arn) <= LONGEST_ARN
        assert re.fullmatch(r"[\w+=,.@-]{2,64}", identity.session_name, re.ASCII), identity
        assert re.fullmatch(r"[\w+=,.@:/-]{2,1224}|", identity.external_id, re.ASCII), identity
        assert expression.strip()
    # What another pod asks for in this one's name is refused.
    assert not judge.decide(pod, pod.role + "x").allowed


def _judge(namespaces: NamespaceStore) -> Judge:
    evaluator = Evaluator(strict=True, told=lambda namespace: None)
    return Judge(namespaces, evaluator, BASE, Sessions(SessionSettings()), PolicySettings())


def _explained(pod: Pod, decision: Decision) -> None:
    message = forbidden_message(pod.role, decision)
    assert decision.allowed or decision.explanation
    assert "\n" not in message
    assert "\0" not in message


class _Stream:
    """The Kubernetes API, as far as one watch needs it."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    @contextlib.asynccontextmanager
    async def stream(self, path: str, query: Any, seconds: float) -> AsyncIterator[AsyncIterator[bytes]]:
        async def chunks() -> AsyncIterator[bytes]:
            half = len(self._data) // 2
            yield self._data[:half]
            yield self._data[half:]

        yield chunks()


def watch(data: bytes) -> None:
    """Lines of a watch: they are taken, or the watch fails as one that is begun anew; a pod's addresses are addresses,
    and one on the host network has none."""
    store = PodStore()
    reflector = Reflector(cast(KubeApi, _Stream(data)), PODS, store, 60)
    with contextlib.suppress(KubeError, *UNREADABLE, _TooOldError):
        _loop.run_until_complete(reflector._watch())
    for uid in store.uids():
        pod = store.get(uid)
        assert pod is not None
        assert not (pod.host_network and pod.addresses)
        for address in pod.addresses:
            assert re.fullmatch(r"[0-9a-f.:]+", address), address


def agent(data: bytes) -> None:
    """A WatchNodeRequest of a stolen agent, authorized for node n1 alone: whatever it claims to hold, it is told of no
    pod and no identity of another node."""
    try:
        message = kiam_pb2.WatchNodeRequest.FromString(data)
    except DecodeError:
        return
    _loop.run_until_complete(_open(message))


async def _open(message: kiam_pb2.WatchNodeRequest) -> None:
    pods, namespaces = PodStore(), NamespaceStore()
    namespaces.put(Namespace("n", "ns", ".*"))
    for node in ("n1", "n2"):
        pods.put(
            Pod(f"uid-{node}", "ns", node, node, "192.0.2.1", ("10.0.0.1",), f"role-{node}", "", "", True, False, False)
        )
    judge = _judge(namespaces)
    registry = CollectorRegistry()
    streams = NodeStreams(
        pods, namespaces, lambda: judge, cast(CredentialsManager, _Held()), cast(EventRecorder, None), registry
    )
    stream = streams.open("n1", "", message)
    sent = list(stream.updates())
    streams.close(stream)
    assert {update.pod.uid for update in sent if update.HasField("pod")} <= {"uid-n1"}
    secrets = {update.credentials.credentials.secret_access_key for update in sent if update.HasField("credentials")}
    assert secrets <= {f"of {BASE}role-n1"}, secrets


class _Held:
    """Credentials of every role, at hand: what a stream doesn't send isn't for want of them."""

    def listen(self, *_: object) -> None:
        """Nothing changes."""

    def ready(self, identity: Identity) -> kiam_pb2.Credentials:
        """As if STS had just issued them."""
        return kiam_pb2.Credentials(secret_access_key=f"of {identity.role_arn}", expiration="2100-01-01T00:00:00Z")

    def failure(self, identity: Identity) -> None:
        """None failed."""

    def count_push(self, identity: Identity) -> None:
        """Not counted."""
