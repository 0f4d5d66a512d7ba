"""What the programs are told, packed the way ``struct config`` in kiam.c lays it out, and what they count."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from kiam.dataplane.contract import HostNetwork

SOURCE = Path(__file__).parent.parent / "bpf" / "kiam.c"
HEADERS = Path(__file__).parent.parent / "bpf" / "headers"


@dataclass(frozen=True, slots=True)
class Hook:
    """Where a program of kiam.c goes: ``enum bpf_prog_type`` and ``enum bpf_attach_type`` of linux/bpf.h."""

    program: str
    program_type: int
    attach_type: int


_SOCK_ADDR = 18
_SKB = 8
SOCKET_HOOKS = (
    Hook("kiam_getpeer4", _SOCK_ADDR, 29),
    Hook("kiam_getpeer6", _SOCK_ADDR, 30),
    Hook("kiam_sendmsg4", _SOCK_ADDR, 14),
    Hook("kiam_sendmsg6", _SOCK_ADDR, 15),
    Hook("kiam_connect4", _SOCK_ADDR, 10),
    Hook("kiam_connect6", _SOCK_ADDR, 11),
)
"""In the order in which they are attached."""
EGRESS_HOOK = Hook("kiam_egress", _SKB, 1)
"""Sees every packet that a socket sends, so it is there only when pods on the host network matter."""
UPLINK_HOOK = Hook("kiam_uplink", 3, 47)
"""On devices: a scheduler classifier, on tcx's egress where there is tcx."""
ALL_HOOKS = (*SOCKET_HOOKS, EGRESS_HOOK)
"""Those of cgroups."""
PROBE_HOOK = Hook("kiam_probe", _SOCK_ADDR, 10)

PREFIX = "kiam_"
"""Programs with this prefix are ours, of any version."""
CONFIG_MAP = "kiam_config"
COUNTERS_MAP = "kiam_counters"
PEERS_MAP = "kiam_peers"

REDIRECTS = 0
DROP_REASONS = {1: "other-port", 2: "other-protocol", 3: "ipv6", 4: "host-network", 5: "bypass"}
"""Index in the counters' map: reason (``enum count`` in kiam.c)."""

MAX_POD_CGROUPS = 4
MAX_FORWARD = 4
_LAYOUT = struct.Struct(f"=QI2s2x16sII{MAX_FORWARD}I" + "QII" * (1 + MAX_POD_CGROUPS) + "16s")
CONFIG_SIZE = _LAYOUT.size

_HOST_NETWORK = {HostNetwork.IGNORE: 0, HostNetwork.DENY: 1, HostNetwork.REDIRECT: 2}


@dataclass(frozen=True, slots=True)
class CgroupPlace:
    """A cgroup as the programs look for it among a process's ancestors."""

    cgroup_id: int
    level: int


@dataclass(frozen=True, slots=True)
class Config:
    """All that the programs go by."""

    host_netns: int | None
    """Cookie of the host's network namespace: a process in another one is a pod's. None: not found out yet."""
    host_address: IPv4Address
    port: int
    host_address6: IPv6Address | None
    host_network: HostNetwork
    agent: CgroupPlace | None
    """The agent's own pod, which is left alone though it is below kubelet's cgroup."""
    pods: tuple[CgroupPlace, ...]
    digest: bytes
    """Of the source the programs were compiled from."""
    forward_from: tuple[int, ...] = ()
    """Indexes of the interfaces whose packets may be forwarded to the metadata addresses."""

    def pack(self) -> bytes:
        """The bytes of ``struct config``."""
        places = [(0, 0, 0)] * (1 + MAX_POD_CGROUPS)
        for index, place in enumerate((self.agent, *self.pods)):
            if place is not None:
                places[index] = (place.cgroup_id, place.level, 1)
        return _LAYOUT.pack(
            self.host_netns or 0,
            int.from_bytes(self.host_address.packed, "little"),
            self.port.to_bytes(2, "big"),
            self.host_address6.packed if self.host_address6 else bytes(16),
            int(self.host_address6 is not None),
            _HOST_NETWORK[self.host_network],
            *(*self.forward_from, *[0] * MAX_FORWARD)[:MAX_FORWARD],
            *(field for place in places for field in place),
            self.digest,
        )

    @classmethod
    def unpack(cls, raw: bytes) -> Config:
        """Read ``struct config``. Raises ValueError for one of another version's layout."""
        if len(raw) != CONFIG_SIZE:
            raise ValueError(f"a configuration of {len(raw)} bytes is another version's")
        host_netns, address, port, address6, has_address6, host_network, *rest = _LAYOUT.unpack(raw)
        forward_from, (*fields, digest) = rest[:MAX_FORWARD], rest[MAX_FORWARD:]
        places = [
            CgroupPlace(fields[index], fields[index + 1]) if fields[index + 2] else None
            for index in range(0, len(fields), 3)
        ]
        modes = {number: mode for mode, number in _HOST_NETWORK.items()}
        return cls(
            host_netns=host_netns,
            host_address=IPv4Address(address.to_bytes(4, "little")),
            port=int.from_bytes(port, "big"),
            host_address6=IPv6Address(address6) if has_address6 else None,
            host_network=modes[host_network],
            agent=places[0],
            pods=tuple(place for place in places[1:] if place is not None),
            digest=digest,
            forward_from=tuple(index for index in forward_from if index),
        )


def wanted_hooks(host_network: HostNetwork) -> tuple[Hook, ...]:
    """The hooks that have to hold a program of ours."""
    return SOCKET_HOOKS if host_network is HostNetwork.IGNORE else ALL_HOOKS


def source_digest() -> bytes:
    """Tells one version of the programs from another."""
    return hashlib.sha256(SOURCE.read_bytes()).digest()[:16]


def differences(wanted: Config, found: Config) -> list[str]:
    """What the programs in the kernel go by that isn't wanted, one line each; the agent's pod is not compared."""
    # status may be asked for from anywhere, so that whose pod the agent is can't be told from who asks.
    problems = []
    if found.digest != wanted.digest:
        problems.append("the programs are another version's")
    if wanted.host_netns is not None and found.host_netns != wanted.host_netns:
        problems.append("the programs take another network namespace for the host's")
    for name in ("host_address", "port", "host_address6", "host_network"):
        is_value, wanted_value = getattr(found, name), getattr(wanted, name)
        if is_value != wanted_value:
            label = name.replace("_", " ").replace("address6", "IPv6 address")
            problems.append(f"{label} is {is_value or 'none'}, wanted is {wanted_value or 'none'}")
    if found.forward_from != wanted.forward_from:
        problems.append("the interfaces for which metadata traffic is forwarded are others by now")
    if set(found.pods) != set(wanted.pods):
        problems.append("kubelet's cgroup has been made anew since the programs were installed")
    return problems
