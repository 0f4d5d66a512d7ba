"""What ``kiam explain`` asks of the server: the policy's steps with what only a server knows."""

from __future__ import annotations

from collections.abc import Callable, Set

from kiam.rpc import kiam_pb2
from kiam.server.aws.credentials import CredentialsManager
from kiam.server.grpc.node_streams import NodeStreams
from kiam.server.kubernetes.objects import Pod
from kiam.server.kubernetes.store import NamespaceStore, PodStore
from kiam.server.policy.explain import explain, no_pod
from kiam.server.policy.judge import Judge
from kiam.server.policy.steps import Explanation
from kiam.server.policy.surroundings import Facts


class Explainer:
    """Explains pods from the stores, the credentials held and the streams; it asks nobody, and changes nothing."""

    def __init__(
        self,
        pods: PodStore,
        namespaces: NamespaceStore,
        judge: Callable[[], Judge],
        credentials: CredentialsManager,
        streams: NodeStreams,
    ) -> None:
        self._pods = pods
        self._namespaces = namespaces
        self._judge = judge
        self._credentials = credentials
        self._streams = streams

    def explain(self, request: kiam_pb2.ExplainRequest, nodes: Set[str] | None) -> kiam_pb2.Explanations:
        """The answer to a caller that speaks for some nodes only; None: for all.

        The attack stopped: a key stolen from one node must not tell what is annotated, or even runs, on another.
        """
        if request.node:
            here = sorted(self._pods.of_node(request.node), key=lambda pod: (pod.namespace, pod.name))
            found = [self._explain(pod, nodes) for pod in here if nodes is None or pod.node in nodes]
        else:
            known = [
                pod
                for pod in self._pods.in_namespace(request.namespace)
                if pod.name == request.pod and (nodes is None or pod.node in nodes)
            ]
            steps = no_pod(request.namespace, request.pod)
            found = [self._explain(pod, nodes) for pod in known] or [Explanation(request.namespace, request.pod, steps)]
        return kiam_pb2.Explanations(explanations=[explanation.message() for explanation in found])

    def _explain(self, pod: Pod, nodes: Set[str] | None) -> Explanation:
        judge = self._judge()
        facts = self._facts(pod, judge, nodes)
        return Explanation(pod.namespace, pod.name, explain(pod, self._namespaces.get(pod.namespace), judge, facts))

    def _facts(self, pod: Pod, judge: Judge, nodes: Set[str] | None) -> Facts:
        with_role = judge.with_role(pod)
        issued_until = failure = ""
        if with_role is not None and with_role.role:
            identity = judge.identity(with_role)
            held, failed = self._credentials.peek(identity), self._credentials.failure(identity)
            issued_until = held.expiration if held is not None else ""
            failure = str(failed) if failed is not None else ""
        rivals = self._rivals(pod, nodes)
        return Facts(
            issued_until=issued_until,
            failure=failure,
            rivals=tuple(_name(other) for other in rivals if other.node == pod.node),
            elsewhere=tuple(_name(other) for other in rivals if other.node != pod.node),
            # The store has pods on the host network only while an agent asks for them.
            known_by_uid=pod.host_network,
            stream=self._streams.has(pod.node),
        )

    def _rivals(self, pod: Pod, nodes: Set[str] | None) -> list[Pod]:
        """Who else claims an address; a pod that is being deleted gives way to one that isn't, as in the store."""
        others = {
            other.uid: other
            for address in pod.addresses
            for other in self._pods.claimants(address)
            if other.uid != pod.uid and (nodes is None or other.node in nodes)
        }
        return [other for other in others.values() if pod.deleting or not other.deleting]


def _name(pod: Pod) -> str:
    return f"{pod.namespace}/{pod.name}"
