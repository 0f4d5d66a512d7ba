"""Events about agents' certificates: agents have no access to the Kubernetes API, so they tell the server."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from kiam.rpc import kiam_pb2
from kiam.server.kubernetes.objects import Pod
from kiam.server.kubernetes.store import PodStore
from kiam.tls.reload import expiry_warning

MOST = 50
"""Agents that get an Event at a time: many have one certificate, and Events are written at a bounded rate."""
_LATEST = datetime(9999, 12, 31, tzinfo=UTC)


def expiring(
    agents: Iterable[tuple[str, kiam_pb2.AgentPod]], pods: PodStore, now: datetime
) -> Iterator[tuple[Pod, str]]:
    """The pods of agents whose certificate should have been renewed, and what to say; at most :data:`MOST`.

    ``agents``: the node each is for, and what it says of itself. Which attack: who has a node's key names a pod that
    isn't the agent's, so an agent is believed about a pod of its own node only.
    """
    due = [(node, agent) for node, agent in agents if now.timestamp() > agent.certificate_warn_after]
    by_name = _by_name({agent.namespace for _, agent in due}, pods)
    believed = [
        (agent.certificate_expires, pod)
        for node, agent in due
        if (pod := by_name.get((agent.namespace, agent.name))) is not None and node and pod.node == node
    ]
    # Cut last: made-up pods must not take the places of others.
    for expires, pod in sorted(believed, key=lambda one: one[0])[:MOST]:
        yield pod, expiry_warning("this agent's TLS certificate", _moment(expires))


def _by_name(namespaces: Iterable[str], pods: PodStore) -> dict[tuple[str, str], Pod]:
    return {(namespace, pod.name): pod for namespace in namespaces for pod in pods.in_namespace(namespace)}


def _moment(seconds: int) -> datetime:
    """A Unix time, which may be anything that an int64 can be."""
    return datetime.fromtimestamp(max(0, min(seconds, int(_LATEST.timestamp()))), UTC)
