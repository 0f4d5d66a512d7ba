"""Metric names and labels, as dashboards made for conventional kiam ask for them."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from tests.integration.node.conftest import PodMaker
from tests.sandbox.node import CREDENTIALS, NodeInABox

GRPC = {"grpc_type", "grpc_service", "grpc_method"}

AGENT = {
    "kiam_metadata_handler_latency_seconds_bucket": {"handler", "le"},
    "kiam_metadata_handler_latency_seconds_count": {"handler"},
    "kiam_metadata_credential_fetch_errors_total": {"handler"},
    "kiam_metadata_credential_encode_errors_total": {"handler"},
    "kiam_metadata_find_role_errors_total": {"handler"},
    "kiam_metadata_empty_role_total": {"handler"},
    "kiam_metadata_success_total": {"handler"},
    "kiam_metadata_responses_total": {"handler", "code"},
    "kiam_metadata_proxy_requests_blocked_total": set(),
    "grpc_client_started_total": GRPC,
    "grpc_client_handled_total": GRPC | {"grpc_code"},
    "grpc_client_msg_received_total": GRPC,
    "grpc_client_msg_sent_total": GRPC,
    "grpc_client_tls_certificate_expiry_seconds": None,
}
SERVER = {
    "kiam_sts_cacheSize": set(),
    "kiam_sts_cache_hit_total": set(),
    "kiam_sts_cache_miss_total": set(),
    "kiam_sts_issuing_errors_total": set(),
    "kiam_sts_assumerole_timing_seconds_bucket": {"le"},
    "kiam_sts_assumerole_timing_seconds_count": set(),
    "kiam_sts_assumerole_current": set(),
    "kiam_k8s_dropped_pods_total": set(),
    "grpc_server_started_total": GRPC,
    "grpc_server_handled_total": GRPC | {"grpc_code"},
    "grpc_server_msg_received_total": GRPC,
    "grpc_server_msg_sent_total": GRPC,
    "grpc_server_tls_certificate_expiry_seconds": None,
}
HANDLERS = {"credentials", "roleName", "health", "proxy", "containerCredentials"}
BOUNDS = [0.001 * 2**power for power in range(13)]


class Page:
    """A /metrics page, read."""

    def __init__(self, text: str) -> None:
        self.samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def labels(self, name: str) -> set[str] | None:
        """Label names of a metric; None if the page doesn't have it."""
        found = [set(sample.labels) for sample in self.samples if sample.name == name]
        return set().union(*found) if found else None

    def values(self, name: str, label: str) -> set[str]:
        """Values of one label."""
        return {sample.labels[label] for sample in self.samples if sample.name == name}

    def value(self, name: str, **labels: str) -> float:
        """Sum of the samples with these labels."""
        return sum(s.value for s in self.samples if s.name == name and labels.items() <= s.labels.items())


def missing(page: Page, wanted: dict[str, set[str] | None]) -> dict[str, object]:
    """Metrics that the page lacks or labels otherwise."""
    return {
        name: page.labels(name)
        for name, labels in wanted.items()
        if page.labels(name) is None or labels not in (None, page.labels(name))
    }


def test_the_agents_are_all_there(box: NodeInABox, make_pod: PodMaker) -> None:
    pod = make_pod("app")
    before = Page(box.metrics("agent"))
    for path in (
        CREDENTIALS,
        f"{CREDENTIALS}app",
        f"{CREDENTIALS}other",
        "/latest/user-data",
        "/latest/meta-data/placement/region",
    ):
        pod.ask(path)
    make_pod().role()
    box.ask_agent("/health")
    page = Page(box.metrics("agent"))
    assert missing(page, AGENT) == {}
    for name in ("kiam_metadata_success_total", "kiam_metadata_handler_latency_seconds_count"):
        assert page.values(name, "handler") == HANDLERS

    def more(name: str, **labels: str) -> float:
        return page.value(name, **labels) - before.value(name, **labels)

    assert more("kiam_metadata_success_total", handler="credentials") == 1
    assert more("kiam_metadata_success_total", handler="roleName") == 1
    assert more("kiam_metadata_empty_role_total", handler="roleName") == 1
    assert more("kiam_metadata_responses_total", handler="credentials", code="200") == 1
    assert more("kiam_metadata_responses_total", handler="credentials", code="403") == 1
    assert more("kiam_metadata_responses_total", handler="roleName", code="404") == 1
    assert more("kiam_metadata_proxy_requests_blocked_total") == 1
    assert more("kiam_metadata_handler_latency_seconds_count", handler="health") == 1


def test_the_servers_are_all_there(box: NodeInABox, make_pod: PodMaker) -> None:
    assert make_pod("app").credentials("app").status == 200
    assert box.health() == 0
    page = Page(box.metrics("server"))
    assert missing(page, SERVER) == {}
    assert page.values("grpc_server_handled_total", "grpc_service") == {"kiam.KiamService"}
    assert page.value("grpc_server_handled_total", grpc_method="GetHealth", grpc_code="OK") >= 1


def test_the_histograms_have_the_documented_buckets(box: NodeInABox, make_pod: PodMaker) -> None:
    assert make_pod("app").credentials("app").status == 200
    for part, name in (
        ("agent", "kiam_metadata_handler_latency_seconds_bucket"),
        ("server", "kiam_sts_assumerole_timing_seconds_bucket"),
    ):
        bounds = Page(box.metrics(part)).values(name, "le")
        assert sorted(float(bound) for bound in bounds)[:-1] == BOUNDS
