"""What each node's agent needs, pushed over its WatchNode stream.

A change marks what it touches in the streams of the node concerned, and no other; each stream builds its updates from
the stores when it gets to write. A slow agent so costs a mark for each pod and identity of its node, never a queue:
however many changes it missed, it is sent the latest.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Set
from hashlib import blake2b
from typing import TypeVar

from prometheus_client import REGISTRY, CollectorRegistry, Gauge

from kiam.identity import Identity
from kiam.rpc import kiam_pb2
from kiam.server.aws.credentials import CredentialsManager
from kiam.server.kubernetes.events import CREDENTIAL_ERROR, EventRecorder
from kiam.server.kubernetes.objects import Pod
from kiam.server.kubernetes.store import MultiplePodsError, NamespaceStore, PodStore
from kiam.server.policy.judge import Judge
from kiam.server.policy.permitted import Refusal

MOST_EVENTS_FOR_FAILURE = 20
"""Pods of one identity and node that get an Event for one failed AssumeRole."""
MOST_OF_NODE = 8
"""Streams open for one node: its agent has one, a second one beside it for a moment, and so has the agent of its next
release while one takes over from the other."""
LONGEST_VERSION = 64
"""Characters kept of what an agent calls its version."""


_Key = tuple[str, str, str]


class NodeStream:
    """One agent's stream: what it holds, and what has changed since."""

    def __init__(
        self, hub: NodeStreams, node_name: str, host_ip: str, request: kiam_pb2.WatchNodeRequest, peer: str = ""
    ) -> None:
        """For the pods of a node by name, or if that is empty by address; ``peer``: where the agent connects from."""
        self._hub = hub
        self.peer = peer
        self.agent_version = request.agent_version[:LONGEST_VERSION]
        self.opened_at = time.monotonic()
        self.behind_since: float | None = None
        """When the oldest change that isn't written yet was marked; None: all are."""
        self.node_name = node_name
        self.host_ip = host_ip
        self.host_network_pods = request.host_network_pods
        self._gone: dict[str, None] = {}
        self._changed: dict[str, None] = {}
        self._identities: dict[Identity, None] = {}
        self._work = asyncio.Event()
        self._ended = False
        self._sent = {known.uid: known.fingerprint for known in request.known_pods}
        self._sent_expiration = {_key(known.identity): known.expiration for known in request.known_credentials}
        self._identity_of: dict[str, Identity] = {}
        # Counts and not sets: a set for each identity of each node would cost the garbage collector 30 ms.
        self._pods_with: dict[Identity, int] = {}

    def identities(self) -> Set[Identity]:
        """Those that pods sent may have."""
        return self._pods_with.keys()

    def pods_with(self, identity: Identity) -> list[str]:
        """UIDs of the pods sent that may have an identity."""
        return [uid for uid, other in self._identity_of.items() if other == identity]

    @property
    def pending(self) -> int:
        """Changes marked and not taken to be written."""
        return len(self._gone) + len(self._changed) + len(self._identities)

    def covers(self, pod: Pod) -> bool:
        """Whether the pod is this node's, and one that the agent can tell from others."""
        if pod.host_network and not self.host_network_pods:
            return False
        if self.node_name:
            return pod.node == self.node_name
        if pod.host_ip:
            return pod.host_ip == self.host_ip
        # Scheduled, and kubelet hasn't reported anything yet.
        return bool(pod.node) and pod.node == self._hub.pods.node_of_host(self.host_ip)

    def touch(self, uid: str, pod: Pod | None) -> None:
        """A pod may have changed, come or gone (None)."""
        self._changed.pop(uid, None)
        if pod is not None and self.covers(pod):
            self._gone.pop(uid, None)
            self._changed[uid] = None
        elif uid in self._sent:
            self._gone[uid] = None
        self._marked()

    def touch_identity(self, identity: Identity) -> None:
        """Credentials were issued, or could not be."""
        self._identities[identity] = None
        self._marked()

    @property
    def is_ended(self) -> bool:
        """Whether :meth:`end` was called."""
        return self._ended

    def end(self) -> None:
        """Let :meth:`wait` return False."""
        self._ended = True
        self._work.set()

    def start(self) -> None:
        """Mark everything: what the node has, and what the agent said it holds."""
        for uid in self._sent:
            self.touch(uid, self._hub.pods.get(uid))
        node = self.node_name or self._hub.pods.node_of_host(self.host_ip)
        for pod in self._hub.pods.of_node(node) if node else ():
            if self.covers(pod):
                self.touch(pod.uid, pod)

    async def wait(self) -> bool:
        """Until there may be updates; False: the stream is to end."""
        await self._work.wait()
        self._work.clear()
        return not self._ended

    def updates(self) -> Iterator[kiam_pb2.NodeUpdate]:
        """What is to be sent now. Withdrawals come first, whatever else waits: they are what keeps pods apart."""
        while True:
            if self._gone:
                uid = next(iter(self._gone))
                del self._gone[uid]
                update = self._withdraw(uid)
            elif self._changed:
                uid = next(iter(self._changed))
                del self._changed[uid]
                update = self._pod(uid)
            elif self._identities:
                identity = next(iter(self._identities))
                del self._identities[identity]
                update = self._credentials(identity)
            else:
                # Here once the last one was written: gRPC asks for the next when it has taken the one before.
                self.behind_since = None
                return
            if update is not None:
                yield update

    def _marked(self) -> None:
        if self.behind_since is None and self.pending:
            self.behind_since = time.monotonic()
        self._work.set()

    def _withdraw(self, uid: str) -> kiam_pb2.NodeUpdate | None:
        self._set_identity(uid, None)
        if self._sent.pop(uid, None) is None:
            return None
        return kiam_pb2.NodeUpdate(pod_withdrawn=kiam_pb2.PodWithdrawn(uid=uid))

    def _pod(self, uid: str) -> kiam_pb2.NodeUpdate | None:
        pod = self._hub.pods.get(uid)
        if pod is None or not self.covers(pod):
            return self._withdraw(uid)
        described = self._hub.describe(pod)
        if described is None:
            return self._withdraw(uid)
        message, identity = described
        self._set_identity(uid, identity)
        if self._sent.get(uid) == message.fingerprint:
            return None
        self._sent[uid] = message.fingerprint
        return kiam_pb2.NodeUpdate(pod=message)

    def _credentials(self, identity: Identity) -> kiam_pb2.NodeUpdate | None:
        # Only for identities that a pod of this node may have: an agent's stream carries no other node's credentials.
        if identity not in self._pods_with:
            return None
        # Those with little time left only if there will be no newer ones soon.
        held = self._hub.credentials.ready(identity)
        if held is not None and held.expiration > self._sent_expiration.get(_key_of(identity), ""):
            self._sent_expiration[_key_of(identity)] = held.expiration
            self._hub.credentials.count_push(identity)
            return kiam_pb2.NodeUpdate(
                credentials=kiam_pb2.IdentityCredentials(identity=identity.message(), credentials=held)
            )
        failure = self._hub.credentials.failure(identity)
        if failure is None:
            return None
        return kiam_pb2.NodeUpdate(
            credentials_failed=kiam_pb2.CredentialsFailed(
                identity=identity.message(),
                message=str(failure),
                retry_after_seconds=math.ceil(failure.retry_after),
            )
        )

    def _set_identity(self, uid: str, identity: Identity | None) -> None:
        before = self._identity_of.get(uid)
        if before == identity:
            return
        if before is not None:
            del self._identity_of[uid]
            self._pods_with[before] -= 1
            if not self._pods_with[before]:
                del self._pods_with[before]
                self._sent_expiration.pop(_key_of(before), None)
                self._hub.unsubscribe(self, before)
        if identity is not None:
            self._identity_of[uid] = identity
            self._pods_with[identity] = self._pods_with.get(identity, 0) + 1
            self._hub.subscribe(self, identity)
            self.touch_identity(identity)


class NodeStreams:
    """All open streams, by the node and the identities they are concerned with."""

    def __init__(
        self,
        pods: PodStore,
        namespaces: NamespaceStore,
        judge: Callable[[], Judge],
        credentials: CredentialsManager,
        events: EventRecorder,
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        """Listens to the stores and the credentials from now on."""
        self.pods = pods
        self.credentials = credentials
        self._judge = judge
        self._namespaces = namespaces
        self._events = events
        self._by_node: dict[str, set[NodeStream]] = {}
        self._by_host: dict[str, set[NodeStream]] = {}
        self._by_identity: dict[Identity, set[NodeStream]] = {}
        self._open: set[NodeStream] = set()
        self._ending = False
        Gauge("kiam_server_node_streams", "WatchNode streams open.", registry=registry).set_function(
            lambda: len(self._open)
        )
        pods.listen(self._pod_changed)
        namespaces.listen(self._namespace_changed)
        credentials.listen(self._issued, self._failed)

    def open(self, node_name: str, host_ip: str, request: kiam_pb2.WatchNodeRequest, peer: str = "") -> NodeStream:
        """Start a stream for a node; :meth:`close` it. ``peer``: the address it comes from."""
        stream = NodeStream(self, node_name, host_ip, request, peer)
        self._open.add(stream)
        index, key = self._place(stream)
        streams = index.setdefault(key, set())
        # Which attack: with one node's stolen key somebody opens streams until the memory of the server is full, each
        # with all that it says it holds. Those ended already go when their call is over.
        if len(current := [other for other in streams if not other.is_ended]) >= MOST_OF_NODE:
            min(current, key=lambda other: other.opened_at).end()
        streams.add(stream)
        if stream.host_network_pods:
            self.pods.want_host_network(key)
        stream.start()
        if self._ending:
            stream.end()
        return stream

    def close(self, stream: NodeStream) -> None:
        """Forget a stream."""
        self._open.discard(stream)
        index, key = self._place(stream)
        _discard(index, key, stream)
        for identity in stream.identities():
            _discard(self._by_identity, identity, stream)
        if stream.host_network_pods:
            self.pods.unwant_host_network(key)

    def end_all(self) -> None:
        """End every stream, and those that come yet."""
        self._ending = True
        for stream in self._open:
            stream.end()

    def end_open(self) -> None:
        """End the streams there are; others may come."""
        for stream in self._open:
            stream.end()

    def __iter__(self) -> Iterator[NodeStream]:
        """Those that are open."""
        return iter(self._open)

    def node_of(self, stream: NodeStream) -> str:
        """The node a stream is for, as far as it is known."""
        return stream.node_name or self.pods.node_of_host(stream.host_ip) or ""

    def has(self, node: str) -> bool:
        """Whether a stream for a node is open."""
        return bool(self._by_node.get(node)) or any(
            self.pods.node_of_host(host_ip) == node for host_ip in self._by_host
        )

    def hello(self, stream: NodeStream) -> kiam_pb2.NodeUpdate:
        """The first update."""
        node = self.node_of(stream)
        return kiam_pb2.NodeUpdate(
            hello=kiam_pb2.Hello(
                node_name=node,
                node_known=self.pods.knows_node(node),
                role_base_arn=self._judge().base_arn,
            )
        )

    def describe(self, pod: Pod) -> tuple[kiam_pb2.Pod, Identity | None] | None:
        """A pod as agents get it, and the identity it may have; None: that can't be told yet, so it has to wait."""
        judge = self._judge()
        with_role = judge.with_role(pod)
        if with_role is None:
            return None
        message = kiam_pb2.Pod(uid=pod.uid, namespace=pod.namespace, name=pod.name, role=with_role.role)
        message.host_network = pod.host_network
        message.imds_tokens = pod.imds_tokens or self._namespaces.imds_tokens(pod.namespace)
        message.addresses.extend(address for address in pod.addresses if self._has(pod, address))
        allowed = None
        if with_role.role:
            identity = judge.identity(with_role)
            decision = judge.decide(with_role, with_role.role)
            if decision.refusal is Refusal.UNDECIDED:
                return None
            message.identity.CopyFrom(identity.message())
            message.decision.allowed = decision.allowed
            message.decision.explanation = decision.explanation
            allowed = identity if decision.allowed else None
        digest = blake2b(message.SerializeToString(deterministic=True), digest_size=8)
        message.fingerprint = digest.hexdigest()
        return message, allowed

    def subscribe(self, stream: NodeStream, identity: Identity) -> None:
        """Have a stream touched when the identity's credentials change."""
        self._by_identity.setdefault(identity, set()).add(stream)

    def unsubscribe(self, stream: NodeStream, identity: Identity) -> None:
        """Undo :meth:`subscribe`."""
        _discard(self._by_identity, identity, stream)

    def _has(self, pod: Pod, address: str) -> bool:
        """Whether the address is the pod's alone on its node: a contested one is sent with nobody."""
        try:
            return self.pods.find(address, {pod.node}) is pod
        except MultiplePodsError:
            return False

    def _count_own(self, pod: Pod) -> int:
        return sum(self._has(pod, address) for address in pod.addresses)

    def _place(self, stream: NodeStream) -> tuple[dict[str, set[NodeStream]], str]:
        return (self._by_node, stream.node_name) if stream.node_name else (self._by_host, stream.host_ip)

    def _of(self, pod: Pod) -> Iterator[NodeStream]:
        yield from self._by_node.get(pod.node, ())
        if pod.host_ip:
            yield from self._by_host.get(pod.host_ip, ())
        elif pod.node:
            for host_ip, streams in self._by_host.items():
                if self.pods.node_of_host(host_ip) == pod.node:
                    yield from streams

    def _pod_changed(self, old: Pod | None, new: Pod | None) -> None:
        if not self._open:
            return
        if old is not None and (new is None or (old.node, old.host_ip) != (new.node, new.host_ip)):
            for stream in self._of(old):
                stream.touch(old.uid, new)
        affected: dict[str, Pod] = {}
        for pod in (old, new):
            for address in pod.addresses if pod else ():
                affected.update({other.uid: other for other in self.pods.claimants(address)})
        if new is not None:
            affected.pop(new.uid, None)
            affected[new.uid] = new
        # Who loses an address is told before who gains it, so that no agent sees two owners.
        for pod in sorted(affected.values(), key=self._count_own) if len(affected) > 1 else affected.values():
            self._touch(pod)

    def _namespace_changed(self, name: str) -> None:
        if self._open:
            for pod in self.pods.in_namespace(name):
                self._touch(pod)

    def _touch(self, pod: Pod) -> None:
        for stream in self._of(pod):
            stream.touch(pod.uid, pod)

    def _issued(self, identity: Identity) -> None:
        for stream in self._by_identity.get(identity, ()):
            stream.touch_identity(identity)

    def _failed(self, identity: Identity) -> None:
        failure = self.credentials.failure(identity)
        explain = failure is not None and self.credentials.peek(identity) is None
        for stream in self._by_identity.get(identity, ()):
            stream.touch_identity(identity)
            if explain:
                # Agents with a stream answer their pods themselves, so the Event can't wait for a pod's request.
                for uid in stream.pods_with(identity)[:MOST_EVENTS_FOR_FAILURE]:
                    pod = self.pods.get(uid)
                    if pod is not None:
                        self._events.record(pod, CREDENTIAL_ERROR, f"failed retrieving credentials: {failure}")


def _key(message: kiam_pb2.Identity) -> _Key:
    """What agents of every release send back of an identity."""
    return message.role_arn, message.session_name, message.external_id


def _key_of(identity: Identity) -> _Key:
    return identity.role_arn, identity.session_name, identity.wire_external_id()


KeyT = TypeVar("KeyT", str, Identity)


def _discard(index: dict[KeyT, set[NodeStream]], key: KeyT, stream: NodeStream) -> None:
    streams = index.get(key)
    if streams is not None:
        streams.discard(stream)
        if not streams:
            del index[key]
