"""The pods and namespaces of the cluster, as the watches last told them, and who wants to know of changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Set

from kiam.server.kubernetes.objects import Namespace, Pod

PodListener = Callable[[Pod | None, Pod | None], None]
"""Called with the pod before and after a change; None: it wasn't, or is no longer, known."""


class MultiplePodsError(Exception):
    """Several active pods claim one address, and which of them has it can't be told."""


class PodStore:
    """Active pods, by UID, address, node and namespace.

    Finished pods (phase Succeeded or Failed) are as good as gone. So are pods on the host network, but for those that
    are annotated with a role while somebody who can tell them apart wants them (:meth:`want_host_network`).
    """

    def __init__(self) -> None:
        self._pods: dict[str, Pod] = {}
        self._by_address: dict[str, Pod | tuple[Pod, ...]] = {}
        self._by_node: dict[str, dict[str, Pod]] = {}
        self._by_namespace: dict[str, set[str]] = {}
        self._listeners: list[PodListener] = []
        self._node_of_host: dict[str, str] = {}
        self._on_host: dict[str, Pod] = {}
        """All active pods on the host network that are annotated, wanted or not."""
        self._host_network_wanted: Counter[str] = Counter()

    def listen(self, listener: PodListener) -> None:
        """Have every change told, while it is being made and so in order; a listener must not block."""
        self._listeners.append(listener)

    def __len__(self) -> int:
        return len(self._pods)

    def uids(self) -> set[str]:
        """Those of all pods."""
        return {*self._pods, *self._on_host}

    def get(self, uid: str) -> Pod | None:
        """The pod with a UID."""
        return self._pods.get(uid)

    def of_node(self, node: str) -> Collection[Pod]:
        """The pods scheduled to a node."""
        return self._by_node.get(node, {}).values()

    def nodes(self) -> Collection[str]:
        """The nodes that pods are scheduled to."""
        return self._by_node.keys()

    def node_of_host(self, host_ip: str) -> str | None:
        """The node that has an address, as its pods' status says."""
        return self._node_of_host.get(host_ip)

    def knows_node(self, node: str) -> bool:
        """Whether any pod of a node has been seen, host-network ones included."""
        return bool(self.of_node(node)) or node in self._node_of_host.values()

    def in_namespace(self, namespace: str) -> Iterator[Pod]:
        """The pods of a namespace."""
        for uid in self._by_namespace.get(namespace, ()):
            yield self._pods[uid]

    def find(self, address: str, nodes: Set[str] | None = None) -> Pod | None:
        """The pod that has an address (canonical spelling), looked for on these nodes only if they are given.

        A pod that is being deleted gives way to one that isn't: a network plugin gives an address away only after
        the sandbox that had it is gone, so the newer claim is the true one. Between two pods that are equally alive
        nothing is guessed, because a wrong guess hands one pod's credentials to the other.

        Raises MultiplePodsError.
        """
        found = self._by_address.get(address)
        if found is None:
            return None
        if isinstance(found, Pod):
            return found if nodes is None or found.node in nodes else None
        here = [pod for pod in found if nodes is None or pod.node in nodes]
        staying = [pod for pod in here if not pod.deleting] or here
        if len(staying) > 1:
            raise MultiplePodsError(address)
        return staying[0] if staying else None

    def claimants(self, address: str) -> tuple[Pod, ...]:
        """All pods that list an address, rightly or not."""
        found = self._by_address.get(address)
        return () if found is None else _as_tuple(found)

    def put(self, pod: Pod) -> None:
        """Take over a pod as it is now."""
        if pod.host_ip and pod.node:
            self._node_of_host[pod.host_ip] = pod.node
        if not pod.active or (pod.host_network and not pod.role):
            self.remove(pod.uid)
            return
        if pod.host_network:
            self._on_host[pod.uid] = pod
            if not self._wants(pod):
                self._take_out(pod.uid)
                return
        else:
            self._on_host.pop(pod.uid, None)
        self._put(pod)

    def remove(self, uid: str) -> None:
        """Forget a pod; one that isn't known is fine."""
        self._on_host.pop(uid, None)
        self._take_out(uid)

    def want_host_network(self, host: str) -> None:
        """Have the annotated host-network pods of a node, given by name or address, among the pods.

        They have no addresses, so nobody is taken for one of them by address. :meth:`unwant_host_network` undoes it.
        """
        self._host_network_wanted[host] += 1
        if self._host_network_wanted[host] == 1:
            for pod in [pod for pod in self._on_host.values() if host in (pod.node, pod.host_ip)]:
                self._put(pod)

    def unwant_host_network(self, host: str) -> None:
        """Undo one :meth:`want_host_network`."""
        self._host_network_wanted[host] -= 1
        if not self._host_network_wanted[host]:
            del self._host_network_wanted[host]
            for pod in [pod for pod in self._on_host.values() if host in (pod.node, pod.host_ip)]:
                if not self._wants(pod):
                    self._take_out(pod.uid)

    def _wants(self, pod: Pod) -> bool:
        return pod.node in self._host_network_wanted or pod.host_ip in self._host_network_wanted

    def _put(self, pod: Pod) -> None:
        old = self._pods.get(pod.uid)
        if old == pod:
            return
        if old is not None:
            self._unindex(old)
        self._pods[pod.uid] = pod
        self._index(pod)
        self._tell(old, pod)

    def _take_out(self, uid: str) -> None:
        old = self._pods.pop(uid, None)
        if old is not None:
            self._unindex(old)
            self._tell(old, None)

    def _tell(self, old: Pod | None, new: Pod | None) -> None:
        for listener in self._listeners:
            listener(old, new)

    def _index(self, pod: Pod) -> None:
        for address in pod.addresses:
            others = self._by_address.get(address)
            if others is None:
                self._by_address[address] = pod
            else:
                self._by_address[address] = (*_as_tuple(others), pod)
        if pod.node:
            self._by_node.setdefault(pod.node, {})[pod.uid] = pod
        self._by_namespace.setdefault(pod.namespace, set()).add(pod.uid)

    def _unindex(self, pod: Pod) -> None:
        for address in pod.addresses:
            left = tuple(other for other in _as_tuple(self._by_address[address]) if other.uid != pod.uid)
            if not left:
                del self._by_address[address]
            else:
                self._by_address[address] = left[0] if len(left) == 1 else left
        if pod.node:
            _discard_key(self._by_node, pod.node, pod.uid)
        uids = self._by_namespace[pod.namespace]
        uids.discard(pod.uid)
        if not uids:
            del self._by_namespace[pod.namespace]


class NamespaceStore:
    """The namespaces by name."""

    def __init__(self) -> None:
        self._namespaces: dict[str, Namespace] = {}
        self._listeners: list[Callable[[str], None]] = []

    def listen(self, listener: Callable[[str], None]) -> None:
        """Have the name of every namespace told whose annotations change, or that appears or goes."""
        self._listeners.append(listener)

    def __len__(self) -> int:
        return len(self._namespaces)

    def uids(self) -> set[str]:
        """Those of all namespaces."""
        return {namespace.uid for namespace in self._namespaces.values()}

    def get(self, name: str) -> Namespace | None:
        """The namespace of that name; None: there is none, or not yet."""
        return self._namespaces.get(name)

    def imds_tokens(self, name: str) -> str:
        """What a namespace's annotation says of its pods' session tokens; empty: nothing, or it isn't known."""
        namespace = self._namespaces.get(name)
        return "" if namespace is None else namespace.imds_tokens

    def put(self, namespace: Namespace) -> None:
        """Take over a namespace as it is now."""
        old = self._namespaces.get(namespace.name)
        self._namespaces[namespace.name] = namespace
        if old != namespace:
            self._tell(namespace.name)

    def remove(self, uid: str) -> None:
        """Forget a namespace; one that isn't known is fine."""
        for name, namespace in self._namespaces.items():
            if namespace.uid == uid:
                del self._namespaces[name]
                self._tell(name)
                return

    def touch(self, name: str) -> None:
        """Have everyone look at a namespace again, though its annotations are as before."""
        self._tell(name)

    def _tell(self, name: str) -> None:
        for listener in self._listeners:
            listener(name)


def _as_tuple(pods: Pod | tuple[Pod, ...]) -> tuple[Pod, ...]:
    return (pods,) if isinstance(pods, Pod) else pods


def _discard_key(index: dict[str, dict[str, Pod]], key: str, uid: str) -> None:
    pods = index[key]
    pods.pop(uid, None)
    if not pods:
        del index[key]
