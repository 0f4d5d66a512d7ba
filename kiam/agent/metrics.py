"""The agent's metrics, with conventional kiam's names."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from kiam.metrics import LATENCY_BUCKETS

CREDENTIALS = "credentials"
ROLE_NAME = "roleName"
HEALTH = "health"
PROXY = "proxy"
CONTAINER_CREDENTIALS = "containerCredentials"


class HandlerMetrics:
    """One handler's metrics.

    What is counted with each answer is counted in plain numbers, and made into metrics when somebody asks for them:
    prometheus_client's counters take a lock for each, which cost a fifth of an answer.
    """

    __slots__ = ("buckets", "codes", "empty_role", "encode_error", "fetch_error", "find_role_error", "seconds")

    def __init__(self, metrics: AgentMetrics, handler: str) -> None:
        self.codes: dict[int, int] = {}
        """Answers by status."""
        self.buckets = [0] * (len(LATENCY_BUCKETS) + 1)
        """Answers by the first bound of LATENCY_BUCKETS that they are within; the last: by none."""
        self.seconds = 0.0
        """What all of them took together."""
        self.fetch_error = metrics.fetch_errors.labels(handler)
        self.encode_error = metrics.encode_errors.labels(handler)
        self.find_role_error = metrics.find_role_errors.labels(handler)
        self.empty_role = metrics.empty_role.labels(handler)

    def answered(self, code: int, seconds: float) -> None:
        """Count a response and how long it took."""
        self.codes[code] = self.codes.get(code, 0) + 1
        self.buckets[bisect_left(LATENCY_BUCKETS, seconds)] += 1
        self.seconds += seconds


class AnswerCollector(Collector):
    """Makes metrics of what the handlers have counted."""

    def __init__(self, handlers: Mapping[str, HandlerMetrics]) -> None:
        self._handlers = handlers

    def describe(self) -> Iterator[Metric]:
        """The metrics' names."""
        return self._families()

    def collect(self) -> Iterator[Metric]:
        """The numbers of this moment."""
        latency, success, responses = self._families()
        for name, handler in self._handlers.items():
            buckets, seconds = list(handler.buckets), handler.seconds
            bounds = [*map(floatToGoString, LATENCY_BUCKETS), "+Inf"]
            latency.add_metric([name], list(zip(bounds, accumulate(buckets), strict=True)), seconds)
            success.add_metric([name], handler.codes.get(200, 0))
            for code, count in list(handler.codes.items()):
                responses.add_metric([name, str(code)], count)
        yield from (latency, success, responses)

    @staticmethod
    def _families() -> Iterator[Any]:
        yield HistogramMetricFamily(
            "kiam_metadata_handler_latency_seconds", "Seconds from a request to its answer.", labels=["handler"]
        )
        yield CounterMetricFamily("kiam_metadata_success", "Requests answered with 200.", labels=["handler"])
        yield CounterMetricFamily("kiam_metadata_responses", "Responses.", labels=["handler", "code"])


class AgentMetrics:
    """All of the agent's own metrics; gRPC's and TLS's are counted elsewhere."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        """Register them. Once a process, or a registry."""

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"kiam_metadata_{name}", what, labels, registry=registry)

        self.fetch_errors = counter("credential_fetch_errors", "Credentials that could not be had.", "handler")
        self.encode_errors = counter("credential_encode_errors", "Credentials that could not be rendered.", "handler")
        self.find_role_errors = counter("find_role_errors", "Roles that could not be found.", "handler")
        self.empty_role = counter("empty_role", "Requests of pods without a role annotation.", "handler")
        self.proxy_blocked = counter("proxy_requests_blocked", "Requests that were not passed on.")
        self.refused_connections = Counter(
            "kiam_agent_refused_connections",
            "Connections and requests cut for being too many, too slow or too large.",
            ("reason",),
            registry=registry,
        )
        self.foreign_requests = Counter(
            "kiam_agent_foreign_requests",
            "Requests of other hosts for session tokens or to be passed on, refused.",
            registry=registry,
        )
        self._alone = Gauge(
            "kiam_agent_alone_seconds",
            "For how long the agent has answered from memory without the server; 0: the server is there.",
            registry=registry,
        )
        self._known_pods = Gauge("kiam_agent_known_pods", "Pods of this node known to the agent.", registry=registry)
        self.outage_answers = Counter(
            "kiam_agent_outage_answers",
            "Answers given from memory while the server was away.",
            registry=registry,
        )
        self.bindings_dropped = Counter(
            "kiam_agent_bindings_dropped",
            "Addresses whose pod is no longer believed because the kernel's route to them changed.",
            registry=registry,
        )
        self.node_known = Gauge(
            "kiam_agent_node_known",
            "1: the server knows pods of the node it was asked for; 0: it doesn't, and each answer is a call.",
            registry=registry,
        )
        self.impostors = Counter(
            "kiam_agent_impostors",
            "Requests from the address of one pod by a socket that the kernel says is another's: refused as an attack.",
            registry=registry,
        )
        self.clock_steps = Counter(
            "kiam_agent_clock_steps",
            "How often the wall clock was seen to have been set, or the machine to have been suspended.",
            registry=registry,
        )
        self.credentials = HandlerMetrics(self, CREDENTIALS)
        self.role_name = HandlerMetrics(self, ROLE_NAME)
        self.health = HandlerMetrics(self, HEALTH)
        self.proxy = HandlerMetrics(self, PROXY)
        self.container_credentials = HandlerMetrics(self, CONTAINER_CREDENTIALS)
        registry.register(
            AnswerCollector(
                {
                    CREDENTIALS: self.credentials,
                    ROLE_NAME: self.role_name,
                    HEALTH: self.health,
                    PROXY: self.proxy,
                    CONTAINER_CREDENTIALS: self.container_credentials,
                }
            )
        )

    def watch_memory(self, alone_seconds: Callable[[], float], known_pods: Callable[[], float]) -> None:
        """Have the gauges read from where the truth is, at each scrape."""
        self._alone.set_function(alone_seconds)
        self._known_pods.set_function(known_pods)
