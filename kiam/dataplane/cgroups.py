"""Where pods are in the cgroup2 hierarchy: what tells a pod on the host network from the host's own processes.

Kubelet puts every pod below one cgroup (Kubernetes, "Configuring a cgroup driver" and "Resource Management"):
``kubepods.slice`` with the systemd driver, ``kubepods`` with the cgroupfs driver, each perhaps below a
``--cgroup-root``. The quality-of-service classes are below that one (Guaranteed directly, ``burstable``,
``besteffort``), so the one ancestor covers all of them.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kiam.dataplane.contract import HostNetwork, WantedState
from kiam.dataplane.own_mounts import lost_with_sys
from kiam.errors import UserError

CGROUP_VARIABLE = "KIAM_EBPF_CGROUP"
"""Names a cgroup that stands for the machine: kubelet's are looked for below it alone, and eBPF programs go there."""
GONE = "(gone)"
"""Read back for the agent's cgroup where the kernel holds one that is no more: no path, so that nothing matches it."""
ROOT_CGROUP_ID = 1
"""The hierarchy's real root (``cgroup_id`` is 64 bits and the inode number in cgroup2; kernfs gives its root 1)."""
_SEARCH_DEPTH = 4
"""``--cgroup-root`` is rarely set and short where it is (kind: /kubelet.slice/kubelet-kubepods.slice)."""
_PODS_ROOT = re.compile(r"(?:[a-zA-Z0-9_.\\-]+-)?kubepods\.slice|kubepods")
_POD = re.compile(r"(?:.*-)?pod[0-9a-fA-F][0-9a-fA-F_-]{30,}(?:\.slice)?")


@dataclass(frozen=True, slots=True)
class Cgroup:
    """One cgroup of the cgroup2 hierarchy."""

    path: Path
    """Where it is in this process's file system."""
    name: str
    """Its path from the real root, without the leading slash, as ``-m cgroup --path`` takes it."""
    cgroup_id: int
    """What ``bpf_get_current_cgroup_id`` and nftables compare: the directory's inode number."""

    @property
    def level(self) -> int:
        """Its distance from the root, whose level is 0 (``cgroup->level``)."""
        return len(Path(self.name).parts)

    @classmethod
    def at(cls, path: Path, root: Path) -> Cgroup:
        """The cgroup whose directory is ``path``, in the hierarchy mounted at ``root``."""
        relative = path.relative_to(root)
        return cls(path, "" if relative == Path() else str(relative), path.stat().st_ino)


def _cgroup2_mount_points(mountinfo: str) -> Iterator[Path]:
    # proc_pid_mountinfo(5): the fields after " - " are type, source and options; the fifth before it is the place,
    # with space, tab, newline and backslash as octal escapes.
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        if after.split(" ", 1)[0] == "cgroup2":
            place = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), before.split(" ")[4])
            yield Path(place)


def inode_of(path: Path) -> int | None:
    """A file's inode number; None where it can't be read."""
    try:
        return path.stat().st_ino
    except OSError:
        return None


def find_cgroup2_root(mountinfo: str | None = None) -> Path:
    """Where the real root of the cgroup2 hierarchy is mounted, with cgroup2 alone and with the hybrid layout.

    A container sees its own cgroup as a root of its own, where no pod is; such a mount doesn't count.
    Raises UserError.
    """
    text = Path("/proc/self/mountinfo").read_text() if mountinfo is None else mountinfo
    places = list(_cgroup2_mount_points(text))
    for place in places:
        if inode_of(place) == ROOT_CGROUP_ID:
            return place
    if places:
        raise UserError(
            f"{places[0]} is only this container's part of the cgroup2 hierarchy: mount the host's /sys/fs/cgroup "
            "into the container (hostPath)"
        )
    if mountinfo is None and (hidden := lost_with_sys("cgroup2")):
        raise UserError(hidden)
    raise UserError(
        "no cgroup2 hierarchy is mounted: run 'mount -t cgroup2 none /sys/fs/cgroup/unified' on the node "
        "(make that folder first), or boot it with systemd.unified_cgroup_hierarchy=1"
    )


def _below(directory: Path, depth: int) -> Iterator[Path]:
    # Breadth first: what is looked for is near the root, and a busy node has thousands of cgroups.
    level = [directory]
    for _ in range(depth):
        children: list[Path] = []
        for parent in level:
            try:
                children += [Path(entry.path) for entry in os.scandir(parent) if entry.is_dir(follow_symlinks=False)]
            except OSError:
                continue  # cgroups come and go while they are read
        yield from children
        level = children


def find_pod_cgroups(root: Path) -> tuple[Cgroup, ...]:
    """Every cgroup below which kubelet keeps pods, for both drivers; empty before kubelet has made one.

    Where several nodes share one kernel, as kind's do, each has those below :data:`CGROUP_VARIABLE` only.
    """
    found: list[Cgroup] = []
    machine = Path(os.environ.get(CGROUP_VARIABLE, root))
    if not machine.is_relative_to(root):
        return ()
    for path in _below(machine, _SEARCH_DEPTH):
        if not _PODS_ROOT.fullmatch(path.name) or any(path.is_relative_to(other.path) for other in found):
            continue
        try:
            found.append(Cgroup.at(path, root))
        except OSError:
            continue
    return tuple(sorted(found, key=lambda cgroup: cgroup.name))


def require_pod_cgroups(root: Path) -> tuple[Cgroup, ...]:
    """As find_pod_cgroups, for what can't be done without one. Raises UserError."""
    found = find_pod_cgroups(root)
    if not found:
        raise UserError(
            f"no kubepods cgroup below {root}, so pods on the host network can't be told from the host: start kubelet "
            "first (with cgroup v1 it makes none here: boot with systemd.unified_cgroup_hierarchy=1), or use "
            "--host-network=ignore"
        )
    return found


def enclosing_pod(cgroup: Path, root: Path) -> Path | None:
    """The pod's cgroup among a cgroup and its ancestors (``…-pod<uid>.slice`` or ``pod<uid>``); None outside a pod."""
    for path in (cgroup, *cgroup.parents):
        if path == root:
            return None
        if _POD.fullmatch(path.name):
            return path
    return None


def _holds_process(directory: Path, pid: int) -> bool:
    try:
        return str(pid) in (directory / "cgroup.procs").read_text().split()
    except OSError:
        return False


def _own_cgroup(root: Path, candidates: Iterable[Cgroup]) -> Path | None:
    own = next((line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")), "/")
    path = root / own.lstrip("/")
    if _holds_process(path, os.getpid()):
        return path
    # In a cgroup namespace of its own a process sees itself at "/". The host's tree, seen from a container, still
    # lists this process by the number it has here; processes of other PID namespaces are listed as 0 (cgroups(7)).
    for candidate in candidates:
        for place in _below(candidate.path, _SEARCH_DEPTH):
            if _holds_process(place, os.getpid()):
                return place
    return None


def own_pod_cgroup(root: Path) -> Cgroup | None:
    """The cgroup of the pod this process is in: the agent's own, whose traffic has to reach the real service.

    The pod's and not the container's, so that an init container's answer is good for the agent beside it, and for
    the agent's next container. None outside a pod.
    """
    own = _own_cgroup(root, find_pod_cgroups(root))
    pod = None if own is None else enclosing_pod(own, root)
    return None if pod is None else Cgroup.at(pod, root)


def named_cgroup(root: Path, name: str) -> Cgroup:
    """The cgroup of that path from the root. Raises UserError when there is none."""
    path = root / name.strip("/")
    if ".." in path.parts or not path.is_dir():
        raise UserError(f"no cgroup '{name}' below {root}: write its path from there, as /proc/<pid>/cgroup shows it")
    return Cgroup.at(path, root)


def cgroup_of_id(root: Path, cgroup_id: int, level: int) -> Cgroup | None:
    """The cgroup of that identifier, which the kernel doesn't use twice; None where it has gone."""
    for path in root.glob("/".join("*" * level)):
        with contextlib.suppress(FileNotFoundError):  # cgroups come and go while they are read
            if path.stat().st_ino == cgroup_id:
                return Cgroup.at(path, root)
    return None


@dataclass(frozen=True, slots=True)
class HostPods:
    """How pods on the host network are told from the host's own processes."""

    pods: tuple[Cgroup, ...] = ()
    """Kubelet's cgroups, with every pod below them; empty where such pods are treated as the host is."""
    agent: Cgroup | None = None
    """What is below this one reaches the real service all the same."""


def find_host_pods(wanted: WantedState) -> HostPods:
    """What the wanted state's ``host_network`` means on this node. Raises UserError."""
    if wanted.host_network is HostNetwork.IGNORE:
        return HostPods()
    root = find_cgroup2_root()
    agent = own_pod_cgroup(root) if wanted.agent_cgroup is None else named_cgroup(root, wanted.agent_cgroup)
    return HostPods(require_pod_cgroups(root), agent)
