"""Ways for a program to reach the metadata address other than an ordinary connect."""

from __future__ import annotations

import socket
import struct

from kiam.metadata import METADATA_IPV4, METADATA_IPV6
from tests.sandbox.netns import CALICO_MAC

IPPROTO_MPTCP = 262
ICMP_ECHO = b"\x08\x00\xf7\xff\x00\x00\x00\x00"


def mptcp_exists() -> bool:
    """Linux 5.10 of Debian has none."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP).close()
    except OSError:
        return False
    return True


def send_datagram(address: str, port: int = 80) -> int:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        return sender.sendto(b"hello", (address, port))


def connect_datagram(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        sender.connect((address, 53))


def send_raw_icmp() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sender:
        return sender.sendto(ICMP_ECHO, (str(METADATA_IPV4), 0))


def _ip4(source: str, payload: bytes, fragment: int = 0) -> bytes:
    header = struct.pack(
        "!BBHHHBBH4s4s",
        *(0x45, 0, 20 + len(payload), 7, fragment, 64, socket.IPPROTO_TCP, 0),
        *(socket.inet_aton(source), METADATA_IPV4.packed),
    )
    total = sum(struct.unpack("!10H", header))
    check = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return header[:10] + struct.pack("!H", check) + header[12:] + payload


def _syn() -> bytes:
    # Its checksum is wrong, which no router looks at.
    return struct.pack("!HHIIBBHHH", 40000, 80, 1, 0, 5 << 4, 2, 64240, 0, 0)


def send_raw_packet(source: str) -> int:
    """An IP header of the sender's own, so that any source address can be claimed."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sender:
        return sender.sendto(_ip4(source, _syn()), (str(METADATA_IPV4), 0))


def _send_frame(protocol: int, packet: bytes) -> int:
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as sender:
        hardware = bytes.fromhex(CALICO_MAC.replace(":", ""))
        return sender.sendto(packet, ("eth0", protocol, 0, 0, hardware))


def send_packet_socket(source: str) -> int:
    return _send_frame(0x0800, _ip4(source, _syn()))


def send_fragment(source: str) -> int:
    """A later fragment, which carries no port to look at."""
    return _send_frame(0x0800, _ip4(source, b"x" * 32, fragment=4))


def send_packet_socket6(source: str) -> int:
    header = struct.pack("!IHBB", 6 << 28, 20, socket.IPPROTO_TCP, 64)
    return _send_frame(0x86DD, header + socket.inet_pton(socket.AF_INET6, source) + METADATA_IPV6.packed + _syn())
