"""Working in the host's cgroup namespace, where cgroup paths and levels are counted from the real root.

Newer kernels resolve ``-m cgroup --path`` and the level of ``socket cgroupv2`` from the root of the caller's cgroup
namespace, below which a container has no other pod.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from kiam.dataplane.cgroups import inode_of
from kiam.dataplane.contract import HostNetwork, WantedState
from kiam.errors import UserError

T = TypeVar("T")

HOST_CGROUP_NAMESPACE_INODE = 0xEFFFFFFB
"""``PROC_CGROUP_INIT_INO``, linux/proc_ns.h: the first cgroup namespace, the one the host's processes are in."""
CLONE_NEWCGROUP = 0x02000000
"""linux/sched.h."""


def where_cgroups_are_found(wanted: WantedState, work: Callable[[], T]) -> T:
    """Run ``work``, in the host's cgroup namespace where the wanted state tells pods by their cgroup.

    Raises what ``work`` raises, and UserError where the host's namespace is out of reach.
    """
    own_will_do = wanted.host_network is HostNetwork.IGNORE
    return work() if own_will_do else _in_host_cgroup_namespace(work)


def _host_cgroup_namespace() -> Path:
    # Any process of the host's will do. One with capabilities that this one hasn't, the first perhaps, is unreadable.
    pids = sorted(int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit())
    for pid in pids:
        namespace = Path(f"/proc/{pid}/ns/cgroup")
        if inode_of(namespace) == HOST_CGROUP_NAMESPACE_INODE:
            return namespace
    raise UserError(
        "this container has a cgroup namespace of its own, in which the kernel finds no other pod's cgroup: set "
        "hostPID: true and add the capability SYS_PTRACE to it, or run 'kiam dataplane install' on the node itself"
    )


def _enter_host_cgroup_namespace() -> None:
    with _host_cgroup_namespace().open("rb") as handle:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(handle.fileno(), CLONE_NEWCGROUP):
            error = os.strerror(ctypes.get_errno())
            raise UserError(
                f"can't enter the host's cgroup namespace ({error}): the container needs the capability SYS_ADMIN"
            )


def _in_host_cgroup_namespace(work: Callable[[], T]) -> T:
    # The namespace belongs to a thread, so a short-lived thread enters it.
    if Path("/proc/self/ns/cgroup").stat().st_ino == HOST_CGROUP_NAMESPACE_INODE:
        return work()
    results: list[T] = []
    errors: list[BaseException] = []

    def enter_and_work() -> None:
        try:
            _enter_host_cgroup_namespace()
            results.append(work())
        except BaseException as error:  # handed to the caller, whatever it is
            errors.append(error)

    thread = threading.Thread(target=enter_and_work, name="host-cgroup-namespace")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
