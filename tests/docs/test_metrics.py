"""Alerts, dashboard and tables speak only of metrics that agent and server have."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from kiam.agent.redirection import DataplaneCollector
from kiam.dataplane.registry import load_dataplane
from tests.deploy.chart import CHART, manifests
from tests.docs.test_docs import DOCS
from tests.integration.agent.conftest import running_agent
from tests.integration.tls.conftest import running_server, secret, tls_flags
from tests.sandbox.certificates import Authority
from tests.sandbox.kubeapi import write_kubeconfig
from tests.sandbox.process import free_port, wait_until

OURS = re.compile(r"\b(?:kiam|grpc)_\w+\b")
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",)}
# $__rate_interval is Grafana's own, and becomes a duration.
GRAFANA = {"$__rate_interval": "5m", "$instance": ".*"}


def scraped(port: int) -> Iterator[str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        for family in text_string_to_metric_families(answer.read().decode()):
            for suffix in SUFFIXES.get(family.type, ("",)):
                yield family.name + suffix


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> frozenset[str]:
    """The names of everything that a running server and a running agent show."""
    directory = tmp_path_factory.mktemp("metrics")
    authority = Authority.make()
    server_files = secret(directory / "server", authority, "server").files
    agent_files = secret(directory / "agent", authority, "agent").files
    ports = [free_port(), free_port()]
    server_flags = [
        *tls_flags(server_files),
        f"--kubeconfig={write_kubeconfig(directory / 'kubeconfig', 'http://127.0.0.1:9')}",
        "--role-base-arn=arn:aws:iam::123456789012:role/",
        f"--prometheus-listen-addr=127.0.0.1:{ports[0]}",
    ]
    listen = f"--prometheus-listen-addr=127.0.0.1:{ports[1]}"
    with (
        running_server(directory, server_flags) as (_, port),
        running_agent(directory, f"localhost:{port}", agent_files, listen),
    ):
        wait_until(lambda: "kiam_server_node_streams" in set(scraped(ports[0])), "the server's metrics")
        names = {name for port in ports for name in scraped(port)}
    kernel = {f"{family.name}_total" for family in DataplaneCollector(load_dataplane("nftables")).describe()}
    return frozenset(names | kernel)


def used(expression: str) -> set[str]:
    """The metrics of a PromQL expression, which has to be one."""
    for name, value in GRAFANA.items():
        expression = expression.replace(name, value)
    promql_parser.parse(expression)
    return set(re.findall(r"\b(?:kiam|grpc|process)_\w+\b", re.sub(r'"[^"]*"|grpc_(?:method|code)', "", expression)))


def test_dashboard_has_only_metrics_that_exist(metrics: frozenset[str]) -> None:
    dashboard = json.loads((DOCS / "grafana-dashboard.json").read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert panels
    for panel in panels:
        expressions = [target["expr"] for target in panel["targets"]]
        assert expressions, panel["title"]
        for expression in expressions:
            names = used(expression)
            assert names, expression
            assert names <= metrics, (panel["title"], names - metrics)
    variables = re.findall(r"\$(\w+)", json.dumps(dashboard["panels"]))
    assert set(variables) <= {"datasource", "instance", "__rate_interval"}
    assert {panel["id"] for panel in dashboard["panels"]} == set(range(1, len(dashboard["panels"]) + 1))


def alerts() -> list[dict[str, Any]]:
    """The rules that the chart brings."""
    rules: list[dict[str, Any]] = yaml.safe_load((CHART / "alerts.yaml").read_text())
    return rules


def test_alerts_have_only_metrics_that_exist(metrics: frozenset[str]) -> None:
    for rule in alerts():
        names = used(rule["expr"])
        assert names, rule["alert"]
        assert names <= metrics, (rule["alert"], names - metrics)
        assert rule["annotations"]["summary"]
    assert len({rule["alert"] for rule in alerts()}) == len(alerts())


def test_every_metric_is_in_the_tables_and_the_tables_have_no_other(metrics: frozenset[str]) -> None:
    page = (DOCS / "operating.md").read_text()
    table = page[page.index("## Metrics") : page.index("## Alerts")]
    listed = {
        name
        for line in table.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`((?:kiam|grpc)_\w+)`", line.split("|")[1])
    }
    bare = {
        name.removesuffix("_bucket")
        for name in metrics
        if OURS.fullmatch(name) and not name.endswith(("_sum", "_count", "_created"))
    }
    assert listed == bare


def test_chart_brings_the_alerts_with_their_runbooks_when_asked() -> None:
    def rules(**values: object) -> list[dict[str, Any]]:
        objects = [o for o in manifests({"prometheusRule": values}) if o["kind"] == "PrometheusRule"]
        return [rule for o in objects for rule in o["spec"]["groups"][0]["rules"]]

    assert rules() == []
    brought = rules(enabled=True, runbooks="https://docs.test/kiam/", rules=[{"alert": "Mine", "expr": "up"}])
    assert brought[-1] == {"alert": "Mine", "expr": "up"}
    for ours, rule in zip(brought, alerts(), strict=False):
        page = f"https://docs.test/kiam/troubleshooting.md#{rule['alert'].lower()}"
        assert ours == rule | {"annotations": rule["annotations"] | {"runbook_url": page}}
    assert [rule["alert"] for rule in brought[:-1]] == [rule["alert"] for rule in alerts()]


def test_every_alert_has_its_section_in_the_troubleshooting_page_and_on_the_operating_page() -> None:
    sections = re.findall(r"^### (Kiam\w+)$", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    assert sections == [rule["alert"] for rule in alerts()]
    listed = re.findall(
        r"^\| \[`(Kiam\w+)`\]\(troubleshooting\.md#(\w+)\)", (DOCS / "operating.md").read_text(), re.MULTILINE
    )
    assert listed == [(name, name.lower()) for name in sections]


def test_dashboard_is_linked_and_is_json(tmp_path: Path) -> None:
    assert "(grafana-dashboard.json)" in (DOCS / "operating.md").read_text()


def test_the_dashboard_begins_with_four_numbers_that_say_what_to_do() -> None:
    dashboard = json.loads((DOCS / "grafana-dashboard.json").read_text())
    first, *panels = dashboard["panels"]
    assert (first["type"], first["title"]) == ("row", "Overview")
    overview = panels[: next(index for index, panel in enumerate(panels) if panel["type"] == "row")]
    assert [panel["type"] for panel in overview] == ["stat"] * 4
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    sections = {rule["alert"].lower() for rule in alerts()}
    for panel in overview:
        (link,) = panel["links"]
        variable, _, page = link["url"].removeprefix("${").partition("}")
        assert variable in variables
        assert page.removeprefix("troubleshooting.md#") in sections
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places)
