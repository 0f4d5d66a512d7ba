"""The server as a whole: its parts, the order they start in, and its end."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket

from prometheus_client import REGISTRY, CollectorRegistry, Counter
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_exponential_jitter

from kiam import __version__
from kiam.grpc_metrics import ServerMetrics
from kiam.rpc import kiam_pb2
from kiam.server.aws.base_arn import detect_base_arn
from kiam.server.aws.contract import STSError
from kiam.server.aws.credentials import CredentialsManager
from kiam.server.aws.metrics import Metrics
from kiam.server.aws.sts import BotoSTS
from kiam.server.grpc.authorization import AnyNode, CertifiedNode
from kiam.server.grpc.backend import Backend
from kiam.server.grpc.callers import Callers
from kiam.server.grpc.container_credentials import ContainerCredentials
from kiam.server.grpc.front import Front
from kiam.server.grpc.node_streams import NodeStreams
from kiam.server.grpc.service import Service
from kiam.server.grpc.status import Parts, StatusReporter
from kiam.server.kubernetes.accounts import ServiceAccountRoles
from kiam.server.kubernetes.api import KubeApi
from kiam.server.kubernetes.events import ROLE_FORBIDDEN, EventRecorder
from kiam.server.kubernetes.freshness import Freshness, NodeProofs
from kiam.server.kubernetes.objects import Pod
from kiam.server.kubernetes.own_pod import tell_of_expiry
from kiam.server.kubernetes.reflector import Reflector
from kiam.server.kubernetes.resources import NAMESPACES, PODS
from kiam.server.kubernetes.store import NamespaceStore, PodStore
from kiam.server.kubernetes.tokens import TokenReviewer
from kiam.server.policy.demand import Demand
from kiam.server.policy.evaluator import Evaluator
from kiam.server.policy.judge import Judge
from kiam.server.policy.permitted import Decision, forbidden_message
from kiam.server.policy.sessions import Sessions
from kiam.server.readiness import Readiness
from kiam.server.settings import ServerSettings
from kiam.server.webhook.listener import Listener, Webhook
from kiam.tls.inspection import inspect
from kiam.tls.reload import TLSReloader
from kiam.tls.summary import Side

log = logging.getLogger(__name__)

DRAIN_SECONDS = 10.0
"""Time for calls under way after SIGTERM; Kubernetes waits 30 s before it kills."""
STORES = ("pods", "namespaces")
BASE_ARN, STS_ANSWER = "the role base ARN", "STS"


class Server:
    """The parts, and how they are wired. :meth:`start` once, then :meth:`drain`."""

    def __init__(
        self, config: ServerSettings, tls: TLSReloader, front: Front, registry: CollectorRegistry = REGISTRY
    ) -> None:
        """``front``: open and started, with this ``tls``."""
        self._config = config
        self._registry = registry
        self._tls = tls
        self._front = front
        self._pods = PodStore()
        self._namespaces = NamespaceStore()
        self._events = EventRecorder()
        self._judge: Judge | None = None
        awaited = [*STORES, STS_ANSWER] if config.role_base_arn else [BASE_ARN, *STORES, STS_ANSWER]
        self._readiness = Readiness(awaited)
        self._freshness = Freshness()
        self._grpc = Backend(config)
        Counter(
            "kiam_k8s_dropped_pods",
            "Pods lost by prefetching. Always 0: pods wait in the store, not in a buffer.",
            registry=registry,
        )
        self.service: Service | None = None
        """What answers the calls, once there is one."""
        self.webhook: Listener | None = None
        """The mutating webhook's port, if there is one."""
        self._api: KubeApi | None = None

    @property
    def port(self) -> int:
        """Where agents reach it."""
        return self._front.port

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        """Begin everything that makes the server ready. Raises UserError."""
        config, front = self._config, self._front
        _spare_the_collector()
        sts = await asyncio.to_thread(
            BotoSTS,
            config.region,
            config.assume_role_arn,
            int(config.session_duration.total_seconds()),
            config.fetchers,
            config.role_base_arn,
            config.session_tags_transitive,
        )
        api = self._api = await KubeApi.connect(config.kubeconfig)
        credentials = CredentialsManager(
            sts, config.fetchers, config.session_refresh, config.session_duration, Metrics(self._registry)
        )
        callers = Callers(front.joined)
        streams = NodeStreams(
            self._pods, self._namespaces, self._known_judge, credentials, self._events, self._registry
        )
        service = self.service = Service(
            self._pods,
            self._namespaces,
            self._known_judge,
            credentials,
            self._events,
            self._readiness,
            CertifiedNode(callers) if config.node_authorization else AnyNode(),
            streams,
            (BASE_ARN, *STORES),
        )
        service.address = callers.address
        service.status = self._reporter(streams, credentials)
        accounts = ServiceAccountRoles(api)
        service.freshness, service.proofs = self._freshness, NodeProofs(api, self._pods)
        if config.container_credentials:
            service.container_credentials = ContainerCredentials(
                TokenReviewer(api), accounts, self._pods, self._known_judge
            )
        if config.container_credentials_webhook is not None:
            self.webhook = Listener(config.container_credentials_webhook, config.tls, Webhook(accounts))
            await self.webhook.open()
        tasks.create_task(self._tls.watch(self.webhook.reload if self.webhook is not None else lambda: None))
        description = kiam_pb2.DESCRIPTOR.services_by_name["KiamService"]
        counted = ServerMetrics(self._registry).count(description, callers.guard(description, service))
        front.connect(await self._grpc.start(counted))
        log.info("answering agents on %s (port %d), STS is %s", config.bind, front.port, sts.endpoint)
        tasks.create_task(credentials.run())
        tasks.create_task(self._events.run(api))
        tasks.create_task(streams.tell_of_expiry())
        tasks.create_task(self._await_sts(sts))
        tasks.create_task(self._fill(tasks, api, sts, credentials))

    def _reporter(self, streams: NodeStreams, credentials: CredentialsManager) -> StatusReporter:
        return StatusReporter(
            Parts(
                __version__,
                socket.gethostname(),
                self._readiness,
                self._freshness,
                self._pods,
                self._namespaces,
                streams,
                credentials,
                lambda: inspect(self._config.tls, self._tls.material, Side.SERVER),
            )
        )

    async def wait_ready(self) -> None:
        """Until every call can be answered."""
        await self._readiness.wait()

    async def drain(self, seconds: float = DRAIN_SECONDS) -> None:
        """Answer what is held, let calls under way end for so many seconds at most, and close."""
        self._readiness.stop()
        if self.service is not None:
            self.service.stop()
        self._front.stop()
        await self._grpc.stop(seconds)

    async def close(self) -> None:
        """Close what the tasks have used; they must have ended."""
        if self.webhook is not None:
            await self.webhook.close()
        if self._api is not None:
            await self._api.close()

    def _known_judge(self) -> Judge:
        assert self._judge is not None, "calls are held until the stores are filled, which is after the base ARN"
        return self._judge

    async def _fill(
        self, tasks: asyncio.TaskGroup, api: KubeApi, sts: BotoSTS, credentials: CredentialsManager
    ) -> None:
        """Learn the base ARN, then list and watch: what is known of pods is judged as it comes in."""
        config = self._config
        base_arn = config.role_base_arn
        if not base_arn:
            base_arn = sts.base_arn = await detect_base_arn()
            log.info("base ARN detected: %s", base_arn)
            self._readiness.reached(BASE_ARN)
        evaluator = Evaluator(not config.disable_strict_namespace_regexp, self._namespaces.touch)
        tasks.create_task(evaluator.run())
        sessions = Sessions(config.sessions)
        self._judge = Judge(self._namespaces, evaluator, base_arn, sessions, config.policy)
        Demand(self._pods, self._namespaces, self._judge, credentials, self._record_unusable)
        _spare_the_collector()
        watch_seconds = config.sync.total_seconds()
        namespaces = Reflector(api, NAMESPACES, self._namespaces, watch_seconds)
        stale_after = config.stale_after.total_seconds() or float("inf")
        pods = Reflector(api, PODS, self._pods, watch_seconds, self._freshness, stale_after)
        for name, reflector in (("namespaces", namespaces), ("pods", pods)):
            tasks.create_task(reflector.run())
            tasks.create_task(self._await_list(name, reflector))
        tasks.create_task(tell_of_expiry(self._pods, pods.synced, self._events, self._tls, config.tls.cert))
        tasks.create_task(self._watch_age(stale_after))

    async def _watch_age(self, stale_after: float) -> None:
        """Be not ready while the API hasn't been heard of for too long."""
        stale = False
        while True:
            await asyncio.sleep(min(1.0, stale_after / 4))
            if (self._freshness.age > stale_after) == stale or self._readiness.waits_for("pods") != stale:
                continue
            stale = not stale
            if stale:
                log.error("nothing was heard of the Kubernetes API's pods for %.0f s: not ready", self._freshness.age)
                self._readiness.lost("pods")
                assert self.service is not None
                self.service.stale()
            else:
                self._reached("pods")

    def _record_unusable(self, pod: Pod, decision: Decision) -> None:
        self._events.record(pod, ROLE_FORBIDDEN, forbidden_message(pod.role, decision))

    async def _await_list(self, name: str, reflector: Reflector) -> None:
        await reflector.synced.wait()
        self._reached(name)

    async def _await_sts(self, sts: BotoSTS) -> None:
        """Not ready until STS answered once; later on what is held stays good without it."""

        def log_failure(state: RetryCallState) -> None:
            log.warning("STS: %s", state.outcome.exception() if state.outcome else "")

        retrying = AsyncRetrying(
            retry=retry_if_exception_type(STSError),
            wait=wait_exponential_jitter(multiplier=0.5, max=15, jitter=0.5),
            before_sleep=log_failure,
        )
        identity: str = await retrying(asyncio.to_thread, sts.check)
        log.info("STS answers", extra={"identity": identity or "unknown"})
        self._reached(STS_ANSWER)

    def _reached(self, thing: str) -> None:
        self._readiness.reached(thing)
        if self.service is not None and not self._readiness.waits_for(BASE_ARN, *STORES):
            _spare_the_collector()
            self.service.ready()
        if self._readiness.message == "ok":
            log.info("ready", extra={"pods": len(self._pods)})


def _spare_the_collector() -> None:
    """Exempt what is there now, and is there for good, from garbage collection.

    Modules, AWS's and Kubernetes' models, later the stores' indexes: looking through them takes a full collection tens
    of milliseconds, during which no call is answered.
    """
    gc.freeze()
