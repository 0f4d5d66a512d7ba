"""What a node that can't is told: one line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.integration.ebpf.world import World

INSTALL = (
    *(sys.executable, "-m", "kiam", "dataplane", "install"),
    *("--dataplane=ebpf", "--host=192.0.2.10", "--host-interface=cali+"),
)


@pytest.mark.parametrize("missing", ["sys_admin", "net_admin"])
def test_a_missing_capability_is_named(world: World, missing: str) -> None:
    without = ("setpriv", f"--bounding-set=-{missing}", f"--inh-caps=-{missing}")
    variable = f"KIAM_EBPF_CGROUP={world.cgroup.root}"
    done = world.node.run("env", variable, *without, *INSTALL, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        f"kiam dataplane: the eBPF dataplane needs the {missing.upper()} capability: run as root, "
        "in a container with securityContext.privileged: true\n"
    )


def test_an_attach_point_that_is_no_cgroup_is_named(world: World, tmp_path: Path) -> None:
    done = world.node.run("env", f"KIAM_EBPF_CGROUP={tmp_path}", *INSTALL, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        f"kiam dataplane: KIAM_EBPF_CGROUP={tmp_path} is no cgroup2 directory: name one, or unset it\n"
    )


def test_a_container_that_sees_only_its_own_cgroup_is_told_what_to_mount(world: World) -> None:
    # A cgroup namespace and its own view of the hierarchy, as container runtimes make them.
    script = (
        'echo $$ > "$0/system/cgroup.procs" && exec unshare --cgroup --mount -- sh -c '
        '\'umount "$1" && mount -t cgroup2 none "$1" && shift && exec "$@"\' sh "$@"'
    )
    done = world.node.run(
        "sh", "-c", script, str(world.cgroup.root), str(world.cgroup.root.parent), *INSTALL, check=False
    )
    assert done.returncode == 1
    assert "mount the host's /sys/fs/cgroup into the container (hostPath)" in done.stderr
    assert done.stderr.count("\n") == 1
