"""Programs compiled before, as an image brings them: no compiler on the node."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kiam.dataplane.contract import Condition
from kiam.dataplane.ebpf.bytecode import PREBUILT, Bytecode
from kiam.dataplane.ebpf.prebuild import compile_bytecode
from tests.integration.ebpf.world import AGENT_PORT, World, ask, wanted_state
from tests.sandbox.netns import NODE_IPV4, PodNet

ROOT = Path(__file__).parents[3]
INSTALL = (
    "dataplane",
    "install",
    "--dataplane=ebpf",
    f"--host={NODE_IPV4}",
    f"--port={AGENT_PORT}",
    "--host-interface=cali+",
)
Install = Callable[..., subprocess.CompletedProcess[str]]
DOES_NOTHING = bytes(8)
"""An instruction that is none: every kernel refuses the program."""


@pytest.fixture(scope="module")
def bytecode() -> Bytecode:
    return compile_bytecode()


@pytest.fixture
def installed(clean: World, tmp_path: Path) -> Install:
    """Install with a kiam that has prebuilt programs, and bcc only if asked for."""

    def install(bytecode: Bytecode | None, *, bcc: bool = False) -> subprocess.CompletedProcess[str]:
        shutil.copytree(ROOT / "kiam", tmp_path / "kiam", ignore=shutil.ignore_patterns("__pycache__"))
        if bytecode is not None:
            (tmp_path / PREBUILT.relative_to(ROOT)).write_text(bytecode.to_json())
        if not bcc:
            (tmp_path / "bcc.py").write_text("raise ImportError\n")
        environment = (f"KIAM_EBPF_CGROUP={clean.cgroup.root}", f"PYTHONPATH={tmp_path}", "PYTHONSAFEPATH=1")
        return clean.node.run("env", *environment, sys.executable, "-m", "kiam", *INSTALL, check=False)

    return install


def test_without_a_compiler_pods_are_redirected_and_the_host_is_not(
    installed: Install, clean: World, pod: PodNet, bytecode: Bytecode
) -> None:
    done = installed(bytecode)
    assert done.returncode == 0, done.stderr
    assert clean.inspect(wanted_state()).condition is Condition.INSTALLED
    reply = clean.from_pod(pod, ask)
    assert reply.who == "agent"
    assert reply.peer == ("169.254.169.254", 80)  # the socket storage, which takes a type description, works
    assert clean.from_host(ask).who == "real"


def test_counters_go_on_when_prebuilt_programs_take_the_place_of_compiled_ones(
    installed: Install, clean: World, pod: PodNet, bytecode: Bytecode
) -> None:
    clean.install(wanted_state(port=AGENT_PORT + 1))
    clean.from_pod(pod, ask)
    before = clean.redirects()
    assert before > 0
    assert installed(bytecode).returncode == 0
    assert clean.redirects() == before
    assert clean.from_pod(pod, ask).who == "agent"
    assert clean.redirects() == before + 1


def test_a_kernel_that_refuses_them_has_them_compiled(
    installed: Install, clean: World, pod: PodNet, bytecode: Bytecode
) -> None:
    bad = replace(bytecode, programs={**bytecode.programs, "kiam_uplink": DOES_NOTHING})
    done = installed(bad, bcc=True)
    assert done.returncode == 0, done.stderr
    assert clean.from_pod(pod, ask).who == "agent"


def test_refused_and_without_a_compiler_it_says_which_image_has_one_and_leaves_nothing(
    installed: Install, clean: World, bytecode: Bytecode
) -> None:
    done = installed(replace(bytecode, programs={**bytecode.programs, "kiam_connect4": DOES_NOTHING}))
    assert done.returncode == 1
    assert f"kernel {os.uname().release} refused the program kiam_connect4 (" in done.stderr
    assert "the image with bcc (deploy/Dockerfile, target agent-bcc)" in done.stderr
    assert done.stderr.count("\n") == 1
    assert clean.inspect(None).condition is Condition.ABSENT


@pytest.mark.parametrize("stale", [False, True])
def test_with_neither_it_says_what_to_install(installed: Install, bytecode: Bytecode, stale: bool) -> None:
    done = installed(replace(bytecode, digest=bytes(16)) if stale else None)
    assert done.returncode == 1
    assert done.stderr == (
        "kiam dataplane: there are no prebuilt eBPF programs of this version, and bcc, which would compile them, "
        "is missing; install the Debian package python3-bpfcc, or use an image built from deploy/Dockerfile\n"
    )


def test_they_can_be_compiled_wherever_the_module_is_in_memory() -> None:
    """A thread's heap is far from where a 32-bit pointer reaches, as that of a large process is."""
    script = (
        "from concurrent.futures import ThreadPoolExecutor as E; "
        "from kiam.dataplane.ebpf.prebuild import compile_bytecode as c; E(1).submit(c).result()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_right_is_needed_to_compile_them_for_later(bytecode: Bytecode, tmp_path: Path) -> None:
    """As an image's build does, which may not even make maps."""
    library = tmp_path / "no-maps.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, ROOT / "deploy" / "no-maps.c"], check=True)
    script = "from kiam.dataplane.ebpf.prebuild import compile_bytecode as c; print(c().to_json(), end='')"
    command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", sys.executable, "-c", script]
    done = subprocess.run(
        command, env=os.environ | {"LD_PRELOAD": str(library)}, capture_output=True, text=True, check=True
    )
    assert Bytecode.from_json(done.stdout) == bytecode
