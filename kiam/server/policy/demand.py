"""Which identities are wanted now, by which pods: what is fetched ahead and renewed."""

from __future__ import annotations

from collections.abc import Callable, Set
from functools import lru_cache

from kiam.arns import resolve_role_arn
from kiam.identity import Identity, session_name
from kiam.server.kubernetes.objects import Pod
from kiam.server.kubernetes.store import NamespaceStore, PodStore
from kiam.server.policy.permitted import Decision, decide

MOST_IDENTITIES = 65_536
"""Identities remembered by what pods are annotated with."""


class Judge:
    """Applies the policy to pods: what identity a pod has, and whether it may have it."""

    def __init__(self, namespaces: NamespaceStore, base_arn: str, default_session: str, *, strict: bool) -> None:
        """``default_session``: for pods without a session-name annotation (``--session``)."""
        self._namespaces = namespaces
        self.base_arn = base_arn
        self._default_session = default_session
        self._strict = strict
        # One object for all pods with an identity: they are kept by pod, and each would cost the garbage collector.
        self._identity = lru_cache(maxsize=MOST_IDENTITIES)(self._make_identity)

    def identity(self, pod: Pod) -> Identity:
        """What STS is asked for on behalf of an annotated pod."""
        return self._identity(pod.role, pod.session_name, pod.external_id)

    def _make_identity(self, role: str, session: str, external_id: str) -> Identity:
        return Identity(
            role_arn=resolve_role_arn(role, self.base_arn),
            session_name=session_name(session or self._default_session),
            external_id=external_id,
        )

    def knows_namespace(self, pod: Pod) -> bool:
        """Whether the namespace is known; pods may be seen before it."""
        return self._namespaces.permitted(pod.namespace) is not None

    def decide(self, pod: Pod, requested: str) -> Decision:
        """Whether the pod may have a role. A namespace that isn't known permits nothing."""
        expression = self._namespaces.permitted(pod.namespace)
        if expression is None:
            return Decision(False, f"namespace '{pod.namespace}' is not known (yet), forbidden")
        return decide(requested, pod.role, self.base_arn, expression, strict=self._strict)


class Demand:
    """Counts the pods behind each identity; tells when the first comes and the last goes."""

    def __init__(
        self,
        pods: PodStore,
        namespaces: NamespaceStore,
        judge: Judge,
        want: Callable[[Identity], None],
        unwant: Callable[[Identity], None],
    ) -> None:
        """Listens to the stores from now on; what they hold already is not looked at."""
        self._pods = pods
        self._judge = judge
        self._want = want
        self._unwant = unwant
        self._identity_of: dict[str, Identity] = {}
        self._pods_of: dict[Identity, set[str]] = {}
        pods.listen(self._pod_changed)
        namespaces.listen(self._namespace_changed)

    def pods_of(self, identity: Identity) -> Set[str]:
        """UIDs of the pods that want an identity."""
        return self._pods_of.get(identity, frozenset())

    def _pod_changed(self, old: Pod | None, new: Pod | None) -> None:
        pod = new or old
        if pod is not None and ((old and old.role) or (new and new.role)):
            self._update(pod.uid, new)

    def _namespace_changed(self, name: str) -> None:
        for pod in list(self._pods.annotated_in_namespace(name)):
            self._update(pod.uid, pod)

    def _update(self, uid: str, pod: Pod | None) -> None:
        wanted = self._judge.identity(pod) if pod and pod.role and self._judge.decide(pod, pod.role).allowed else None
        before = self._identity_of.get(uid)
        if wanted == before:
            return
        if wanted is not None:
            self._identity_of[uid] = wanted
            uids = self._pods_of.setdefault(wanted, set())
            uids.add(uid)
            if len(uids) == 1:
                self._want(wanted)
        else:
            del self._identity_of[uid]
        if before is not None:
            uids = self._pods_of[before]
            uids.discard(uid)
            if not uids:
                del self._pods_of[before]
                self._unwant(before)
