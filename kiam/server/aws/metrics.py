"""Conventional kiam's metrics of its credentials cache and of STS."""

from __future__ import annotations

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from kiam.metrics import LATENCY_BUCKETS


class Metrics:
    """Under the conventional names, for the panels and alerts that there are."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        """Register them."""
        self.size = Gauge("kiam_sts_cacheSize", "Credentials held.", registry=registry)
        self.hits = Counter(
            "kiam_sts_cache_hit",
            "Credentials given or pushed, that no pod waited for.",
            registry=registry,
        )
        self.misses = Counter(
            "kiam_sts_cache_miss",
            "Credentials given or pushed, that a pod waited for.",
            registry=registry,
        )
        self.errors = Counter("kiam_sts_issuing_errors", "AssumeRole calls that failed.", registry=registry)
        self.timing = Histogram(
            "kiam_sts_assumerole_timing_seconds",
            "Duration of AssumeRole calls.",
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self.current = Gauge("kiam_sts_assumerole_current", "AssumeRole calls under way.", registry=registry)
