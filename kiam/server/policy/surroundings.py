"""What of a pod's surroundings bears on its getting its role: its network, address, node and the agent there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from shlex import quote

from kiam.arns import shown
from kiam.server.kubernetes.objects import Namespace, Pod
from kiam.server.policy.steps import Outcome, Step

TOKEN_MODES = ("optional", "required", "passed-on")


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known besides pod, namespace and policy; None: whoever asks can't know."""

    written: str | None = None
    """The pod's role annotation as it is written."""
    issued_until: str | None = None
    """When the credentials held for the pod's identity expire; empty: none are held."""
    failure: str | None = None
    """AWS's words on the last AssumeRole, if it failed; empty: it didn't."""
    rivals: tuple[str, ...] | None = None
    """Other pods on its node, for which one of its addresses may be meant."""
    elsewhere: tuple[str, ...] = ()
    """Such pods on other nodes."""
    known_by_uid: bool | None = None
    """Whether the agent of a pod on the host network knows it by its UID, as --host-network=redirect has it."""
    stream: bool | None = None
    """Whether the agent of the pod's node has a stream from this server."""


NOTHING = Facts()


def host_network(pod: Pod, facts: Facts) -> Iterator[Step]:
    """A pod on the host network has no address of its own to be known by."""
    if not pod.host_network:
        return
    if facts.known_by_uid:
        yield Step("host-network", Outcome.OK, "it is on the host network, and its node's agent knows it by its UID")
        return
    what = "it is on the host network: it gets a role if it is annotated and its agent has --host-network=redirect only"
    if facts.known_by_uid is None:
        fix = "give --host-network as the agents have it; or ask a server, which knows of its agent"
        yield Step("host-network", Outcome.UNDECIDED, what, fix)
    else:
        fix = "set hostNetwork: false in the pod's template, or give the agents --host-network=redirect and --pod-uid"
        yield Step("host-network", Outcome.FAILED, what, fix)


def address(pod: Pod, facts: Facts) -> Iterator[Step]:
    """What it asks from, and who else claims that."""
    if pod.host_network:
        return
    if not pod.addresses:
        fix = f"kubectl describe pod {quote(pod.name)} --namespace {quote(pod.namespace)}"
        yield Step("address", Outcome.UNDECIDED, "the Kubernetes API gives no address of it yet", fix)
        return
    yield Step("address", Outcome.OK, f"it asks from {', '.join(pod.addresses)}")
    wide = f"kubectl get pods --all-namespaces --output wide --field-selector status.podIP={pod.addresses[0]}"
    if facts.rivals:
        what = f"the address is also claimed by {', '.join(facts.rivals)} on the same node, and so not its alone"
        yield Step("claims", Outcome.FAILED, what, wide)
    elif facts.elsewhere:
        what = f"also claimed on other nodes, by {', '.join(facts.elsewhere)}: an agent without a stream is refused"
        yield Step("claims", Outcome.NOTE, what, wide)


def node(pod: Pod, facts: Facts) -> Iterator[Step]:
    """Where it is, and whether its agent is told of it."""
    if not pod.node:
        fix = f"kubectl describe pod {quote(pod.name)} --namespace {quote(pod.namespace)}"
        yield Step("node", Outcome.UNDECIDED, "it isn't scheduled to a node", fix)
        return
    if facts.stream is None:
        yield Step("node", Outcome.OK, f"it is on node {pod.node}")
    elif facts.stream:
        yield Step("node", Outcome.OK, f"the agent of node {pod.node} has a stream from this server")
    else:
        # It may have one from another replica, or be a conventional agent, which has none.
        what = f"the agent of node {pod.node} has no stream from this server; it may have one from another replica"
        agents = "kubectl get pods --all-namespaces --output wide --selector component=agent"
        yield Step("node", Outcome.NOTE, what, f"{agents} --field-selector spec.nodeName={quote(pod.node)}")
    yield Step("dataplane", Outcome.NOTE, "the redirect is seen from the node only", "kiam dataplane verify")


def tokens(pod: Pod, namespace: Namespace | None) -> Iterator[Step]:
    """Whether IMDSv2 session tokens are demanded of it."""
    mode = pod.imds_tokens or (namespace.imds_tokens if namespace is not None else "")
    if not mode:
        yield Step("tokens", Outcome.NOTE, "IMDSv2 tokens as its agent's --imds-tokens says")
        return
    whose = "its" if pod.imds_tokens else "its namespace's"
    what = f"IMDSv2 tokens are '{shown(mode)}' by {whose} annotation"
    if mode not in TOKEN_MODES:
        what += f", which is none of {', '.join(TOKEN_MODES)} and counts as required"
    yield Step("tokens", Outcome.NOTE, what)
