"""``helm install`` and ``helm upgrade`` against a Kubernetes API: what depends on what the cluster has and holds."""

from __future__ import annotations

import pytest
import yaml

from tests.deploy.chart import GIVEN_CERTIFICATES, at, identity, manifests, merged
from tests.deploy.cluster import Cluster, install, running_cluster, upgrade


def certificates(cluster: Cluster) -> dict[str, dict[str, str]]:
    return {half: cluster.find("Secret", f"kiam-{half}")["data"] for half in ("agent", "server")}


def test_certificates_made_on_install_are_kept_on_upgrade() -> None:
    with running_cluster() as cluster, cluster.helm() as helm:
        install(helm)
        before = certificates(cluster)
        upgrade(helm, at("agent.log.level", "debug"))
        assert "--level=debug" in str(cluster.find("DaemonSet", "kiam-agent"))
        assert certificates(cluster) == before
        assert before["agent"]["ca"] == before["server"]["ca"]


def test_certificates_outlive_the_release_and_serve_the_next() -> None:
    with running_cluster() as cluster, cluster.helm() as helm:
        install(helm)
        before = certificates(cluster)
        helm.uninstall("kiam")
        assert cluster.kinds() == {"Secret"}
        install(helm)
        assert certificates(cluster) == before


def test_a_lost_secret_brings_new_certificates_for_both_halves() -> None:
    """One alone would be signed by an authority that the other half doesn't know."""
    with running_cluster() as cluster, cluster.helm() as helm:
        install(helm)
        before = certificates(cluster)
        cluster.objects = {path: o for path, o in cluster.objects.items() if not path.endswith("secrets/kiam-agent")}
        upgrade(helm)
        after = certificates(cluster)
        assert after["agent"]["ca"] == after["server"]["ca"] != before["server"]["ca"]


def test_certificates_of_a_conventional_release_are_kept() -> None:
    with running_cluster() as cluster, cluster.helm() as helm:
        for half in ("agent", "server"):
            data = {"ca": "Y2E=", "cert": "Y2VydA==", "key": "a2V5"}
            metadata = {
                "name": f"kiam-{half}",
                "namespace": "kube-system",
                "labels": {"app.kubernetes.io/managed-by": "Helm"},
                "annotations": {
                    "meta.helm.sh/release-name": "kiam",
                    "meta.helm.sh/release-namespace": "kube-system",
                },
            }
            path = f"/api/v1/namespaces/kube-system/secrets/kiam-{half}"
            cluster.objects[path] = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data}
        before = certificates(cluster)
        install(helm)
        assert certificates(cluster) == before


@pytest.mark.parametrize("created", [True, False])
def test_pod_security_policies_are_made_where_the_cluster_has_them(created: bool) -> None:
    with running_cluster("v1.21.0", pod_security_policies=True) as cluster, cluster.helm() as helm:
        install(helm, GIVEN_CERTIFICATES, at("psp.create", created), at("agent.dataplane", "iptables"))
        assert ("PodSecurityPolicy" in cluster.kinds()) is created
        if created:
            policy = cluster.find("PodSecurityPolicy", "kiam-agent")["spec"]
            assert policy["privileged"] is False
            assert policy["allowedCapabilities"] == ["NET_ADMIN", "NET_RAW"]
            assert policy["allowedHostPaths"] == [{"pathPrefix": "/run/xtables.lock"}]
            assert policy["hostNetwork"] is True
            assert cluster.find("Role", "kiam-agent-psp")["rules"][0]["resourceNames"] == ["kiam-agent"]
            assert cluster.find("RoleBinding", "kiam-server-psp")["subjects"][0]["name"] == "kiam-server"
            server = cluster.find("PodSecurityPolicy", "kiam-server")["spec"]
            assert server["allowedHostPaths"] == [{"pathPrefix": "/usr/share/ca-certificates", "readOnly": True}]


def test_pod_security_policies_are_left_out_where_the_cluster_has_none() -> None:
    with running_cluster() as cluster, cluster.helm() as helm:
        install(helm, GIVEN_CERTIFICATES, at("psp.create", True))
        assert "PodSecurityPolicy" not in cluster.kinds()


@pytest.mark.parametrize("version", ["v1.21.0", "v1.29.5-eks-1234567", "v1.30.0"])
def test_app_armor_is_told_in_the_words_of_the_version(version: str) -> None:
    values = merged(GIVEN_CERTIFICATES, at("agent.dataplane", "nftables"), at("agent.hostNetworkPods", "deny"))
    with running_cluster(version) as cluster, cluster.helm() as helm:
        install(helm, values)
        template = cluster.find("DaemonSet", "kiam-agent")["spec"]["template"]
    fields = [c["securityContext"].get("appArmorProfile") for c in template["spec"]["containers"]]
    annotations = {
        f"container.apparmor.security.beta.kubernetes.io/kiam-{name}": "unconfined" for name in ("agent", "dataplane")
    }
    if version == "v1.30.0":
        assert fields == [{"type": "Unconfined"}]
        assert "annotations" not in template["metadata"]
    else:
        assert fields == [None]
        assert template["metadata"]["annotations"] == annotations


def test_before_1_22_the_server_binds_443_with_a_capability() -> None:
    """The sysctl that lets it do without was not among the safe ones yet: such a pod would be refused."""
    with running_cluster("v1.21.0") as cluster, cluster.helm() as helm:
        install(helm, GIVEN_CERTIFICATES)
        pod = cluster.find("DaemonSet", "kiam-server")["spec"]["template"]["spec"]
    assert "sysctls" not in pod["securityContext"]
    assert pod["containers"][0]["securityContext"]["capabilities"]["add"] == ["NET_BIND_SERVICE"]


def test_an_older_cluster_is_refused() -> None:
    with (
        running_cluster("v1.20.0") as cluster,
        cluster.helm() as helm,
        pytest.raises(Exception, match=r"chart requires kubeVersion: >=1\.21\.0-0"),
    ):
        install(helm, GIVEN_CERTIFICATES)


def test_what_is_installed_is_what_is_rendered_offline() -> None:
    """The other tests render without a cluster; the same templates have to come out of an install."""
    with running_cluster("v1.36.0") as cluster, cluster.helm() as helm:
        install(helm, GIVEN_CERTIFICATES)
        stored = {identity(o): o for o in cluster.objects.values()}
    for manifest in manifests(GIVEN_CERTIFICATES):
        found = stored.pop(identity(manifest))
        assert yaml.safe_dump(found.get("spec")) == yaml.safe_dump(manifest.get("spec"))
        assert found.get("rules") == manifest.get("rules")
    assert stored == {}
