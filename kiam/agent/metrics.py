"""The agent's metrics, with conventional kiam's names."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from kiam.metrics import LATENCY_BUCKETS

CREDENTIALS = "credentials"
ROLE_NAME = "roleName"
HEALTH = "health"
PROXY = "proxy"
CONTAINER_CREDENTIALS = "containerCredentials"


class HandlerMetrics:
    """One handler's metrics. The label children are looked up once, as ``labels()`` costs more than counting."""

    __slots__ = ("_by_code", "_handler", "_responses", "empty_role", "encode_error", "fetch_error", "find_role_error",
                 "latency", "success")  # fmt: skip

    def __init__(self, metrics: AgentMetrics, handler: str) -> None:
        self._handler = handler
        self._responses = metrics.responses
        self._by_code: dict[int, Counter] = {}
        self.latency = metrics.latency.labels(handler)
        self.success = metrics.success.labels(handler)
        self.fetch_error = metrics.fetch_errors.labels(handler)
        self.encode_error = metrics.encode_errors.labels(handler)
        self.find_role_error = metrics.find_role_errors.labels(handler)
        self.empty_role = metrics.empty_role.labels(handler)

    def answered(self, code: int, seconds: float) -> None:
        """Count a response and how long it took."""
        child = self._by_code.get(code)
        if child is None:
            child = self._by_code[code] = self._responses.labels(self._handler, str(code))
        child.inc()
        self.latency.observe(seconds)
        if code == 200:
            self.success.inc()


class AgentMetrics:
    """All of the agent's own metrics; gRPC's and TLS's are counted elsewhere."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        """Register them. Once a process, or a registry."""

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"kiam_metadata_{name}", what, labels, registry=registry)

        self.latency = Histogram(
            "kiam_metadata_handler_latency_seconds",
            "Seconds from a request to its answer.",
            ("handler",),
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self.fetch_errors = counter("credential_fetch_errors", "Credentials that could not be had.", "handler")
        self.encode_errors = counter("credential_encode_errors", "Credentials that could not be rendered.", "handler")
        self.find_role_errors = counter("find_role_errors", "Roles that could not be found.", "handler")
        self.empty_role = counter("empty_role", "Requests of pods without a role annotation.", "handler")
        self.success = counter("success", "Requests answered with 200.", "handler")
        self.responses = counter("responses", "Responses.", "handler", "code")
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

    def watch_memory(self, alone_seconds: Callable[[], float], known_pods: Callable[[], float]) -> None:
        """Have the gauges read from where the truth is, at each scrape."""
        self._alone.set_function(alone_seconds)
        self._known_pods.set_function(known_pods)
