"""Every object is what the Kubernetes API takes, by its own OpenAPI schemas, strictly: no unknown field."""

from __future__ import annotations

import kubernetes_validate
import pytest

from tests.deploy.chart import GIVEN_CERTIFICATES, Values, at, identity, manifests, merged

VERSIONS = ("1.25", "1.31", "1.37")
"""The oldest and newest whose schemas the package ships, and one between."""

CUSTOM = ("cert-manager.io/", "monitoring.coreos.com/")
"""Not part of Kubernetes: their definitions come with cert-manager and the Prometheus operator."""

VARIANTS: dict[str, Values] = {
    "defaults": {},
    "iptables": at("agent.dataplane", "iptables"),
    "ebpf": at("agent.dataplane", "ebpf"),
    "host-network pods": merged(at("agent.dataplane", "nftables"), at("agent.hostNetworkPods", "deny")),
    "startup taint": at("agent.startupTaint.enabled", True),
    "deployment": merged(at("server.deployment.enabled", True), at("server.useHostNetwork", True)),
    "maxSurge": at(
        "agent.updateStrategy", {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    ),
    "everything": merged(
        at("agent.extraEnv", {"A": "b"}),
        at("agent.extraHostPathMounts", [{"name": "x", "hostPath": "/x", "mountPath": "/x"}]),
        at("agent.initContainers", [{"name": "x", "image": "busybox"}]),
        at("agent.podAnnotations", {"a": "b"}),
        at("agent.podLabels", {"a": "b"}),
        at("agent.tolerations", [{"operator": "Exists"}]),
        at("agent.resources", {"limits": {"memory": "128Mi"}}),
        at("agent.seLinuxOptions", {"user": "system_u", "role": "system_r", "type": "spc_t", "level": "s0"}),
        at("agent.priorityClassName", "system-node-critical"),
        at("agent.serviceLabels", {"a": 1}),
        at("agent.serviceAnnotations", {"a": True}),
        at("imagePullSecrets", ["a", {"name": "b"}]),
        at("certManager.enabled", True),
        at("agent.prometheus.servicemonitor.enabled", True),
        at("prometheusRule.enabled", True),
    ),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_objects_fit_the_schema(variant: str, version: str) -> None:
    checked = 0
    for manifest in manifests(GIVEN_CERTIFICATES, VARIANTS[variant]):
        if manifest["apiVersion"].startswith(CUSTOM):
            continue
        if version == "1.25" and variant == "host-network pods" and manifest["kind"] == "DaemonSet":
            continue  # rendered for a newer Kubernetes: appArmorProfile came in 1.30 (test_cluster.py has the old way)
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            pytest.fail(f"{identity(manifest)}: {error.message}")
        checked += 1
    assert checked >= 8


def test_an_unknown_field_is_noticed() -> None:
    """The check above can fail."""
    manifest = manifests(GIVEN_CERTIFICATES)[0]
    manifest["spec"]["template"]["spec"]["hostNetwrok"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, VERSIONS[-1], strict=True)


def test_no_object_needs_an_api_that_came_after_1_21() -> None:
    newest = {
        "v1",
        "apps/v1",
        "policy/v1",
        "rbac.authorization.k8s.io/v1",
        "cert-manager.io/v1",
        "monitoring.coreos.com/v1",
    }
    everything = merged(*VARIANTS.values(), at("agent.dataplane", "ebpf"))
    assert {manifest["apiVersion"] for manifest in manifests(GIVEN_CERTIFICATES, everything)} <= newest
