"""Asks the kernel for one TCP socket by its four-tuple (sock_diag(7), linux/inet_diag.h)."""

from __future__ import annotations

import errno
import os
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
NLM_F_REQUEST = 1
NLMSG_ERROR = 2
NO_COOKIE = b"\xff" * 8
ALL_STATES = 0xFFFFFFFF
LISTEN = 10
"""TCP_LISTEN, net/tcp_states.h."""

Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One end of a connection."""

    address: Address
    port: int

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if self.address.version == 6 else f"{self.address}:{self.port}"


@dataclass(frozen=True, slots=True)
class TcpSocket:
    """A socket of the kernel's table of connections."""

    local: Endpoint
    peer: Endpoint
    state: int


def find_connection(local: Endpoint, peer: Endpoint) -> TcpSocket | None:
    """The connection between the two, whether or not its program has accepted it yet; None when there is none.

    Raises OSError when the kernel can't be asked.
    """
    family = socket.AF_INET if local.address.version == 4 else socket.AF_INET6
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG) as netlink:
        netlink.settimeout(2)
        netlink.send(_request(family, local, peer))
        found = _answer(netlink.recv(65536))
    # The lookup is the kernel's own for an arriving segment, so without a connection it answers the listener.
    if found is None or found.state == LISTEN or found.peer.port != peer.port:
        return None
    return found


def find_in_table(local: Endpoint, peer: Endpoint, net: Path = Path("/proc/thread-self/net")) -> bool:
    """The same from the kernel's table as text (proc(5)), for kernels without inet_diag.

    Those answer "no such file" to sock_diag, just as for a connection that isn't there.
    """
    wanted = (_as_text(local), _as_text(peer))
    wanted_mapped = (_as_text(local, mapped=True), _as_text(peer, mapped=True))
    for name in ("tcp", "tcp6"):
        try:
            with (net / name).open() as table:
                if any(tuple(line.split(maxsplit=3)[1:3]) in (wanted, wanted_mapped) for line in table):
                    return True
        except FileNotFoundError:
            continue
    return False


def _as_text(end: Endpoint, mapped: bool = False) -> str:
    # Each 32-bit word of the address in the host's byte order, then the port.
    packed = end.address.packed
    if mapped and end.address.version == 4:
        packed = bytes(10) + b"\xff\xff" + packed
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return "".join(f"{word:08X}" for word in words) + f":{end.port:04X}"


def _request(family: int, local: Endpoint, peer: Endpoint) -> bytes:
    ids = struct.pack("!HH", local.port, peer.port) + _padded(local.address) + _padded(peer.address)
    body = struct.pack("=BBBBI", family, socket.IPPROTO_TCP, 0, 0, ALL_STATES) + ids + struct.pack("=I", 0) + NO_COOKIE
    header = struct.pack("=IHHII", 16 + len(body), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, 1, 0)
    return header + body


def _padded(address: Address) -> bytes:
    return address.packed.ljust(16, b"\0")


def _answer(message: bytes) -> TcpSocket | None:
    (kind,) = struct.unpack_from("=H", message, 4)
    if kind == NLMSG_ERROR:
        (code,) = struct.unpack_from("=i", message, 16)
        if code in {0, -errno.ENOENT, -errno.ESTALE}:
            return None
        raise OSError(-code, f"sock_diag: {os.strerror(-code)}")
    family, state = struct.unpack_from("=BB", message, 16)
    local_port, peer_port = struct.unpack_from("!HH", message, 20)
    local, peer = message[24:40], message[40:56]
    return TcpSocket(Endpoint(_address(family, local), local_port), Endpoint(_address(family, peer), peer_port), state)


def _address(family: int, packed: bytes) -> Address:
    if family == socket.AF_INET:
        return IPv4Address(packed[:4])
    address = ip_address(packed)
    # A dual-stack listener's connections carry IPv4 as ::ffff:a.b.c.d.
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
