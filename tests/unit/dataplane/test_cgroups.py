"""Finding pods' cgroups; a tree of plain folders stands for cgroup2 where only names and places count."""

from __future__ import annotations

from pathlib import Path

import pytest

from kiam.dataplane.cgroups import (
    CGROUP_VARIABLE,
    Cgroup,
    enclosing_pod,
    find_cgroup2_root,
    find_pod_cgroups,
    named_cgroup,
    require_pod_cgroups,
)
from kiam.errors import UserError

UID = "0a1b2c3d-1111-2222-3333-444455556666"
SYSTEMD_POD = f"kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID.replace('-', '_')}.slice"
CGROUPFS_POD = f"kubepods/besteffort/pod{UID}"


def tree(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).mkdir(parents=True)
    return root


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ((f"{SYSTEMD_POD}/cri-containerd-1.scope", "system.slice"), ["kubepods.slice"]),
        ((f"{CGROUPFS_POD}/abc",), ["kubepods"]),
        (
            ("kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice",),
            ["kubelet.slice/kubelet-kubepods.slice"],
        ),
        (("kubelet/kubepods/burstable",), ["kubelet/kubepods"]),
        (("kubepods", "kubepods.slice"), ["kubepods", "kubepods.slice"]),
        (("system.slice/notkubepods", "user.slice"), []),
        (("kubepods.slice/nested/kubepods",), ["kubepods.slice"]),
    ],
)
def test_kubelets_cgroup_is_found_for_both_drivers(tmp_path: Path, paths: tuple[str, ...], expected: list[str]) -> None:
    assert [cgroup.name for cgroup in find_pod_cgroups(tree(tmp_path, *paths))] == expected


def test_another_nodes_pods_on_the_same_kernel_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, "this/kubepods", "other/kubepods")
    monkeypatch.setenv(CGROUP_VARIABLE, str(tmp_path / "this"))
    assert [cgroup.name for cgroup in find_pod_cgroups(tmp_path)] == ["this/kubepods"]
    monkeypatch.setenv(CGROUP_VARIABLE, "/elsewhere")
    assert find_pod_cgroups(tmp_path) == ()


def test_a_cgroup_knows_its_level_and_number(tmp_path: Path) -> None:
    tree(tmp_path, "kubelet/kubepods")
    (found,) = find_pod_cgroups(tmp_path)
    assert found.level == 2
    assert found.cgroup_id == (tmp_path / "kubelet/kubepods").stat().st_ino
    assert Cgroup.at(tmp_path, tmp_path).level == 0


def test_without_one_the_user_is_told_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="start kubelet"):
        require_pod_cgroups(tmp_path)


@pytest.mark.parametrize("pod", [SYSTEMD_POD, CGROUPFS_POD, "kubelet/kubepods/pod0123456789abcdef0123456789abcdef"])
def test_a_container_is_in_its_pod(pod: str) -> None:
    root = Path("/sys/fs/cgroup")
    assert enclosing_pod(root / pod / "cri-containerd-1.scope", root) == root / pod
    assert enclosing_pod(root / pod, root) == root / pod


@pytest.mark.parametrize("path", ["", "system.slice/containerd.service", "kubepods.slice", "user.slice/podman.service"])
def test_what_is_in_no_pod_is_told_so(path: str) -> None:
    root = Path("/sys/fs/cgroup")
    assert enclosing_pod(root / path, root) is None


def test_a_named_cgroup_has_to_be_there(tmp_path: Path) -> None:
    tree(tmp_path, "kubepods/podx")
    assert named_cgroup(tmp_path, "/kubepods/podx").name == "kubepods/podx"
    for name in ("kubepods/pody", "../etc"):
        with pytest.raises(UserError, match="no cgroup"):
            named_cgroup(tmp_path, name)


def test_a_containers_own_part_of_the_hierarchy_is_not_the_root(tmp_path: Path) -> None:
    line = f"30 20 0:26 / {tmp_path} rw,nosuid - cgroup2 cgroup rw\n"
    with pytest.raises(UserError, match="only this container's part"):
        find_cgroup2_root(line)


def test_no_cgroup2_at_all_is_told_with_the_way_to_mount_it() -> None:
    with pytest.raises(UserError, match="mount -t cgroup2"):
        find_cgroup2_root("30 20 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n")


def test_the_machines_own_root_is_found() -> None:
    assert find_cgroup2_root().stat().st_ino == 1
