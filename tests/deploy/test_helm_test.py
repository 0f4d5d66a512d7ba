"""``helm test`` itself, against an API, with the pods' commands run on nodes of the sandbox."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import helm_python
import pytest

from tests.deploy import kubelets
from tests.deploy.chart import GIVEN_CERTIFICATES, at, merged
from tests.deploy.cluster import Cluster, install, running_cluster
from tests.deploy.kubelets import running_kubelets
from tests.integration.verify.site import Site

VALUES = merged(
    GIVEN_CERTIFICATES,
    at("test.enabled", True),
    at("agent.dataplane", "nftables"),
    at("agent.host", {"interface": "cali+", "port": 8181}),
)


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as made:
        yield made


def helm_test(cluster: Cluster, site: Site, folder: Path) -> str:
    """Helm's own complaint; empty: the test passed."""
    with cluster.helm() as helm, running_kubelets(cluster, {"node-1": site}, folder):
        install(helm, VALUES)
        try:
            helm.test("kiam", timeout=250)
        except helm_python.HelmError as error:
            return str(error)
    return ""


@pytest.mark.timeout(400)
def test_it_passes_where_pods_get_their_own_role(site: Site, tmp_path: Path) -> None:
    site.install("nftables")
    with running_cluster() as cluster:
        assert helm_test(cluster, site, tmp_path) == "", cluster.logs
        said = cluster.logs["kiam-test", "collect"]
    assert said.startswith("== node node-1: ok\n")
    # Each is proved: none is left out for a right that the pod lacks.
    assert set(re.findall(r"│ live: .*?│ +(\w+) +│", said)) == {"PASS"}
    assert said.endswith("== 1 of 1 nodes ok\n")
    assert site.leftovers() == []
    assert "DaemonSet/kiam-test" not in {f"{o['kind']}/{o['metadata']['name']}" for o in cluster.objects.values()}


@pytest.mark.timeout(400)
def test_it_fails_where_they_get_the_nodes(site: Site, tmp_path: Path) -> None:
    """Nobody has installed the dataplane there."""
    with running_cluster() as cluster:
        assert "kiam-test" in helm_test(cluster, site, tmp_path)
        said = cluster.logs["kiam-test", "collect"]
    assert said.startswith("== node node-1: failed (exit 1)\n")
    assert said.endswith("== 0 of 1 nodes ok, not node-1\n")


@pytest.mark.timeout(400)
def test_it_fails_where_the_proof_cannot_be_made(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a policy takes capabilities from pods: what isn't proved hasn't passed."""
    site.install("nftables")
    monkeypatch.setattr(kubelets, "REFUSED_CAPABILITIES", {"SYS_ADMIN"})
    with running_cluster() as cluster:
        assert "kiam-test" in helm_test(cluster, site, tmp_path)
        said = cluster.logs["kiam-test", "collect"]
    assert "not proved, see 'live: pod to agent'" in said
