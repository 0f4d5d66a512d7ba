"""Credentials for the pod that a service account token is bound to: the server's half of ``/v1/credentials``.

Three witnesses have to agree before anything is handed out: the Kubernetes API says which pod the token was projected
into, the watch says that this pod is alive and has the address the request comes from, and the agent says, if it can,
which pod the kernel sees there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import msgspec

from kiam.addresses import canonical_address
from kiam.identity import Identity
from kiam.rpc import kiam_pb2
from kiam.server.grpc.holds import Waiting
from kiam.server.kubernetes.accounts import ServiceAccountRoles
from kiam.server.kubernetes.api import KubeError
from kiam.server.kubernetes.objects import UNREADABLE, Pod
from kiam.server.kubernetes.store import PodStore
from kiam.server.kubernetes.tokens import BoundToken, TokenRefusedError, TokenReviewer
from kiam.server.policy.judge import Judge, unknown_namespace
from kiam.server.policy.permitted import Decision

log = logging.getLogger(__name__)

T = TypeVar("T")


class RefusedError(Exception):
    """Not for this caller; the message may be told to the pod."""


class UnknownPodError(Exception):
    """The watch hasn't brought the token's pod yet, or its address."""


class ApiAwayError(Exception):
    """The Kubernetes API didn't say whose token it is."""


@dataclass(frozen=True, slots=True)
class Granted:
    """A pod that may have an identity's credentials."""

    pod: Pod
    identity: Identity


@dataclass(frozen=True, slots=True)
class Question:
    """Who asks: the token it brings, the address it comes from, and the pod UID that the kernel gives for it."""

    token: str
    address: str
    uid: str
    nodes: frozenset[str] | None
    """The nodes that the asking agent speaks for; None: all."""


class Holds(Protocol):
    """How long a question may still be held."""

    def left(self) -> float:
        """Seconds from now; not above 0: no longer."""


def mismatch(question: Question, bound: BoundToken, pod: Pod) -> str:
    """What makes a pod's token somebody else's at this address; empty: nothing does.

    The attack stopped: a token copied out of one pod (from a volume, a log, a core file) and sent by another.
    """
    if (pod.namespace, pod.name) != (bound.namespace, bound.pod_name):
        return "the token's pod has another name"
    if question.nodes is not None and pod.node not in question.nodes:
        return "the token's pod is on another node"
    if question.uid and question.uid != pod.uid:
        return "the token is another pod's"
    if pod.addresses and question.address not in pod.addresses:
        return "the token's pod has another address"
    if pod.host_network and not question.uid:
        return "pods on the host network are known by UID only, and the agent has none"
    return ""


class ContainerCredentials:
    """Decides on tokens; what credentials an identity has is the caller's business."""

    def __init__(
        self, reviewer: TokenReviewer, accounts: ServiceAccountRoles, pods: PodStore, judge: Callable[[], Judge]
    ) -> None:
        self._reviewer = reviewer
        self._accounts = accounts
        self._pods = pods
        self._judge = judge

    async def grant(self, question: Question, arrivals: Waiting, hold: Holds) -> Granted | tuple[Pod, str, Decision]:
        """Who asks and what it may have; or the pod, the role it wants and why it may not.

        Raises RefusedError, UnknownPodError, ApiAwayError.
        """
        bound = await self._told(self._reviewer.review(question.token, question.uid or question.address), hold)
        pod = await self._pod(question, bound, arrivals, hold)
        role = pod.role or await self._told(self._accounts.role(bound.namespace, bound.service_account), hold)
        if not role:
            by_default = self._judge().with_role(pod)
            if by_default is None:
                return pod, "", unknown_namespace(pod)
            role = by_default.role
        if not role:
            raise RefusedError("neither the pod nor its service account is annotated with a role")
        judge = self._judge()
        annotated = pod if pod.role else msgspec.structs.replace(pod, role=role)
        decision = judge.decide(annotated, role)
        return Granted(pod, judge.identity(annotated)) if decision.allowed else (pod, role, decision)

    async def _told(self, asked: Awaitable[T], hold: Holds) -> T:
        """The Kubernetes API's answer, in time."""
        try:
            async with asyncio.timeout(hold.left()):
                return await asked
        except TokenRefusedError as error:
            raise RefusedError(str(error)) from None
        except TimeoutError:
            raise ApiAwayError("the Kubernetes API takes too long") from None
        except (KubeError, *UNREADABLE) as error:
            log.warning("a pod's token can't be checked: %s", error)
            raise ApiAwayError("the Kubernetes API can't say whose token it is") from None

    async def _pod(self, question: Question, bound: BoundToken, arrivals: Waiting, hold: Holds) -> Pod:
        while True:
            pod = self._pods.get(bound.pod_uid)
            if pod is not None:
                if found := mismatch(question, bound, pod):
                    # Worth an administrator's look: tokens don't leave their pods by themselves.
                    log.warning(
                        "service account token refused: %s",
                        found,
                        extra={"pod.namespace": pod.namespace, "pod.name": pod.name, "pod.ip": question.address},
                    )
                    raise RefusedError(found)
                if pod.addresses or question.uid:
                    return pod
            if not await arrivals.wait(question.address, hold.left()):
                raise UnknownPodError


def read_question(request: kiam_pb2.GetContainerCredentialsRequest, nodes: frozenset[str] | None) -> Question:
    """From the wire. Raises ValueError with a line that says what is wrong."""
    return Question(request.token, canonical_address(request.ip), request.pod_uid, nodes)


def account_of(role_arn: str) -> str:
    """The account in a role's ARN (``arn:aws:iam::123456789012:role/…``)."""
    parts = role_arn.split(":", 5)
    return parts[4] if len(parts) == 6 else ""
