"""Each parameter, set to another value, changes exactly the fields it should and no others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.cases import AGENT, CASES, INIT_CONTAINER, RENAMED, SERVER, Case
from tests.deploy.chart import CHART, GIVEN_CERTIFICATES, at, changes, manifests

ELSEWHERE = {
    "agent.name",
    "server.name",
    "agent.dataplane",
    "agent.host.iptables",
    "psp.create",
    "agent.removeOnUninstall",
    "test.enabled",
    "test.node",
    "test.timeout",
    "agent.podUid",
    "containerCredentials.enabled",
    "containerCredentials.webhook.enabled",
    "containerCredentials.webhook.port",
    "containerCredentials.webhook.caBundle",
    "prometheusRule.standard",
    "prometheusRule.runbooks",
    "selfSigned.validityDays",
    "selfSigned.renewBeforeDays",
    "selfSigned.cronJob.enabled",
    "selfSigned.cronJob.schedule",
    "nameOverride",
    "fullnameOverride",
    "extraArgs",
}
"""Parameters that have tests of their own, here and in the files beside this one."""


def documented() -> dict[str, str]:
    """Conventional kiam's parameters and their defaults, from its document's table."""
    lines = (Path(__file__).parent / "parameters.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| ")]
    return {row[0]: row[2] for row in rows[2:]}


def parameters() -> Iterator[tuple[str, Any]]:
    """The chart's own parameters and their defaults: every leaf of values.yaml."""

    def leaves(node: object, path: str) -> Iterator[tuple[str, Any]]:
        if isinstance(node, dict) and node and path not in CASES:
            for key, value in node.items():
                yield from leaves(value, f"{path}.{key}" if path else key)
        else:
            yield path, node

    return leaves(yaml.safe_load((CHART / "values.yaml").read_text()), "")


@pytest.mark.parametrize(("parameter", "case"), CASES.items(), ids=CASES)
def test_changes_exactly_its_fields(parameter: str, case: Case) -> None:
    before = manifests(GIVEN_CERTIFICATES, case.context)
    after = manifests(GIVEN_CERTIFICATES, case.context, at(parameter, case.value))
    assert changes(before, after) == case.fields


@pytest.mark.parametrize("half", ["agent", "server"])
def test_name_renames_the_container_and_its_label(half: str) -> None:
    workload = AGENT if half == "agent" else SERVER
    container = f"{workload} spec.template.spec.containers"
    found = changes(manifests(GIVEN_CERTIFICATES), manifests(GIVEN_CERTIFICATES, at(f"{half}.name", "other")))
    renamed = {path: value for path, value in found.items() if path.startswith(container)}
    assert renamed[f"{container}[kiam-other].name"] == "kiam-other"
    assert renamed[f"{container}[kiam-{half}].name"] is None
    assert {path: value for path, value in found.items() if path not in renamed} == RENAMED[half]


def test_agent_host_iptables_still_means_iptables() -> None:
    asked = manifests(GIVEN_CERTIFICATES, at("agent.host.iptables", True))
    assert changes(manifests(GIVEN_CERTIFICATES, at("agent.dataplane", "iptables")), asked) == {}
    found = changes(manifests(GIVEN_CERTIFICATES), asked)
    assert found[f"{INIT_CONTAINER}.args[--dataplane]"] == "iptables"
    assert found[f"{AGENT} spec.template.spec.containers[kiam-agent].args[--dataplane]"] == "iptables"


def test_every_parameter_is_covered() -> None:
    assert {name for name, _ in parameters()} == CASES.keys() | ELSEWHERE


@pytest.mark.parametrize(("parameter", "default"), documented().items(), ids=documented())
def test_every_documented_parameter_is_there_with_its_default(parameter: str, default: str) -> None:
    ours = dict(parameters())[parameter]
    if parameter.endswith((".image.repository", ".image.tag")):
        return  # the document leaves images to us
    if (parameter.startswith("serviceAccounts.") and parameter.endswith(".name")) or parameter == "imagePullSecrets":
        assert ours is None
        return
    assert ours == yaml.safe_load(default)


def test_the_documented_table_is_whole() -> None:
    assert len(documented()) == 109
