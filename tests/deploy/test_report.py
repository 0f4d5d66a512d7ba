"""``vagrant/report`` with stand-ins for docker, kind, kubectl and vagrant, which can't run here."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.deploy.chart import ROOT

SAYS = {
    "docker": """
case "$1" in
  --version) echo "Docker version 27.1" ;;
  exec) cat >/dev/null; echo "PASS pod to agent" ;;
esac
""",
    "kind": 'case "$1" in --version) echo "kind version 0.29" ;; esac',
    "kubectl": """
case "$*" in
  *kustomize*) echo "kind: List" ;;
  *apply*) cat >/dev/null ;;
  *"get events"*) echo "Warning KiamRoleForbidden role arn:aws:iam::123456789012:role/admin" ;;
  *verify*) echo '{"checks": []}' ;;
  *version*) echo "Server Version: v1.34.0" ;;
esac
""",
    "vagrant": """
case "$1" in
  --version) echo "Vagrant 2.4" ;;
  up) echo "PASS every dataplane on arn:aws:iam::123456789012:role/x"; exit ${VAGRANT_UP:-0} ;;
  status) printf '1,debian12,state,running\\n1,rocky9,state,not_created\\n' ;;
  ssh) echo "kiam 5.0.0 on $2" ;;
esac
""",
}


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    folder = tmp_path / "programs"
    folder.mkdir()
    for name, script in SAYS.items():
        (folder / name).write_text(f"#!/bin/bash\n{script}\nexit 0\n")
        (folder / name).chmod(0o755)
    return folder


def report(programs: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "vagrant" / "report", *words],
        env={"PATH": f"{programs}:/usr/bin:/bin", "HOME": str(programs)} | environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_everything_passed_is_one_verdict_and_one_file(programs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = report(programs, f"--out={out}".partition("=")[0], str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == f"report: PASS; attach {out}/report.md to the issue"
    text = (out / "report.md").read_text()
    assert text.startswith("# kiam: PASS\n\n- kind: PASS\n- vagrant: PASS\n")
    for said in ("Docker version 27.1", "Vagrant 2.4", "Server Version: v1.34.0", "kiam 5.0.0 on debian12"):
        assert said in text
    for dataplane in ("iptables", "nftables", "ebpf"):
        assert f"## verify-{dataplane}\n\n```json\n" in text
    assert "Warning KiamRoleForbidden" in text
    assert "PASS every dataplane" in text
    assert "rocky9" not in text


def test_account_numbers_are_not_in_it(programs: Path, tmp_path: Path) -> None:
    assert report(programs, "--out", str(tmp_path / "out")).returncode == 0
    for path in (tmp_path / "out").iterdir():
        assert "123456789012" not in path.read_text(), path
    assert "arn:aws:iam::ACCOUNT:role/admin" in (tmp_path / "out/report.md").read_text()


def test_one_failure_is_the_verdict(programs: Path, tmp_path: Path) -> None:
    done = report(programs, "--out", str(tmp_path / "out"), VAGRANT_UP="1")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith("report: FAIL; ")
    assert (tmp_path / "out/report.md").read_text().startswith("# kiam: FAIL\n\n- kind: PASS\n- vagrant: FAIL\n")


def test_only_what_the_machine_has_is_run(programs: Path, tmp_path: Path) -> None:
    (programs / "kind").unlink()
    done = report(programs, "--out", str(tmp_path / "out"))
    assert done.returncode == 0
    assert "- vagrant: PASS\n" in (tmp_path / "out/report.md").read_text()
    assert "- kind" not in (tmp_path / "out/report.md").read_text()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("podman",), "'podman' is neither kind, vagrant nor --out FOLDER"),
        (("--out",), "--out needs a folder"),
        (("kind",), "kind needs kind, which this machine lacks"),
        (("vagrant", "--out", "/"), "/ is there already; name another folder with --out"),
    ],
)
def test_what_cannot_be_is_one_line(programs: Path, words: tuple[str, ...], line: str) -> None:
    (programs / "kind").unlink()
    done = report(programs, *words)
    assert done.returncode == 2
    assert done.stderr == f"report: {line}\n"


def test_a_machine_with_nothing_is_told_what_it_needs(tmp_path: Path) -> None:
    done = report(tmp_path)
    assert done.returncode == 2
    assert done.stderr == "report: needs docker, kind and kubectl, or vagrant, and this machine has neither\n"
