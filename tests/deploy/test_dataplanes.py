"""An agent's pod may do what its dataplane needs, and nothing else."""

from __future__ import annotations

from typing import Any

import helm_python
import pytest

from tests.deploy.chart import GIVEN_CERTIFICATES, Manifest, Values, at, containers, find, manifests, merged

NEEDS: dict[str, tuple[set[str], set[str]]] = {
    "none": (set(), set()),
    "iptables": ({"NET_ADMIN", "NET_RAW"}, {"/run/xtables.lock"}),
    "nftables": ({"NET_ADMIN"}, set()),
    "ebpf": ({"NET_ADMIN", "SYS_ADMIN"}, {"/sys/fs/cgroup"}),
}
"""Dataplane: capabilities and host paths."""
WITH_HOST_NETWORK_PODS: dict[str, tuple[set[str], set[str]]] = {
    "iptables": ({"NET_ADMIN", "NET_RAW", "SYS_ADMIN", "SYS_PTRACE"}, {"/run/xtables.lock", "/sys/fs/cgroup"}),
    "nftables": ({"NET_ADMIN", "SYS_ADMIN", "SYS_PTRACE"}, {"/sys/fs/cgroup"}),
    "ebpf": ({"NET_ADMIN", "SYS_ADMIN"}, {"/sys/fs/cgroup"}),
}


def agent_pod(*values: Values) -> Manifest:
    pod: Manifest = find(manifests(GIVEN_CERTIFICATES, *values), "DaemonSet/kiam-agent")["spec"]["template"]["spec"]
    return pod


def capabilities(container: Manifest) -> set[str]:
    assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
    return set(container["securityContext"]["capabilities"].get("add", ()))


def host_paths(pod: Manifest) -> set[str]:
    return {volume["hostPath"]["path"] for volume in pod["volumes"] if "hostPath" in volume}


def check_needs(pod: Manifest, needs: tuple[set[str], set[str]]) -> None:
    everything = pod.get("initContainers", []) + pod["containers"]
    for container in everything:
        assert capabilities(container) == needs[0]
        mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounted - {"/tmp", "/etc/kiam/tls"} == needs[1]
    assert host_paths(pod) == needs[1]


@pytest.mark.parametrize("dataplane", NEEDS)
def test_gets_only_what_it_needs(dataplane: str) -> None:
    pod = agent_pod(at("agent.dataplane", dataplane))
    check_needs(pod, NEEDS[dataplane])
    assert "hostPID" not in pod


@pytest.mark.parametrize("dataplane", WITH_HOST_NETWORK_PODS)
@pytest.mark.parametrize("treatment", ["deny", "redirect"])
def test_telling_host_network_pods_apart_takes_cgroups(dataplane: str, treatment: str) -> None:
    pod = agent_pod(at("agent.dataplane", dataplane), at("agent.hostNetworkPods", treatment))
    check_needs(pod, WITH_HOST_NETWORK_PODS[dataplane])
    # Rules name cgroups from the root of the caller's cgroup namespace; eBPF compares numbers.
    assert pod.get("hostPID", False) == (dataplane != "ebpf")
    profiles = {c["securityContext"].get("appArmorProfile", {}).get("type") for c in pod["containers"]}
    assert profiles == ({"Unconfined"} if dataplane != "ebpf" else {None})


@pytest.mark.parametrize("dataplane", ["iptables", "nftables", "ebpf"])
def test_an_init_container_installs_it_first_and_alike(dataplane: str) -> None:
    own: Values = at("agent.initContainers", [{"name": "mine", "image": "busybox"}])
    pod = agent_pod(at("agent.dataplane", dataplane), own)
    first, second = pod["initContainers"]
    (agent,) = pod["containers"]
    assert first["command"] == ["/kiam", "dataplane", "install"]
    assert second["name"] == "mine"
    assert first["args"][0] == f"--dataplane={dataplane}"
    # The agent puts back what it finds changed: it must want the very same state.
    assert set(first["args"]) <= set(agent["args"])
    # Which pod it is in is of interest to the agent alone.
    assert first["env"] == [one for one in agent["env"] if not one["name"].startswith("POD_")]
    assert first["image"] == agent["image"]


def test_without_a_dataplane_nothing_installs_one_and_the_agent_is_not_root() -> None:
    pod = agent_pod()
    assert "initContainers" not in pod
    (agent,) = pod["containers"]
    assert agent["securityContext"]["runAsNonRoot"] is True
    assert agent["securityContext"]["runAsUser"] == 65532
    # Its key must be readable for it and for no one else.
    assert pod["securityContext"]["fsGroup"] == 65532
    assert pod["volumes"][0]["secret"]["defaultMode"] == 0o440


def test_a_low_port_takes_one_capability() -> None:
    check_needs(agent_pod(at("agent.host.port", 80)), ({"NET_BIND_SERVICE"}, set()))


@pytest.mark.parametrize("dataplane", ["nftables", "ebpf"])
def test_asking_for_two_dataplanes_is_an_error_that_names_both(dataplane: str) -> None:
    with pytest.raises(helm_python.HelmError, match=f"agent.host.iptables=true .* agent.dataplane is {dataplane}"):
        agent_pod(at("agent.host.iptables", True), at("agent.dataplane", dataplane))


def server_pod(*values: Values) -> Manifest:
    pod: Manifest = find(manifests(GIVEN_CERTIFICATES, *values), "DaemonSet/kiam-server")["spec"]["template"]["spec"]
    return pod


def test_the_server_binds_443_without_root_or_capabilities() -> None:
    pod = server_pod()
    (server,) = pod["containers"]
    assert server["securityContext"]["runAsNonRoot"] is True
    assert capabilities(server) == set()
    assert pod["securityContext"]["sysctls"] == [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "443"}]


def test_the_server_on_the_host_network_needs_one_capability_for_443_and_none_above_1023() -> None:
    pod = server_pod(at("server.useHostNetwork", True))
    assert capabilities(pod["containers"][0]) == {"NET_BIND_SERVICE"}
    assert "sysctls" not in pod["securityContext"]  # Kubernetes refuses network sysctls on the host network
    pod = server_pod(at("server.useHostNetwork", True), at("server.service.targetPort", 9610))
    assert capabilities(pod["containers"][0]) == set()
    assert pod["containers"][0]["securityContext"]["runAsNonRoot"] is True


EVERYTHING: Values = merged(GIVEN_CERTIFICATES, at("agent.dataplane", "ebpf"), at("agent.startupTaint.enabled", True))


def workloads() -> list[Any]:
    return [
        pytest.param(manifest, container, id=container["name"])
        for manifest in manifests(EVERYTHING)
        for container in containers(manifest)
    ]


@pytest.mark.parametrize(("manifest", "container"), workloads())
def test_every_container_is_confined(manifest: Manifest, container: Manifest) -> None:
    security = container["securityContext"]
    assert security["allowPrivilegeEscalation"] is False
    assert security["readOnlyRootFilesystem"] is True
    assert "privileged" not in security
    assert manifest["spec"]["template"]["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}


def test_the_agent_has_no_kubernetes_token_and_no_rights() -> None:
    objects = manifests(EVERYTHING)
    agent = find(objects, "DaemonSet/kiam-agent")["spec"]["template"]["spec"]
    assert agent["automountServiceAccountToken"] is False
    subjects = [
        subject["name"]
        for manifest in objects
        if manifest["kind"].endswith("Binding")
        for subject in manifest["subjects"]
    ]
    assert agent["serviceAccountName"] not in subjects


def test_the_servers_rights_are_the_contracts() -> None:
    roles = [manifest for manifest in manifests(GIVEN_CERTIFICATES) if manifest["kind"] in ("Role", "ClusterRole")]
    rights = {
        (resource, verb)
        for role in roles
        for rule in role["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    watching = {(resource, verb) for resource in ("pods", "namespaces") for verb in ("get", "list", "watch")}
    assert rights == watching | {("events", "create"), ("events", "patch")}


@pytest.mark.parametrize("dataplane", ["none", "iptables", "nftables", "ebpf"])
def test_asking_the_kernel_for_the_pod_brings_the_agent_alone_what_that_needs(dataplane: str) -> None:
    chosen = at("agent.dataplane", dataplane)
    pod, without = agent_pod(chosen, at("agent.podUid", "check")), agent_pod(chosen)
    agent = pod["containers"][0]
    assert "--pod-uid=check" in agent["args"]
    assert capabilities(agent) == capabilities(without["containers"][0]) | {"SYS_ADMIN", "DAC_READ_SEARCH"}
    mounts = {mount["mountPath"]: mount.get("mountPropagation") for mount in agent["volumeMounts"]}
    assert (mounts["/run/netns"], mounts["/sys/fs/cgroup"]) == ("HostToContainer", "HostToContainer")
    for installs, before in zip(pod.get("initContainers", ()), without.get("initContainers", ()), strict=True):
        assert capabilities(installs) == capabilities(before)
        assert "/run/netns" not in {mount["mountPath"] for mount in installs["volumeMounts"]}


def test_off_without_quotes_is_off() -> None:
    assert agent_pod(at("agent.podUid", False)) == agent_pod()


def test_container_credentials_bring_both_flags_and_just_the_rights_they_need() -> None:
    objects = manifests(GIVEN_CERTIFICATES, at("containerCredentials.enabled", True))
    agent, server = (list(containers(find(objects, f"DaemonSet/kiam-{half}")))[-1] for half in ("agent", "server"))
    assert "--container-credentials" in agent["args"]
    assert "--container-credentials" in server["args"]
    assert capabilities(agent) == {"NET_ADMIN", "NET_BIND_SERVICE"}
    without = manifests(GIVEN_CERTIFICATES)
    added = [manifest for manifest in objects if manifest["kind"] == "ClusterRole" and manifest not in without]
    assert [manifest["rules"] for manifest in added] == [
        [{"apiGroups": [""], "resources": ["serviceaccounts"], "verbs": ["get"]}],
        [{"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]}],
    ]


WEBHOOK: Values = merged(
    at("containerCredentials.enabled", True), at("containerCredentials.webhook", {"enabled": True, "caBundle": "Q0E="})
)


def test_the_webhook_leads_to_the_servers_port_and_never_refuses_a_pod() -> None:
    objects = manifests(GIVEN_CERTIFICATES, WEBHOOK, at("containerCredentials.webhook.port", "9444"))
    (server,) = containers(find(objects, "DaemonSet/kiam-server"))
    assert "--container-credentials-webhook=:9444" in server["args"]
    service = find(objects, "Service/kiam-webhook")["spec"]
    assert service["ports"][0]["targetPort"] == 9444
    assert service["selector"] == find(objects, "Service/kiam-server")["spec"]["selector"]
    (webhook,) = find(objects, "MutatingWebhookConfiguration/kiam-webhook")["webhooks"]
    assert webhook["clientConfig"]["caBundle"] == "Q0E="
    assert webhook["clientConfig"]["service"]["name"] == "kiam-webhook"
    assert webhook["failurePolicy"] == "Ignore"


def test_the_webhook_has_its_authority_from_where_the_certificate_comes_from() -> None:
    given = at("containerCredentials.webhook.caBundle", "")
    with pytest.raises(
        helm_python.HelmError, match=r"needs containerCredentials\.webhook\.caBundle.*kubectl get secret"
    ):
        manifests(WEBHOOK, given)
    objects = manifests(WEBHOOK, given, at("certManager.enabled", True))
    configuration = find(objects, "MutatingWebhookConfiguration/kiam-webhook")
    assert configuration["metadata"]["annotations"] == {"cert-manager.io/inject-ca-from": "kube-system/kiam-server"}
    certificate = find(objects, "Certificate/kiam-server")
    assert "kiam-webhook.kube-system.svc" in certificate["spec"]["dnsNames"]


def test_only_the_startup_taint_brings_a_right_to_nodes() -> None:
    def with_nodes(*values: Values) -> list[str]:
        return [
            manifest["metadata"]["name"]
            for manifest in manifests(GIVEN_CERTIFICATES, *values)
            if manifest["kind"] == "ClusterRole" and any("nodes" in rule["resources"] for rule in manifest["rules"])
        ]

    assert with_nodes() == []
    assert with_nodes(at("agent.startupTaint.enabled", True)) == ["kiam-untaint"]
    assert with_nodes(at("agent.startupTaint.enabled", True), at("rbac.create", False)) == []
