"""What this node is like: where the programs go, whose network namespace is the host's, and what is missing."""

from __future__ import annotations

import errno
import os
import platform
import socket
import struct
from pathlib import Path

from kiam.dataplane.cgroups import (
    CGROUP_VARIABLE,
    Cgroup,
    cgroup_of_id,
    find_cgroup2_root,
    find_pod_cgroups,
    named_cgroup,
    own_pod_cgroup,
    require_pod_cgroups,
)
from kiam.dataplane.contract import HostNetwork, WantedState, kernel_words
from kiam.dataplane.ebpf.state import MAX_FORWARD, MAX_POD_CGROUPS, CgroupPlace, Config, source_digest
from kiam.errors import UserError
from kiam.netfilter.interfaces import InterfacePattern

OLDEST_KERNEL = (5, 8)
"""First with the getpeername hooks; network namespace cookies came in 5.7, replacing one program of many in 5.6."""

_SO_NETNS_COOKIE = 71
"""asm-generic/socket.h, since Linux 5.14."""
_CAPABILITIES = {"NET_ADMIN": 12, "SYS_ADMIN": 21}
"""linux/capability.h. SYS_ADMIN and not BPF: opening a program or map by its identifier needs no less."""


def missing_capabilities(status: str) -> list[str]:
    """Which of the needed capabilities a process lacks, from its ``/proc/<pid>/status``."""
    effective = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:"))
    return [name for name, bit in _CAPABILITIES.items() if not effective >> bit & 1]


def require_capabilities() -> None:
    """Raise UserError unless this process may load, find and attach the programs."""
    missing = missing_capabilities(Path("/proc/self/status").read_text())
    if missing:
        raise UserError(
            f"the eBPF dataplane needs the {' and '.join(missing)} "
            f"{'capability' if len(missing) == 1 else 'capabilities'}: run as root, "
            "in a container with securityContext.privileged: true"
        )


def kernel_lacks(what: str) -> UserError:
    """The error for a kernel that refused something the dataplane can't do without."""
    return UserError(
        f"kernel {platform.release()} refused {what}: the eBPF dataplane needs Linux {kernel_words(OLDEST_KERNEL)} "
        "or newer with CONFIG_CGROUP_BPF; use --dataplane=nftables or iptables here"
    )


def attach_point() -> Path:
    """The directory of the cgroup that the programs are attached to: only processes below it are redirected.

    Raises UserError.
    """
    named = os.environ.get(CGROUP_VARIABLE)
    if named is None:
        return find_cgroup2_root()
    path = Path(named)
    if not (path / "cgroup.procs").is_file() or not (path / "cgroup.controllers").is_file():
        raise UserError(f"{CGROUP_VARIABLE}={named} is no cgroup2 directory: name one, or unset it")
    return path


def netns_cookie() -> int | None:
    """The cookie of this thread's network namespace; None before Linux 5.14, which doesn't tell."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            raw = any_socket.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
        except OSError as error:
            if error.errno == errno.ENOPROTOOPT:
                return None
            raise
    (cookie,) = struct.unpack("=Q", raw)
    return int(cookie)


def pod_cgroups(cgroup: Path, required: bool) -> tuple[CgroupPlace, ...]:
    """Kubelet's cgroups below the attach point. Raises UserError if there must be one and is none."""
    root = find_cgroup2_root()
    found = [place for place in find_pod_cgroups(root) if place.path.is_relative_to(cgroup)]
    if required and not found:
        require_pod_cgroups(cgroup)
    if len(found) > MAX_POD_CGROUPS:
        raise UserError(f"{len(found)} kubepods cgroups below {cgroup}, at most {MAX_POD_CGROUPS} are supported")
    return tuple(CgroupPlace(place.cgroup_id, place.level) for place in found)


def is_alive(place: CgroupPlace) -> bool:
    """Whether there still is a cgroup of that identifier."""
    return cgroup_of_id(find_cgroup2_root(), place.cgroup_id, place.level) is not None


def _agent_cgroup(wanted: WantedState) -> Cgroup | None:
    root = find_cgroup2_root()
    return own_pod_cgroup(root) if wanted.agent_cgroup is None else named_cgroup(root, wanted.agent_cgroup)


def forwarding_interfaces(pattern: InterfacePattern | None) -> tuple[int, ...]:
    """Indexes of the interfaces there are that a pattern fits. Raises UserError if they are too many."""
    found = tuple(
        sorted(index for index, name in socket.if_nameindex() if pattern is not None and pattern.matches(name))
    )
    if len(found) > MAX_FORWARD:
        raise UserError(
            f"--forward-metadata=allow:{pattern} fits {len(found)} interfaces, the eBPF dataplane supports at most "
            f"{MAX_FORWARD}: use --dataplane=nftables"
        )
    return found


def configuration(wanted: WantedState, cgroup: Path) -> Config:
    """What the programs have to be told here and now. Raises UserError."""
    host_network_matters = wanted.host_network is not HostNetwork.IGNORE
    agent = _agent_cgroup(wanted) if host_network_matters else None
    return Config(
        host_netns=netns_cookie(),
        host_address=wanted.host_address,
        port=wanted.port,
        host_address6=wanted.host_address6,
        host_network=wanted.host_network,
        agent=None if agent is None else CgroupPlace(agent.cgroup_id, agent.level),
        pods=pod_cgroups(cgroup, required=True) if host_network_matters else (),
        digest=source_digest(),
        forward_from=forwarding_interfaces(wanted.forward_from),
    )
