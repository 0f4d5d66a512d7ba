"""``kiam server`` as a process: how it ends."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kiam.tls import TLSFiles
from tests.sandbox.aws import ROLE_BASE_ARN
from tests.sandbox.kubeapi import write_kubeconfig
from tests.sandbox.pki import Pki
from tests.sandbox.process import Process


def _command(files: TLSFiles, *flags: str) -> list[str]:
    return [
        *(sys.executable, "-m", "kiam", "server", "--role-base-arn", ROLE_BASE_ARN),
        *("--cert", str(files.cert), "--key", str(files.key), "--ca", str(files.ca), *flags),
    ]


def _away(directory: Path) -> str:
    """A kubeconfig of an API that isn't there."""
    return str(write_kubeconfig(directory / "kubeconfig", "http://127.0.0.1:9"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_it_with_0_though_nothing_it_needs_is_there(
    pki: Pki, tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:9")
    flags = ("--bind", "localhost:0", "--kubeconfig", _away(tmp_path), "--prometheus-listen-addr", "localhost:0")
    with Process(_command(pki.server, *flags), tmp_path / "log") as process:
        process.wait_for_output("listening on")
        process.wait_for_output("pods: Kubernetes API .*trying again")
        process.wait_for_output("WARNING STS: ")
        assert process.returncode is None
        process.send_signal(number)
        assert process.wait() == 0
        assert "Traceback" not in process.output()


def test_what_cannot_work_is_one_line_and_1(pki: Pki, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        busy = f"127.0.0.1:{taken.getsockname()[1]}"
        for flags, line in (
            (("--kubeconfig", _away(tmp_path), "--bind", busy), f"kiam server: --bind: can't listen on {busy}: "),
            (("--kubeconfig", "/nowhere"), "kiam server: --kubeconfig: /nowhere: No such file or directory"),
            (
                ("--kubeconfig", _away(tmp_path), "--prometheus-listen-addr", busy),
                f"kiam server: --prometheus-listen-addr: can't listen on {busy}: Address already in use",
            ),
        ):
            ended = subprocess.run(
                _command(pki.server, "--level=error", *flags), capture_output=True, text=True, timeout=120, check=False
            )
            assert ended.returncode == 1
            (only,) = ended.stderr.splitlines()
            assert only.startswith(line)
