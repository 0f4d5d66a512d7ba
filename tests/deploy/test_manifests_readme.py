"""The README beside the plain manifests: its commands exist, and its names are those the manifests have."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kiam import __version__
from kiam.cli import build_parser
from kiam.dataplane.registry import DATAPLANES
from tests.deploy.chart import ROOT, Manifest
from tests.deploy.generate import MANIFESTS

TEXT = (MANIFESTS / "README.md").read_text()


def commands() -> list[list[str]]:
    """Every command of the page, in words."""
    blocks = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def workloads() -> Iterator[Manifest]:
    for path in MANIFESTS.glob("*/*.yaml"):
        for manifest in yaml.safe_load_all(path.read_text()):
            if manifest["kind"] in ("DaemonSet", "Deployment"):
                yield manifest


def mounted() -> dict[str, set[str]]:
    """Each secret that a manifest mounts, and the files of it that its flags name."""
    found: dict[str, set[str]] = {}
    for manifest in workloads():
        pod = manifest["spec"]["template"]["spec"]
        (secret,) = [volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume]
        flags = [word for container in pod["containers"] for word in container["args"]]
        files = {word.rpartition("/")[2] for word in flags if re.match(r"--(ca|cert|key)=", word)}
        assert found.setdefault(secret, files) == files
    return found


def test_the_secrets_it_makes_are_those_that_are_mounted() -> None:
    made = {}
    for words in commands():
        if words[:4] == ["kubectl", "create", "secret", "generic"]:
            files = {word.rpartition("/")[2] for word in words if word.startswith("--from-file=")}
            made[words[4]] = files
            assert words[words.index("-n") + 1] == "kube-system"
    assert made == mounted()


def test_its_table_of_secrets_is_true() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| (.*?) \| (\w+) `([\w-]+)` \|$", TEXT, re.MULTILINE)
    assert {name: set(re.findall(r"`([^`]+)`", files)) for name, files, _, _ in rows} == mounted()
    who = {(m["kind"], m["metadata"]["name"]) for m in workloads()}
    assert {(kind, name) for _, _, kind, name in rows} == who


def test_the_files_it_makes_are_those_it_puts_into_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    from kiam.cli import main

    for words in commands():
        if words[0] == "kiam":
            assert main(words[1:]) == 0
    for words in commands():
        for word in words:
            if word.startswith("--from-file="):
                assert Path(word.partition("=")[2]).is_file()


def test_what_it_applies_is_there_and_what_it_names_exists() -> None:
    applied = [ROOT / words[3] for words in commands() if words[:3] == ["kubectl", "apply", "-k"]]
    assert applied
    for folder in applied:
        assert (folder / "kustomization.yaml").is_file()
    for dataplane in DATAPLANES:
        assert f"`agent-{dataplane}`" in TEXT
    names = {f"{m['kind'].lower()}/{m['metadata']['name']}" for m in workloads()}
    for words in commands():
        if "rollout" in words:
            assert words[-1] in names
    assert "--host-interface=cali+" in str(list(workloads()))
    assert "--role-base-arn-autodetect" in str(list(workloads()))


def test_the_images_it_builds_are_the_ones_that_run() -> None:
    built = {words[words.index("-t") + 1].rpartition("/")[2] for words in commands() if words[0] == "docker"}
    pods = [m["spec"]["template"]["spec"] for m in workloads()]
    images = {c["image"] for pod in pods for c in [*pod.get("initContainers", ()), *pod["containers"]]}
    assert built == images == {f"kiam-agent:{__version__}", f"kiam-server:{__version__}"}
    kustomization: dict[str, Any] = yaml.safe_load((MANIFESTS / "kustomization.yaml").read_text())
    assert {f"{image['name']}:{image['newTag']}" for image in kustomization["images"]} == built


def test_its_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)", TEXT):
        assert (MANIFESTS / target).exists(), target


def test_the_command_in_the_pod_can_be_started() -> None:
    (words,) = [words for words in commands() if "exec" in words]
    build_parser("dataplane").parse_args(words[words.index("/kiam") + 1 :])
