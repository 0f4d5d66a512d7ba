"""The Vagrant boxes and the kind cluster can't run here; what they refer to has to be there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from kiam import __version__
from kiam.cli import build_parser
from kiam.dataplane.registry import DATAPLANES
from tests.deploy.chart import ROOT, containers
from tests.deploy.generate import MANIFESTS

VAGRANT = ROOT / "vagrant"
KIND = VAGRANT / "kind"


@pytest.mark.parametrize(
    "script", [VAGRANT / "redirect-test", VAGRANT / "report", KIND / "test"], ids=lambda path: path.name
)
def test_scripts_are_whole(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)


def test_both_run_the_same_script() -> None:
    for text in ((VAGRANT / "Vagrantfile").read_text(), (KIND / "test").read_text()):
        assert "REDIRECT_TEST_MACHINE=disposable" in text
        assert "/srv/kiam/vagrant/redirect-test" in text


def test_the_cluster_has_a_node_of_the_name_the_test_uses() -> None:
    cluster = yaml.safe_load((KIND / "cluster.yaml").read_text())
    text = (KIND / "test").read_text()
    assert f"CLUSTER={cluster['name']}\n" in text
    assert "NODE=$CLUSTER-worker\n" in text
    assert [node["role"] for node in cluster["nodes"]].count("worker") == 1


def test_the_images_are_the_manifests() -> None:
    lines = [line for line in (KIND / "test").read_text().splitlines() if re.match(r"(VERSION|\w+_IMAGE)=", line)]
    named = subprocess.run(
        ["bash", "-c", "; ".join([*lines, "echo $AGENT_IMAGE $SERVER_IMAGE"])],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert named == [f"kiam-agent:{__version__}", f"kiam-server:{__version__}"]
    objects = [o for path in MANIFESTS.glob("*/*r.yaml") for o in yaml.safe_load_all(path.read_text())]
    assert {container["image"] for o in objects for container in containers(o)} <= set(named)
    for target in re.findall(r"--target (\S+)", (KIND / "test").read_text()):
        assert f" AS {target}\n" in (ROOT / "deploy" / "Dockerfile").read_text()


def test_what_is_replaced_in_the_manifests_is_in_them() -> None:
    """A sed expression that matches nothing would leave the test testing something else."""
    text = (KIND / "test").read_text()
    server = (MANIFESTS / "server" / "server.yaml").read_text()
    for pattern in re.findall(r"\bs\|([^|]+)\|", text):
        assert pattern in server
    for dataplane in DATAPLANES:
        assert "cali+" in (MANIFESTS / f"agent-{dataplane}" / "agent.yaml").read_text()


def test_the_certificates_are_made_by_commands_there_are() -> None:
    commands = re.findall(r"kiam certs (\w+)", (KIND / "test").read_text())
    assert commands == ["init", "server", "agent"]
    for command in commands:
        build_parser("certs").parse_args(["certs", command])


@pytest.mark.parametrize("word", ["podman", "--all"])
def test_a_wrong_word_is_refused_before_anything_is_made(word: str, tmp_path: Path) -> None:
    for name in ("docker", "kind", "kubectl"):
        (tmp_path / name).write_text("#!/bin/sh\necho called >&2\nexit 99\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        [KIND / "test", word], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == f"kind/test: '{word}' is not iptables, nftables or ebpf\n"
