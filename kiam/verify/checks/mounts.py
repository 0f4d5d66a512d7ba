"""The file systems the kernel shows cgroups and eBPF objects in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from kiam.dataplane.cgroups import find_cgroup2_root, find_pod_cgroups
from kiam.dataplane.contract import HostNetwork, WantedState
from kiam.errors import UserError
from kiam.verify.fix import Fix, FixKind, advice, both
from kiam.verify.results import CheckResult, failed, passed, skipped

MOUNTINFO = Path("/proc/thread-self/mountinfo")
CGROUPS = Path("/sys/fs/cgroup")
BPF_FILESYSTEM = Path("/sys/fs/bpf")


def check_cgroup2(
    wanted: WantedState, by_cgroup: bool, find: Callable[[], Path] = find_cgroup2_root, mountinfo: str | None = None
) -> CheckResult:
    """Pods on the host network are told by their cgroup; ``by_cgroup``: the dataplane itself is attached to one."""
    check = "cgroup2"
    needed = by_cgroup or wanted.host_network is not HostNetwork.IGNORE
    try:
        root = find()
    except UserError as error:
        text = MOUNTINFO.read_text() if mountinfo is None else mountinfo
        fix = mount_cgroup2(text)
        if needed:
            return failed(check, error.what, fix)
        return skipped(check, "not mounted; this dataplane doesn't need it", fix)
    if wanted.host_network is not HostNetwork.IGNORE:
        pods = find_pod_cgroups(root)
        if not pods:
            seen = f"no kubepods cgroup below {root}: pods on the host network can't be told from the host"
            return failed(check, seen, Fix(FixKind.START_KUBELET, "systemctl start kubelet"))
        return passed(check, f"{root}, pods in {', '.join(found.name for found in pods)}")
    return passed(check, str(root))


def mount_cgroup2(mountinfo: str) -> Fix:
    """Mounts the hierarchy where programs look for it: alone, or beside version 1 where that is in use."""
    mounts = {place: (kind, options) for place, kind, options in _mounts(mountinfo)}
    if any(kind == "cgroup2" for kind, _ in mounts.values()):
        return advice("mount the host's /sys/fs/cgroup into this container (hostPath), or verify on the node itself")
    if str(CGROUPS) not in mounts:
        return Fix(FixKind.MOUNT_CGROUP2, f"mount -t cgroup2 none {CGROUPS}")
    unified = CGROUPS / "unified"
    commands = [f"mkdir -p {unified}", f"mount -t cgroup2 none {unified}"]
    if "ro" in mounts[str(CGROUPS)][1]:
        commands = [f"mount -o remount,rw {CGROUPS}", *commands, f"mount -o remount,ro {CGROUPS}"]
    return Fix(FixKind.MOUNT_CGROUP2, both(*commands))


def _mounts(mountinfo: str) -> Iterator[tuple[str, str, list[str]]]:
    """Place, type and options of each mount (proc_pid_mountinfo(5)); the last on a place hides those before it."""
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        yield fields[4], after.split(" ", 1)[0], fields[5].split(",")


def check_bpf_filesystem(mountinfo: str | None = None) -> CheckResult:
    """A file system other tools pin eBPF objects in. Our programs are held by the cgroup and don't need it."""
    check = "bpffs"
    for place, kind, _ in _mounts(MOUNTINFO.read_text() if mountinfo is None else mountinfo):
        if kind == "bpf":
            return passed(check, f"mounted at {place}")
    seen = "not mounted; no dataplane of ours needs it, as the cgroup holds the eBPF programs"
    return skipped(check, seen, Fix(FixKind.MOUNT_BPFFS, f"mount -t bpf bpf {BPF_FILESYSTEM}"))
