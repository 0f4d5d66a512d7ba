"""One agent's WatchNode stream: what it holds, and what is to be written to it.

A change marks what it touches, and the stream builds its updates from the stores when it gets to write. A slow agent
so costs a mark for each pod and identity of its node, never a queue: however many changes it missed, it is sent the
latest.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator, Set
from typing import TYPE_CHECKING

from kiam.identity import Identity
from kiam.rpc import kiam_pb2
from kiam.server.kubernetes.objects import Pod

if TYPE_CHECKING:
    from kiam.server.grpc.node_streams import NodeStreams

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
        self.agent_pod = request.agent_pod if request.HasField("agent_pod") else None
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


def _key(message: kiam_pb2.Identity) -> _Key:
    """What agents of every release send back of an identity."""
    return message.role_arn, message.session_name, message.external_id


def _key_of(identity: Identity) -> _Key:
    return identity.role_arn, identity.session_name, identity.wire_external_id()
