"""The node's ends of the tunnels that the throwaway pod sends into, and an interface that no pattern for pods fits.

A pod may send a tunnel's packet to the node it is on. What the node takes out of it comes in on the tunnel's device,
not on the pod's interface, and the node forwards it like anything else (tried with flannel's VXLAN).

Where the kernel knows a kind of tunnel already, its own device is used; loading a module for it would outlast the
proof. Elsewhere a TUN device stands in, into which what was unwrapped is written, as flannel's udp backend does: to
netfilter both are alike.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from kiam.errors import UserError
from kiam.metadata import METADATA_IPV4, METADATA_PORT
from kiam.netfilter.interfaces import InterfacePattern
from kiam.verify.live.attempts import Attempt, Outcome, TunnelEnd
from kiam.verify.live.encapsulated import GRE
from kiam.verify.live.frames import TCP, ip_packet, tcp_syn

TUNSETIFF = 0x400454CA
SETTLE_SECONDS = 0.2
IFF_TUN_NO_PI = 0x1001
"""linux/if_tun.h: IP packets, without a header before them."""
LINK_SCOPE = 253
INNER = IPv4Address("198.19.0.0")
"""The second half of the network for tests (RFC 2544), where nobody else is (kiam.verify.live.wiring)."""
INNER6 = IPv6Address("fd6b:6961:6d01::")
OTHER_INTERFACE = "other-interface"


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of tunnel."""

    module: str
    """Where /sys/module has it, the kernel knows the kind."""
    device: Callable[[str, str, TunnelEnd], dict[str, Any]]
    """What netlink is asked for, by the node's and the pod's address."""
    overhead: int
    """Bytes before the inner IP header in what a receiver of the stand-in's gets."""
    protocol: int = 0
    """The IP protocol number of tunnels without UDP."""
    ipv6: bool = False
    """Whether IPv6 is inside."""


KINDS: Mapping[str, Kind] = {
    "vxlan": Kind(
        "vxlan",
        lambda _host, _pod, end: {
            "kind": "vxlan",
            "vxlan_id": end.number,
            "vxlan_port": end.port,
            "vxlan_learning": 0,
            "address": end.mac,
        },
        overhead=8 + 14,
    ),
    "geneve": Kind(
        "geneve",
        lambda _host, pod, end: {
            "kind": "geneve",
            "geneve_id": end.number,
            "geneve_remote": pod,
            "geneve_port": end.port,
            "address": end.mac,
        },
        overhead=8 + 14,
    ),
    "ipip": Kind(
        "ipip", lambda host, pod, _: {"kind": "ipip", "ipip_local": host, "ipip_remote": pod}, 20, socket.IPPROTO_IPIP
    ),
    "gre": Kind("ip_gre", lambda host, pod, _: {"kind": "gre", "gre_local": host, "gre_remote": pod}, 20 + 4, GRE),
    "sit": Kind(
        "sit",
        lambda host, pod, _: {"kind": "sit", "sit_local": host, "sit_remote": pod},
        20,
        socket.IPPROTO_IPV6,
        ipv6=True,
    ),
}


@contextlib.contextmanager
def tunnel_ends(host: IPv4Address, pod: IPv4Address, pattern: InterfacePattern) -> Iterator[dict[str, TunnelEnd]]:
    """Make the node's end of each kind, and take them all out at the end. A kind that can't be made is left out."""
    ends: dict[str, TunnelEnd] = {}
    with contextlib.ExitStack() as stack:
        netlink = stack.enter_context(IPRoute(groups=0))
        for name, kind in KINDS.items():
            with contextlib.suppress(NetlinkError, OSError):
                ends[name] = stack.enter_context(_end(netlink, kind, host, pod, pattern))
        yield ends


@contextlib.contextmanager
def _end(
    netlink: Any, kind: Kind, host: IPv4Address, pod: IPv4Address, pattern: InterfacePattern
) -> Iterator[TunnelEnd]:
    interface = unmatched_name(pattern)
    with contextlib.ExitStack() as stack:
        end = TunnelEnd(
            port=_free_port(host) if not kind.protocol else 0,
            number=secrets.randbelow(2**24 - 1) + 1,
            mac="02:" + ":".join(f"{byte:02x}" for byte in secrets.token_bytes(5)),
            source=str(INNER6 + secrets.randbits(64)) if kind.ipv6 else str(INNER + secrets.randbelow(2**16 - 2) + 1),
            interface=interface,
        )
        try:
            if not Path("/sys/module", kind.module).exists():
                raise OSError(f"no module {kind.module}")
            netlink.link("add", ifname=interface, **kind.device(str(host), str(pod), end))
            stack.callback(_delete, netlink, interface)
        except (NetlinkError, OSError):
            stack.enter_context(_stand_in(kind, host, end))
        _bring_up(netlink, interface, end.source)
        yield end


def unmatched_name(pattern: InterfacePattern) -> str:
    """A name the pattern doesn't match, where it leaves any."""
    for prefix in ("kiamt", "tunk", "zkiam"):
        name = prefix + secrets.token_hex(4)
        if not pattern.matches(name):
            return name
    return "kiamt" + secrets.token_hex(4)


def _bring_up(netlink: Any, interface: str, source: str) -> None:
    index = netlink.link_lookup(ifname=interface)[0]
    netlink.link("set", index=index, state="up")
    # A route back to the inner source, so that a strict reverse path check finds it where it comes from.
    if ":" in source:
        netlink.route("add", dst=f"{source}/128", oif=index, family=socket.AF_INET6)
    else:
        netlink.route("add", dst=f"{source}/32", oif=index, scope=LINK_SCOPE)


def _delete(netlink: Any, interface: str) -> None:
    with contextlib.suppress(NetlinkError):
        netlink.link("del", ifname=interface)


def _free_port(host: IPv4Address) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        probe.bind((str(host), 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _stand_in(kind: Kind, host: IPv4Address, end: TunnelEnd) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if kind.protocol:
            receiver = socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, kind.protocol)
        else:
            receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        stack.callback(receiver.close)
        receiver.bind((str(host), end.port))
        device = stack.enter_context(_tun(end.interface))
        stopped, stop = os.pipe2(os.O_CLOEXEC)
        stack.callback(os.close, stopped)
        relay = threading.Thread(target=_unwrap, args=(receiver, device, kind.overhead, stopped), daemon=True)
        relay.start()
        stack.callback(relay.join, 5)
        stack.callback(os.close, stop)
        yield


@contextlib.contextmanager
def _tun(interface: str) -> Iterator[int]:
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", interface.encode(), IFF_TUN_NO_PI))
        yield device
    finally:
        os.close(device)  # the device goes with its descriptor


def _unwrap(receiver: socket.socket, device: int, overhead: int, stopped: int) -> None:
    waiting: list[socket.socket | int] = [receiver, stopped]
    while True:
        ready, _, _ = select.select(waiting, [], [])
        if stopped in ready:
            return
        with contextlib.suppress(OSError):
            os.write(device, receiver.recv(65535)[overhead:])


def send_by_other_interface(pattern: InterfacePattern) -> Attempt:
    """Have a SYN for the metadata service come in on an interface that is no pod's. Raises UserError.

    Where the pattern leaves no name for one, it is redirected rather than dropped, which will do as well.
    """
    interface = unmatched_name(pattern)
    source, sequence = INNER + secrets.randbelow(2**16 - 2) + 1, secrets.randbits(32)
    packet = ip_packet(source, METADATA_IPV4, TCP, tcp_syn(source, METADATA_IPV4, 20001, METADATA_PORT, sequence))
    try:
        with _tun(interface) as device, IPRoute(groups=0) as netlink:
            _bring_up(netlink, interface, str(source))
            os.write(device, packet)
            # What the kernel makes of it is done in the call above, but for what waits for a neighbour's answer.
            select.select([], [], [], SETTLE_SECONDS)
    except OSError as error:
        return Attempt(OTHER_INTERFACE, Outcome.UNSUPPORTED, error.strerror or str(error))
    except NetlinkError as error:
        raise UserError(f"can't make an interface for the proof: {error}") from error
    return Attempt(OTHER_INTERFACE, Outcome.SILENCE, "no answer", sent=((TCP, f"{sequence:08x}"),))
