"""Every command in surroundings that lack something: one clear line and an exit code, never a traceback."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from kiam.cli import build_parser
from kiam.dataplane.cgroups import CGROUP_VARIABLE
from tests.integration.verify.site import KIAM
from tests.sandbox.cgroups import NodeCgroup
from tests.sandbox.pki import make_pki
from tests.sandbox.process import family, wait_until
from tests.unit.cli.test_main import leaves

TLS = "--cert=pki/agent.pem --key=pki/agent-key.pem --ca=pki/ca.pem"
REDIRECT = "--host=10.9.9.9 --port=8181 --host-interface=cali+"
HERE = "--host=127.0.0.1 --port=8181"
ARGUMENTS: Mapping[tuple[str, ...], tuple[str, ...]] = {
    ("agent",): (f"{TLS} --host=127.0.0.1 --port=8181 --dataplane=none", f"{TLS} --host=10.9.9.9 --dataplane=nftables"),
    ("server",): (f"{TLS} --role-base-arn=arn:aws:iam::123456789012:role/ --bind=127.0.0.1:0 --kubeconfig=nowhere",),
    ("dataplane", "install"): tuple(
        f"--dataplane={name} {where}" for name in ("iptables", "nftables", "ebpf") for where in (REDIRECT, HERE)
    ),
    ("dataplane", "remove"): ("",),
    ("dataplane", "status"): ("", f"{REDIRECT} --output=json"),
    ("dataplane", "verify"): ("", REDIRECT, f"{REDIRECT} --dataplane=ebpf --output=json", "--fix --no-live"),
    ("untaint",): ("--kubeconfig=nowhere",),
    ("collect",): ("--kubeconfig=nowhere --daemonset=kiam-test --selector=app=kiam --container=verify",),
    ("health",): (f"{TLS} --server-address=127.0.0.1:9",),
    ("explain",): (
        f"app {TLS} --server-address=127.0.0.1:9",
        "app --kubeconfig=nowhere --role-base-arn=arn:aws:iam::123456789012:role/",
        "app",
    ),
    ("status",): (f"{TLS} --server-address=127.0.0.1:9", f"{TLS} --server-address=127.0.0.1:9 --output=json --watch"),
    ("config", "check", "agent"): (f"{TLS} --host=10.9.9.9 --server-address=127.0.0.1:9", "--level=loud"),
    ("config", "check", "server"): (f"{TLS} --role-base-arn=arn:aws:iam::123456789012:role/ --kubeconfig=nowhere",),
    ("certs", "init"): ("--dir new",),
    ("certs", "server"): ("--dir pki",),
    ("certs", "agent"): ("--dir nowhere",),
    ("certs", "renew"): ("--dir pki", "--dir nowhere", "--next-secret=next --kubeconfig=nowhere"),
    ("completion",): ("bash",),
    ("help",): ("", "dataplane verify"),
}
"""For each command there is: with which flags it is tried."""
LEAVES = list(leaves(build_parser()))

QUIET = "mount --make-rprivate /; "
SURROUNDINGS: Mapping[str, str] = {
    "nothing special": 'exec "$@"',
    "standard output closed": 'exec "$@" >&-',
    "standard output and error closed": 'exec "$@" >&- 2>&-',
    "the reader gone": '{ sleep 0.2; exec "$@"; } | true; exit ${PIPESTATUS[0]}',
    "a full disk behind standard output": 'exec "$@" >/dev/full',
    "no capabilities": 'exec setpriv --inh-caps=-all --bounding-set=-all "$@"',
    "no /proc/sys": QUIET + 'mount -t tmpfs none /proc/sys; exec "$@"',
    "no /sys": QUIET + 'mount -t tmpfs none /sys; exec "$@"',
    "read-only /run and /tmp": QUIET
    + "for d in /run /tmp; do mount -t tmpfs none $d; mount -o remount,ro $d; done; "
    + 'exec "$@"',
    "a full disk": QUIET
    + "mkdir -p new; mount -t tmpfs -o size=4k none new; cat /dev/zero >new/all 2>/dev/null; "
    + 'TMPDIR=new exec "$@"',
    "no tools": 'PATH=/nonexistent exec "$@"',
    "no memory of who it is": 'exec env -i "$@"',
}
"""Each a piece of bash around ``"$@"``, run in network, mount and IPC namespaces of its own."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("surroundings")
    make_pki(made / "pki")
    return made


@pytest.fixture(scope="module")
def cgroup() -> Iterator[Path]:
    # eBPF programs go to a cgroup of this test's own.
    with NodeCgroup() as made:
        yield made.root


def test_every_command_is_tried() -> None:
    assert set(LEAVES) - set(ARGUMENTS) == set()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("around", SURROUNDINGS)
@pytest.mark.parametrize(
    "command",
    [pytest.param(words, marks=pytest.mark.xdist_group(" ".join(words)), id=" ".join(words)) for words in ARGUMENTS],
)
def test_no_command_ends_in_a_traceback(command: tuple[str, ...], around: str, folder: Path, cgroup: Path) -> None:
    for flags in ARGUMENTS[command]:
        code, said = run(SURROUNDINGS[around], [KIAM, *command, *shlex.split(flags)], folder, cgroup)
        assert "Traceback" not in said, f"{' '.join(command)} {flags}:\n{said}"
        assert "Exception ignored" not in said
        # 141: what it wrote for had gone.
        assert code in {0, 1, 2, 141}, f"{' '.join(command)} {flags}: exit {code}:\n{said}"
        if code == 1 and "closed" not in around and command not in TABLES:
            assert said.strip(), f"{' '.join(command)} {flags}: exit 1 without a word"


TABLES = {
    ("dataplane", "status"),
    ("dataplane", "verify"),
    ("config", "check", "agent"),
    ("config", "check", "server"),
}
"""Exit with 1 for what their table on standard output says."""


def run(script: str, command: list[str], folder: Path, cgroup: Path) -> tuple[int, str]:
    """Exit code and standard error; the agent is told to stop once it has served for a while."""
    environment = {**os.environ, CGROUP_VARIABLE: str(cgroup), "AWS_EC2_METADATA_DISABLED": "true"}
    with subprocess.Popen(
        ["unshare", "--net", "--mount", "--ipc", "bash", "-c", script, "bash", *command],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            if command[1] == "agent":
                wait_until(lambda: process.poll() is not None or serves(process.pid), "the agent", 120)
                # Long enough for it to start without a server, and to have said that there is none.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(3)
                stop("kiam", process.pid)
            _, said = process.communicate(timeout=200)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, said


def serves(pid: int) -> bool:
    """Whether anything listens in a process's network namespace (proc_net(5): state 0A)."""
    tables = [Path(f"/proc/{pid}/net/{name}").read_text() for name in ("tcp", "tcp6")]
    return any(line.split()[3] == "0A" for table in tables for line in table.splitlines()[1:])


def stop(program: str, pid: int) -> None:
    """Send SIGTERM to a program that is a process or descends from it."""
    for one in family(pid):
        with contextlib.suppress(OSError):  # gone already
            if Path(f"/proc/{one}/comm").read_text().strip() == program:
                os.kill(one, signal.SIGTERM)
