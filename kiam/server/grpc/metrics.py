"""What the front lets through and turns away."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class FrontMetrics(Collector):
    """Reads the counts when they are asked for."""

    def __init__(self, counts: Callable[[], dict[str, int]], registry: CollectorRegistry = REGISTRY) -> None:
        self._counts = counts
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """The numbers of this moment."""
        counts = self._counts()
        connections = GaugeMetricFamily(
            "kiam_server_front_connections",
            "Connections at the server's port: in their TLS handshake, or joined to gRPC.",
            labels=["stage"],
        )
        for stage in ("handshake", "joined"):
            connections.add_metric([stage], counts[stage])
        yield connections
        yield CounterMetricFamily(
            "kiam_server_front_refused",
            "Connections turned away because there were too many, in all or from one address.",
            value=counts["refused"],
        )
