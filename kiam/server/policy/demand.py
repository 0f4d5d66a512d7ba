"""Which identities are wanted now, by which pods: what is fetched ahead and renewed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from kiam.identity import Identity
from kiam.server.kubernetes.objects import Pod
from kiam.server.kubernetes.store import NamespaceStore, PodStore
from kiam.server.policy.judge import Judge
from kiam.server.policy.permitted import Decision, Refusal

SETTLE_SECONDS, LONGEST_SETTLE_SECONDS = 1.0, 60.0
"""A pod whose identity changes is left alone for a moment before STS is asked; the moment doubles with each change."""


class Wanted(Protocol):
    """Who has credentials ready: :class:`kiam.server.aws.credentials.CredentialsManager`."""

    def want(self, identity: Identity, namespace: str, settle: float) -> None:
        """Pods of a namespace want it, from in so many seconds."""

    def unwant(self, identity: Identity, namespace: str) -> None:
        """No pod of the namespace wants it any more."""


class Demand:
    """Counts a namespace's pods behind each identity; tells when the first comes and the last goes."""

    def __init__(
        self,
        pods: PodStore,
        namespaces: NamespaceStore,
        judge: Judge,
        wanted: Wanted,
        unusable: Callable[[Pod, Decision], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Listens to the stores from now on; what they hold already is not looked at.

        ``unusable`` is told, once, of a pod that can't have its role because of what is annotated.
        """
        self._pods = pods
        self._judge = judge
        self._wanted = wanted
        self._unusable = unusable
        self._told: dict[str, Decision] = {}
        self._now = now
        self._want_of: dict[str, tuple[Identity, str]] = {}
        self._pods_with: dict[tuple[Identity, str], set[str]] = {}
        self._changes: dict[str, tuple[int, float]] = {}
        """How many changes of a pod's identity came one soon after the other, and when the last did."""
        pods.listen(self._pod_changed)
        namespaces.listen(self._namespace_changed)

    def _pod_changed(self, old: Pod | None, new: Pod | None) -> None:
        pod = new or old
        if pod is not None:
            self._update(pod.uid, new)

    def _namespace_changed(self, name: str) -> None:
        for pod in list(self._pods.in_namespace(name)):
            self._update(pod.uid, pod)

    def _update(self, uid: str, pod: Pod | None) -> None:
        gone = pod is None
        pod = self._judge.with_role(pod) if pod is not None else None
        decision = self._judge.decide(pod, pod.role) if pod is not None and pod.role else None
        self._explain(uid, pod, decision)
        allowed = decision is not None and decision.allowed
        wants = (self._judge.identity(pod), pod.namespace) if pod is not None and allowed else None
        before = self._want_of.get(uid)
        if gone:
            self._changes.pop(uid, None)
        if wants == before:
            return
        if wants is not None:
            self._want_of[uid] = wants
            uids = self._pods_with.setdefault(wants, set())
            uids.add(uid)
            settle = self._settle(uid)
            if len(uids) == 1:
                self._wanted.want(*wants, settle)
        else:
            del self._want_of[uid]
        if before is not None:
            uids = self._pods_with[before]
            uids.discard(uid)
            if not uids:
                del self._pods_with[before]
                self._wanted.unwant(*before)

    def _explain(self, uid: str, pod: Pod | None, decision: Decision | None) -> None:
        if pod is None or decision is None or decision.refusal is not Refusal.UNUSABLE:
            self._told.pop(uid, None)
        elif self._told.get(uid) != decision:
            self._told[uid] = decision
            self._unusable(pod, decision)

    def _settle(self, uid: str) -> float:
        """Seconds until a pod's new identity is worth a call: none for its first.

        The attack stopped: whoever may patch a pod could have STS asked for another role with every patch, until AWS
        throttles the account.
        """
        now = self._now()
        if uid not in self._changes:
            self._changes[uid] = (0, now)
            return 0.0
        count, last = self._changes[uid]
        count = count + 1 if now - last < LONGEST_SETTLE_SECONDS else 1
        self._changes[uid] = (count, now)
        return min(SETTLE_SECONDS * 2.0 ** min(count - 1, 10), LONGEST_SETTLE_SECONDS)
