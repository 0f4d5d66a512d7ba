"""Which identities are wanted now, by which pods: what is fetched ahead and renewed."""

from __future__ import annotations

from collections.abc import Callable, Set

from kiam.identity import Identity
from kiam.server.kubernetes.objects import Pod
from kiam.server.kubernetes.store import NamespaceStore, PodStore
from kiam.server.policy.judge import Judge


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
