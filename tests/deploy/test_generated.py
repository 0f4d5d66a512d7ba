"""What is made from the chart is up to date, and works as it is."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from kiam.dataplane.registry import DATAPLANES
from tests.deploy.chart import ROOT, Manifest, containers, identity
from tests.deploy.generate import MANIFESTS, README, TABLE_BEGINS, parameters, plain_manifests, readme
from tests.deploy.test_commands import commands, parsed

NEEDS_KUBECTL = "kubectl is not installed: it is what builds a kustomization"


def test_the_readmes_table_is_the_values_files() -> None:
    assert README.read_text() == readme(), "run make chart-docs"
    assert README.read_text().count(TABLE_BEGINS) == 1


def test_a_parameter_without_documentation_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"a\.b has no line of documentation"):
        list(parameters("a:\n  b: 1\n"))


def test_the_plain_manifests_are_the_charts() -> None:
    found = {path: path.read_text() for path in MANIFESTS.rglob("*.yaml")}
    assert found == plain_manifests(), "run make manifests"


def documents(*names: str) -> list[Manifest]:
    return [document for name in names for document in yaml.safe_load_all((MANIFESTS / name).read_text()) if document]


@pytest.mark.parametrize("dataplane", DATAPLANES)
def test_the_plain_manifests_can_be_started(dataplane: str, tmp_path: Path) -> None:
    objects = documents(f"agent-{dataplane}/agent.yaml", "server/rbac.yaml", "server/server.yaml")
    lines = [line for manifest in objects for container in containers(manifest) for line in commands(container)]
    assert {line[1] for line in lines} == {"agent", "dataplane", "server", "health"}
    for line in lines:
        parsed(line, tmp_path)
    for manifest in objects:
        kubernetes_validate.validate(manifest, "1.37", strict=True)


@pytest.mark.parametrize("dataplane", DATAPLANES)
def test_agents_connect_where_the_server_listens(dataplane: str, tmp_path: Path) -> None:
    objects = documents(f"agent-{dataplane}/agent.yaml", "server/server.yaml")
    lines = [parsed(line, tmp_path) for o in objects for container in containers(o) for line in commands(container)]
    (agent,) = [line for line in lines if line.command == "agent"]
    (server,) = [line for line in lines if line.command == "server"]
    (service,) = [o for o in objects if o["kind"] == "Service" and o["metadata"]["name"] == "kiam-server"]
    assert service["spec"]["clusterIP"] == "None"  # a name of all servers' addresses, and nothing that translates ports
    assert agent.server_address.partition(":")[0] == "kiam-server"
    assert agent.server_address.partition(":")[2] == server.bind.partition(":")[2] == "9610"


def test_the_plain_manifests_hold_no_secret() -> None:
    assert not [
        manifest for path in plain_manifests() for manifest in documents(str(path)) if manifest["kind"] == "Secret"
    ]


def test_the_plain_manifests_use_the_documents_secrets() -> None:
    """Those of docs/tls.md, as its kubectl lines make them."""
    for name, secret, cert in (
        ("agent-nftables/agent.yaml", "kiam-agent-tls", "agent.pem"),
        ("server/server.yaml", "kiam-server-tls", "server.pem"),
    ):
        (pod,) = [m["spec"]["template"]["spec"] for m in documents(name) if m["kind"] in ("DaemonSet", "Deployment")]
        assert pod["volumes"][0]["secret"]["secretName"] == secret
        assert f"--cert=/etc/kiam/tls/{cert}" in pod["containers"][0]["args"]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason=NEEDS_KUBECTL)
@pytest.mark.parametrize("folder", [".", "server", *(f"agent-{dataplane}" for dataplane in DATAPLANES)])
def test_the_kustomizations_build(folder: str) -> None:
    built = subprocess.run(
        ["kubectl", "kustomize", str(MANIFESTS / folder)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    names = {identity(manifest) for manifest in yaml.safe_load_all(built.stdout)}
    assert ("DaemonSet/kiam-agent" in names) is (folder != "server")
    assert ("Deployment/kiam-server" in names) is (folder in (".", "server"))


@pytest.mark.parametrize("folder", [MANIFESTS, *MANIFESTS.glob("*/")], ids=lambda folder: folder.name)
def test_the_kustomizations_name_what_is_there(folder: Path) -> None:
    resources = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    assert resources
    for resource in resources:
        assert (folder / resource).exists()
