"""What the server pushed about this node: its pods, and their credentials ready to be sent.

No I/O and no clock. Everything that a request needs is worked out when an update comes in.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from kiam.addresses import canonical_address
from kiam.agent.core.failures import CredentialsUnavailable, credentials_unavailable, empty_role, forbidden
from kiam.agent.core.identities import KnownPod
from kiam.agent.core.rendering import expiry, render_credentials
from kiam.arns import resolve_role_arn
from kiam.identity import Identity
from kiam.rpc import kiam_pb2

log = logging.getLogger(__name__)


class HeldCredentials:
    """The credentials of one identity as they are now: a body to send, a reason why not, or neither yet."""

    __slots__ = ("body", "expiration", "expires_at", "failure", "users")

    def __init__(self) -> None:
        self.body = b""
        self.expiration = ""
        self.expires_at = 0.0
        self.failure: CredentialsUnavailable | None = None
        self.users: set[str] = set()


@dataclass(frozen=True, slots=True)
class NodePod:
    """A pod of this node as the server pushed it."""

    uid: str
    namespace: str
    name: str
    addresses: tuple[str, ...]
    role: str
    role_body: bytes
    role_arn: str
    identity: Identity
    allowed: bool
    fingerprint: str
    held: HeldCredentials
    known: KnownPod
    is_on_host_network: bool = False
    """It shares the node's address, so only its UID tells it apart."""


class PushedPods:
    """The node's pods by UID and by address, and the credentials they may have."""

    def __init__(self) -> None:
        self.role_base_arn = ""
        self.pods: dict[str, NodePod] = {}
        self._by_address: dict[str, NodePod] = {}
        # All pods that claim an address; with more than one, none is believed.
        self._claims: dict[str, dict[str, NodePod]] = {}
        self._held: dict[Identity, HeldCredentials] = {}
        self.pod_at: Callable[[str], NodePod | None] = self._by_address.get
        """The one pod that has an address. Asked for each answer, so no method of ours in between."""
        self.woken: set[str] = set()
        """Addresses and UIDs that something has changed for; whoever wakes those who wait for it empties this."""

    # ---- questions

    def is_shared(self, address: str) -> bool:
        """Whether several active pods are said to have the address."""
        return len(self._claims.get(address, ())) > 1

    def known(self) -> tuple[list[kiam_pb2.KnownPod], list[kiam_pb2.KnownCredentials]]:
        """What is held, in the words of WatchNodeRequest."""
        pods = [kiam_pb2.KnownPod(uid=pod.uid, fingerprint=pod.fingerprint) for pod in self.pods.values()]
        credentials = [
            kiam_pb2.KnownCredentials(identity=identity.message(), expiration=held.expiration)
            for identity, held in self._held.items()
            if held.body
        ]
        return pods, credentials

    # ---- updates

    def apply(self, update: kiam_pb2.NodeUpdate) -> set[str]:
        """Take one update in; the addresses whose pod may have changed."""
        kind = update.WhichOneof("update")
        if kind == "pod":
            return self._put_pod(update.pod)
        if kind == "pod_withdrawn":
            return self._withdraw(update.pod_withdrawn.uid)
        if kind == "credentials":
            self._put_credentials(update.credentials)
        elif kind == "credentials_failed":
            self._put_failure(update.credentials_failed)
        elif kind == "hello":
            # What requests are read with; the server's own ARNs of the pods' identities stay what decides.
            self.role_base_arn = update.hello.role_base_arn
        return set()

    def clear(self) -> set[str]:
        """Forget everything; the addresses that had pods."""
        changed = set(self._claims)
        self.pods.clear()
        self._by_address.clear()
        self._claims.clear()
        self._held.clear()
        self.woken.update(changed)
        return changed

    def _put_pod(self, message: kiam_pb2.Pod) -> set[str]:
        changed = self._take_out(message.uid)
        addresses = []
        for text in message.addresses:
            try:
                addresses.append(canonical_address(text))
            except ValueError:
                log.warning("the server pushed an address that is none", extra={"address": ascii(text)})
        identity = Identity.of(message.identity)
        pod = NodePod(
            uid=message.uid,
            namespace=message.namespace,
            name=message.name,
            addresses=tuple(addresses),
            role=message.role,
            role_body=message.role.encode(),
            role_arn=identity.role_arn,
            identity=identity,
            allowed=message.decision.allowed and bool(message.role) and bool(identity.role_arn),
            fingerprint=message.fingerprint,
            held=self._held.setdefault(identity, HeldCredentials()),
            known=KnownPod(message.uid, message.namespace, message.name, message.role, message.imds_tokens),
            is_on_host_network=message.host_network,
        )
        pod.held.users.add(pod.uid)
        self.pods[pod.uid] = pod
        for address in addresses:
            self._claims.setdefault(address, {})[pod.uid] = pod
            self._settle(address)
        changed.update(addresses)
        self._drop_unused()
        self.woken.update(changed, (pod.uid,))
        return changed

    def _withdraw(self, uid: str) -> set[str]:
        changed = self._take_out(uid)
        self._drop_unused()
        self.woken.update(changed)
        return changed

    def _take_out(self, uid: str) -> set[str]:
        pod = self.pods.pop(uid, None)
        if pod is None:
            return set()
        pod.held.users.discard(uid)
        for address in pod.addresses:
            del self._claims[address][uid]
            self._settle(address)
        return set(pod.addresses)

    def _settle(self, address: str) -> None:
        """Believe the address's pod if exactly one claims it: an old and a new pod can't both have it."""
        claims = self._claims[address]
        if len(claims) == 1:
            (self._by_address[address],) = claims.values()
        else:
            self._by_address.pop(address, None)
            if not claims:
                del self._claims[address]

    def _drop_unused(self) -> None:
        """No credentials are kept that no pod of this node may have: a stolen node gives away nothing more."""
        unused = [identity for identity, held in self._held.items() if not held.users]
        for identity in unused:
            del self._held[identity]

    def _put_credentials(self, message: kiam_pb2.IdentityCredentials) -> None:
        held = self._held.get(Identity.of(message.identity))
        if held is None:
            # Pushed before its pod: kept, as the pod follows; dropped at the next change if it doesn't.
            held = self._held.setdefault(Identity.of(message.identity), HeldCredentials())
        try:
            expires_at = expiry(message.credentials)
        except ValueError:
            log.error("the server pushed credentials without a readable expiration")
            return
        held.body = render_credentials(message.credentials)
        held.expiration = message.credentials.expiration
        held.expires_at = expires_at
        held.failure = None
        self._wake_users(held)

    def _put_failure(self, message: kiam_pb2.CredentialsFailed) -> None:
        held = self._held.get(Identity.of(message.identity))
        if held is not None:
            held.failure = credentials_unavailable(message.message, message.retry_after_seconds)
            self._wake_users(held)

    def _wake_users(self, held: HeldCredentials) -> None:
        for uid in held.users:
            self.woken.update(self.pods[uid].addresses, (uid,))


def role_of(pod: NodePod) -> bytes:
    """The role as annotated. Raises NoRole."""
    if not pod.role_body:
        raise empty_role()
    return pod.role_body


def credentials_of(pod: NodePod, role: str, role_base_arn: str, wall: float) -> bytes | None:
    """The credentials document for a pod; None: not there yet, or not any more.

    ``role`` is what it asks for, ``role_base_arn`` what that is read with if it isn't an ARN, ``wall`` in seconds since
    the epoch, which is what credentials' lifetimes are in.

    Raises NoRole, Forbidden (another role than the pod's own, or the policy's no) and CredentialsUnavailable.
    """
    # Which attack: a pod asks for the role of another one. Compared as full ARNs, so that no spelling slips by.
    if role != pod.role and (not pod.role or resolve_role_arn(role, role_base_arn) != pod.role_arn):
        raise forbidden() if pod.role else empty_role()
    if not pod.allowed:
        raise forbidden()
    held = pod.held
    if held.body and held.expires_at > wall:
        return held.body
    if held.failure is not None:
        raise held.failure
    return None
