"""What each node's agent needs, pushed over its WatchNode stream.

A change marks what it touches in the streams of the node concerned, and no other
(:class:`kiam.server.grpc.node_stream.NodeStream`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from typing import TypeVar

from prometheus_client import REGISTRY, CollectorRegistry, Gauge

from kiam.identity import Identity
from kiam.rpc import kiam_pb2
from kiam.server.aws.credentials import CredentialsManager
from kiam.server.grpc.agent_certificates import expiring
from kiam.server.grpc.node_stream import NodeStream
from kiam.server.kubernetes.events import CERTIFICATE_EXPIRING, CREDENTIAL_ERROR, EXPIRY_EVENT_SECONDS, EventRecorder
from kiam.server.kubernetes.objects import Pod
from kiam.server.kubernetes.store import MultiplePodsError, NamespaceStore, PodStore
from kiam.server.policy.judge import Judge
from kiam.server.policy.permitted import Refusal
from kiam.tls.reload import utc_now

MOST_EVENTS_FOR_FAILURE = 20
"""Pods of one identity and node that get an Event for one failed AssumeRole."""
MOST_OF_NODE = 8
"""Streams open for one node: its agent has one, a second one beside it for a moment, and so has the agent of its next
release while one takes over from the other."""


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
        self._warn_of_certificates([stream])
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

    async def tell_of_expiry(self) -> None:
        """Keep an Event, for ever, on the pod of each agent whose certificate expires soon."""
        while True:
            await asyncio.sleep(EXPIRY_EVENT_SECONDS)
            self._warn_of_certificates(self._open)

    def _warn_of_certificates(self, streams: Iterable[NodeStream]) -> None:
        agents = [(self.node_of(stream), stream.agent_pod) for stream in streams if stream.agent_pod is not None]
        for pod, message in expiring(agents, self.pods, utc_now()):
            self._events.record(pod, CERTIFICATE_EXPIRING, message)

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


KeyT = TypeVar("KeyT", str, Identity)


def _discard(index: dict[KeyT, set[NodeStream]], key: KeyT, stream: NodeStream) -> None:
    streams = index.get(key)
    if streams is not None:
        streams.discard(stream)
        if not streams:
            del index[key]
