"""The gRPC service: conventional kiam's unary calls, with its texts and codes that fit, and the nodes' stream."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable
from typing import NoReturn

import grpc

from kiam.arns import LONGEST_ARN, shown
from kiam.identity import Identity
from kiam.rpc import kiam_pb2, kiam_pb2_grpc
from kiam.server.aws.credentials import CredentialsManager
from kiam.server.aws.entry import CredentialsUnavailableError
from kiam.server.grpc.authorization import Authorization
from kiam.server.grpc.calls import Context, Hold, abort
from kiam.server.grpc.container_credentials import (
    ApiAwayError,
    ContainerCredentials,
    Granted,
    RefusedError,
    UnknownPodError,
    account_of,
    read_question,
)
from kiam.server.grpc.explainer import Explainer
from kiam.server.grpc.holds import Waiting
from kiam.server.grpc.lookup import Lookup
from kiam.server.grpc.node_streams import NodeStreams
from kiam.server.grpc.status import StatusReporter
from kiam.server.kubernetes.events import CREDENTIAL_ERROR, ROLE_FORBIDDEN, EventRecorder
from kiam.server.kubernetes.freshness import Freshness, NodeProofs
from kiam.server.kubernetes.objects import Pod
from kiam.server.kubernetes.store import NamespaceStore, PodStore
from kiam.server.policy.judge import Judge, unknown_namespace
from kiam.server.policy.permitted import Decision, Refusal, forbidden_message
from kiam.server.readiness import Readiness

log = logging.getLogger(__name__)

NO_POD_FOR_ROLE, NO_POD_FOR_CREDENTIALS = "pod not found", "no pod found"
FORBIDDEN = "forbidden by policy"
EMPTY_ROLE = "role can't be empty"
PROVE = "kiam-prove"
"""Metadata of a unary call that wants to know how old the server's word is."""
AGE_OF_REFUSAL = "kiam-watch-age-milliseconds"
"""Trailing metadata of a refusal to such a call: what the answers' ``watch_age_milliseconds`` is."""
RETRY_AFTER = "retry-after"
"""Trailing metadata of UNAVAILABLE: whole seconds until STS is asked again."""


class Service(kiam_pb2_grpc.KiamServiceServicer):
    """Answers from the stores and the credentials held."""

    def __init__(
        self,
        pods: PodStore,
        namespaces: NamespaceStore,
        judge: Callable[[], Judge],
        credentials: CredentialsManager,
        events: EventRecorder,
        readiness: Readiness,
        authorization: Authorization,
        streams: NodeStreams,
        needed: tuple[str, ...],
    ) -> None:
        """``needed``: what readiness calls the things without which no pod can be found or judged."""
        self._pods = pods
        self._judge = judge
        self._credentials = credentials
        self._events = events
        self._readiness = readiness
        self._authorization = authorization
        self._streams = streams
        self._needed = needed
        self._filled = asyncio.Event()
        self._explainer = Explainer(pods, namespaces, judge, credentials, streams)
        self.container_credentials: ContainerCredentials | None = None
        """Checks service account tokens; None: the server runs without ``--container-credentials``."""
        self.freshness = Freshness()
        self.proofs: NodeProofs | None = None
        """Prove a node's pods; None: there is no API to ask."""
        self.status: StatusReporter | None = None
        """Answers ``Status``; None: UNIMPLEMENTED."""
        self.address: Callable[[Context], str] = lambda _: ""
        """Where a caller connects from, for people."""
        self.arrivals = Waiting()
        """Told an address when a pod comes to have it, ``ns/<name>`` when a namespace appears, ``ready`` once."""
        self._lookup = Lookup(pods, authorization, readiness, needed, self.arrivals)
        pods.listen(self._pod_changed)
        namespaces.listen(lambda name: self.arrivals.tell(f"ns/{name}"))

    async def GetHealth(self, request: kiam_pb2.GetHealthRequest, context: Context) -> kiam_pb2.HealthStatus:
        """``ok``, or an error that says what the server waits for: a conventional ``kiam health`` goes by errors alone.

        Not UNAVAILABLE, which is also gRPC's own word for a server that can't be reached.
        """
        message = self._readiness.message
        if message != "ok":
            await abort(context, grpc.StatusCode.FAILED_PRECONDITION, message)
        return kiam_pb2.HealthStatus(message=message)

    async def GetPodRole(self, request: kiam_pb2.GetPodRoleRequest, context: Context) -> kiam_pb2.Role:
        """The role the pod at an address is annotated with, or its namespace's default; empty if there is neither."""
        hold = Hold(context)
        while True:
            pod = await self._lookup.pod(request.ip, context, NO_POD_FOR_ROLE, hold)
            with_role = self._judge().with_role(pod)
            if with_role is not None:
                age = await self._proved_age(pod, context)
                if age is not None and self._pods.get(pod.uid) != pod:
                    continue
                return kiam_pb2.Role(name=with_role.role, watch_age_milliseconds=age)
            await self._wait_for_namespace(pod, unknown_namespace(pod), context, hold)

    async def GetPodCredentials(
        self, request: kiam_pb2.GetPodCredentialsRequest, context: Context
    ) -> kiam_pb2.Credentials:
        """Credentials of the role the pod at an address requests, if the policy permits it."""
        role = request.role
        if not role or len(role) > LONGEST_ARN:
            await abort(
                context,
                grpc.StatusCode.INVALID_ARGUMENT,
                f"role is longer than {LONGEST_ARN} characters" if role else EMPTY_ROLE,
            )
        hold = Hold(context)
        issued_for: Identity | None = None
        while True:
            found = await self._lookup.pod(request.ip, context, NO_POD_FOR_CREDENTIALS, hold)
            judge = self._judge()
            pod = judge.with_role(found) or found
            decision = judge.decide(pod, role)
            if decision.refusal is Refusal.UNDECIDED:
                await self._wait_for_namespace(pod, decision, context, hold)
                continue
            if not pod.role or not decision.allowed:
                # A no is the server's word on who is at the address as much as credentials are.
                age = await self._proved_age(pod, context)
                if age is not None and self._pods.get(found.uid) != found:
                    continue
                if not pod.role:
                    await abort(context, grpc.StatusCode.INVALID_ARGUMENT, EMPTY_ROLE, _aged(age))
                await self._refuse(pod, role, decision, context, age)
            identity = judge.identity(pod)
            waited = identity == issued_for
            held = self._credentials.peek(identity) if waited else self._credentials.ready(identity)
            if held is not None:
                age = await self._proved_age(pod, context)
                if age is not None:
                    if self._pods.get(found.uid) != found:
                        continue
                    answer = kiam_pb2.Credentials()
                    answer.CopyFrom(held)
                    answer.watch_age_milliseconds = age
                    held = answer
                if not waited:
                    self._credentials.count_hit()
                return held
            await self._issue(pod, identity, context)
            issued_for = identity
            # The attack stopped: while STS took its time, the address may have passed to another pod, or the permission
            # been withdrawn. So everything is looked at again before the credentials, now held, go out.

    async def GetContainerCredentials(
        self, request: kiam_pb2.GetContainerCredentialsRequest, context: Context
    ) -> kiam_pb2.ContainerCredentials:
        """Credentials for the pod that a service account token is bound to, if it asks from its own address."""
        if self.container_credentials is None:
            await abort(context, grpc.StatusCode.UNIMPLEMENTED, "the server runs without --container-credentials")
        try:
            question = read_question(request, self._authorization.nodes(context))
        except ValueError as error:
            await abort(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        hold = Hold(context)
        issued_for: Identity | None = None
        while True:
            if not self._filled.is_set() and not await self.arrivals.wait("ready", hold.left()):
                await abort(context, grpc.StatusCode.UNAVAILABLE, self._readiness.message)
            try:
                granted = await self.container_credentials.grant(question, self.arrivals, hold)
            except RefusedError as error:
                await abort(context, grpc.StatusCode.UNAUTHENTICATED, str(error))
            except UnknownPodError:
                await abort(context, grpc.StatusCode.NOT_FOUND, NO_POD_FOR_CREDENTIALS)
            except ApiAwayError as error:
                await abort(context, grpc.StatusCode.UNAVAILABLE, str(error))
            if not isinstance(granted, Granted):
                pod, role, decision = granted
                if decision.refusal is Refusal.UNDECIDED:
                    await self._wait_for_namespace(pod, decision, context, hold)
                    continue
                await self._refuse(pod, role, decision, context)
            identity = granted.identity
            waited = identity == issued_for
            held = self._credentials.peek(identity) if waited else self._credentials.ready(identity)
            if held is not None:
                if not waited:
                    self._credentials.count_hit()
                return kiam_pb2.ContainerCredentials(credentials=held, account_id=account_of(identity.role_arn))
            # Looked at again after STS's time, as in GetPodCredentials.
            await self._issue(granted.pod, identity, context)
            issued_for = identity

    async def Explain(self, request: kiam_pb2.ExplainRequest, context: Context) -> kiam_pb2.Explanations:
        """Why pods get their role, or don't."""
        if not request.node and not (request.namespace and request.pod):
            await abort(context, grpc.StatusCode.INVALID_ARGUMENT, "node, or namespace and pod, must be given")
        if self._readiness.waits_for(*self._needed):
            await abort(context, grpc.StatusCode.UNAVAILABLE, self._readiness.message)
        nodes = self._authorization.nodes(context)
        if request.node and nodes is not None and request.node not in nodes:
            text = (
                f"the certificate speaks for {', '.join(sorted(nodes)) or 'no node'}, not for '{shown(request.node)}'"
            )
            await abort(context, grpc.StatusCode.PERMISSION_DENIED, text)
        return self._explainer.explain(request, nodes)

    async def WatchNode(
        self, request: kiam_pb2.WatchNodeRequest, context: Context
    ) -> AsyncIterator[kiam_pb2.NodeUpdate]:
        """Push a node's pods and their credentials: a snapshot, then every change."""
        node_name, host_ip = await self._lookup.node(request, context)
        await self._filled.wait()
        stream = self._streams.open(node_name, host_ip, request, self.address(context))
        try:
            if not self._readiness.stopping and not self._readiness.waits_for(*self._needed):
                age = await self._age(self._streams.node_of(stream))
                hello = self._streams.hello(stream)
                hello.hello.watch_age_milliseconds = age
                yield hello
                for update in stream.updates():
                    yield update
                yield kiam_pb2.NodeUpdate(snapshot_complete=kiam_pb2.SnapshotComplete(watch_age_milliseconds=age))
                while await stream.wait():
                    for update in stream.updates():
                        if update.HasField("pod"):
                            update.watch_age_milliseconds = round(self.freshness.age * 1000)
                        yield update
        finally:
            self._streams.close(stream)
        await abort(context, grpc.StatusCode.UNAVAILABLE, self._readiness.message)

    async def Status(self, request: kiam_pb2.StatusRequest, context: Context) -> kiam_pb2.ServerStatus:
        """What this server knows and does, as far as it is the caller's business."""
        if self.status is None:
            await abort(context, grpc.StatusCode.UNIMPLEMENTED, "this server doesn't tell its status")
        return self.status.answer(
            self._authorization.nodes(context), judged=self._filled.is_set() and not self._readiness.stopping
        )

    async def _age(self, node: str) -> int:
        """Milliseconds by which what is known of a node's pods may be behind, proved now if it can be."""
        proved = await self.proofs.prove(node) if self.proofs is not None and node else None
        return round((self.freshness.age if proved is None else proved) * 1000)

    async def _proved_age(self, pod: Pod, context: Context) -> int | None:
        """As :meth:`_age`, for callers that compare it with what their kernel says; None: this one doesn't."""
        asked = any(key == PROVE for key, _ in context.invocation_metadata() or ())
        return await self._age(pod.node) if asked else None

    def stale(self) -> None:
        """The API wasn't heard of for too long: end the streams, so that agents look for another replica."""
        self._streams.end_open()

    def ready(self) -> None:
        """The stores are complete: let held calls go on."""
        self._filled.set()
        self.arrivals.tell("ready")

    def stop(self) -> None:
        """Answer the calls that are held; the server ends, and another replica may know more."""
        self._filled.set()
        self.arrivals.tell_all()
        self._streams.end_all()

    async def _issue(self, pod: Pod, identity: Identity, context: Context) -> None:
        """Have an identity's credentials at hand, or answer why there are none."""
        try:
            await self._credentials.get(identity, pod.namespace)
        except CredentialsUnavailableError as error:
            self._events.record(pod, CREDENTIAL_ERROR, f"failed retrieving credentials: {error}")
            trailing = ((RETRY_AFTER, str(math.ceil(error.retry_after))),)
            await abort(context, grpc.StatusCode.UNAVAILABLE, str(error), trailing)

    async def _wait_for_namespace(self, pod: Pod, decision: Decision, context: Context, hold: Hold) -> None:
        """Hold a call until there is news of the pod's namespace; not yet, and never a final no, if there is none."""
        if not await self.arrivals.wait(f"ns/{pod.namespace}", hold.left()):
            await abort(context, grpc.StatusCode.UNAVAILABLE, decision.explanation, ((RETRY_AFTER, "1"),))

    async def _refuse(
        self, pod: Pod, role: str, decision: Decision, context: Context, age: int | None = None
    ) -> NoReturn:
        log.warning(
            "pod denied by policy",
            extra={
                "pod.namespace": pod.namespace,
                "pod.name": pod.name,
                "pod.iam.role": shown(pod.role),
                "pod.iam.requestedRole": shown(role),
                "policy.explanation": decision.explanation,
            },
        )
        self._events.record(pod, ROLE_FORBIDDEN, forbidden_message(role, decision))
        await abort(context, grpc.StatusCode.PERMISSION_DENIED, FORBIDDEN, _aged(age))

    def _pod_changed(self, old: Pod | None, new: Pod | None) -> None:
        if new is not None and len(self.arrivals):
            for address in new.addresses:
                self.arrivals.tell(address)


def _aged(age: int | None) -> tuple[tuple[str, str], ...]:
    return () if age is None else ((AGE_OF_REFUSAL, str(age)),)
