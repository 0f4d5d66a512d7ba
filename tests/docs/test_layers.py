"""The architecture page shows the layers that import-linter checks, and no others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.layers import PAGE, ROOT, contracts, page


def test_the_architecture_page_shows_the_contracts_as_they_are() -> None:
    assert PAGE.read_text() == page(), "run make architecture"


def test_every_package_with_rooms_of_its_own_has_a_layers_contract() -> None:
    covered = {package for contract in contracts() for package in contract.get("containers", ())}
    rooms = {
        f"kiam.{path.name}"
        for path in (ROOT / "kiam").iterdir()
        if path.is_dir() and any((inner / "__init__.py").exists() for inner in path.iterdir() if inner.is_dir())
    }
    assert rooms <= covered


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("agent/core/failures.py", "kiam.agent.http.handlers"),
        ("agent/core/addresses.py", "asyncio"),
        ("agent/core/node.py", "time"),
        ("agent/core/pods.py", "grpc"),
        ("agent/kernel/rtnetlink.py", "kiam.agent.http.handlers"),
        ("agent/run.py", "kiam.server.settings"),
        ("agent/metrics.py", "kubernetes"),
        ("server/policy/permitted.py", "kiam.server.grpc.service"),
        ("server/aws/sts.py", "kiam.server.kubernetes.objects"),
        ("netfilter/interfaces.py", "kiam.dataplane.contract"),
        ("dataplane/nftables/__init__.py", "kiam.dataplane.ebpf.bpf"),
        ("durations.py", "kiam.netfilter.interfaces"),
        ("verify/checks/installed.py", "kiam.verify.discovery"),
        ("tls/certificates.py", "kiam.tls.inspection"),
    ],
)
def test_a_planted_import_through_a_wall_turns_lint_red(tmp_path: Path, importer: str, imported: str) -> None:
    planted = _copy(tmp_path) / importer
    planted.write_text(planted.read_text() + f"\nimport {imported}  # planted\n")
    told = _lint(tmp_path)
    assert " 0 broken" not in told
    assert imported in told


@pytest.mark.parametrize("stray", ["helpers.py", "agent/helpers.py", "netfilter/helpers.py"])
def test_a_module_that_no_layer_names_turns_lint_red(tmp_path: Path, stray: str) -> None:
    (_copy(tmp_path) / stray).write_text("")
    assert "helpers" in _lint(tmp_path)


def _copy(folder: Path) -> Path:
    for name in ("kiam", "pyproject.toml"):
        subprocess.run(["cp", "-r", ROOT / name, folder / name], check=True)
    return folder / "kiam"


def _lint(folder: Path) -> str:
    """What import-linter says of a tree that isn't in order."""
    linter = Path(sys.executable).parent / "lint-imports"
    checked = subprocess.run(
        [linter, "--no-logo", "--no-cache"],
        cwd=folder,
        env={"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert checked.returncode != 0
    return checked.stdout + checked.stderr
