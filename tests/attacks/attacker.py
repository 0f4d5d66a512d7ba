"""What a hostile process tries, told by lines of JSON on standard input; standard library only, started in its place.

A request is ``[function, argument, ...]``, an answer ``{"value": ...}`` or ``{"error": "EPERM"}``. Every way sends one
packet that would begin a conversation with instance metadata.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

METADATA = {4: "169.254.169.254", 6: "fd00:ec2::254"}
ETH_P = {4: 0x0800, 6: 0x86DD}
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
SOMEBODY = {"4": "203.0.113.7", "6": "2001:db8:7::7"}
TIMEOUT = 0.3
SOL_PACKET = 263
PACKET_VNET_HDR = 15
PACKET_QDISC_BYPASS = 20
PACKET_TX_RING = 13
AF_XDP = 44
SOL_XDP = 283
XDP_COPY = 2
XDP_TX_RING, XDP_UMEM_REG, XDP_UMEM_FILL_RING, XDP_UMEM_COMPLETION_RING, XDP_MMAP_OFFSETS = 3, 4, 5, 6, 1
XDP_PGOFF_TX_RING = 0x80000000
PAGE = 4096

libc = ctypes.CDLL(None, use_errno=True)


class Place:
    """Where the attacker is: what it claims to be, and how a frame gets out."""

    def __init__(self, sources: dict[str, str], device: str, mac: str, gateway_mac: str, port: int) -> None:
        self.sources = sources
        self.port = port
        """The source port of everything sent, by which it is found in the service's log."""
        self.device = device
        self.frame_ends = bytes.fromhex(gateway_mac.replace(":", "")) + bytes.fromhex(mac.replace(":", ""))

    def syn(self, version: int) -> bytes:
        """An IP packet with the first segment of a TCP connection to port 80."""
        source = socket.inet_pton(FAMILY[version], self.sources[str(version)])
        target = socket.inet_pton(FAMILY[version], METADATA[version])
        segment = struct.pack("!HHIIBBHHH", self.port, 80, 1, 0, 5 << 4, 2, 64240, 0, 0)
        pseudo = (
            source + target + (struct.pack("!BBH", 0, 6, 20) if version == 4 else struct.pack("!IHBB", 20, 0, 0, 6))
        )
        segment = segment[:16] + struct.pack("!H", checksum(pseudo + segment)) + segment[18:]
        if version == 6:
            return struct.pack("!IHBB", 6 << 28, len(segment), 6, 64) + source + target + segment
        header = struct.pack("!BBHHHBBH", 0x45, 0, 40, 7, 0, 64, 6, 0) + source + target
        return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + segment

    def frame(self, version: int, tags: bytes = b"") -> bytes:
        """An Ethernet frame with that packet."""
        return self.frame_ends + tags + struct.pack("!H", ETH_P[version]) + self.syn(version)


def checksum(data: bytes) -> int:
    """RFC 1071."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total


def _connect(place: Place, address: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as sender:
        sender.settimeout(TIMEOUT)
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sender.bind(("", place.port))
        sender.connect((address, port))


def connect(place: Place, version: int) -> None:
    """An ordinary connection to port 80."""
    _connect(place, METADATA[version], 80)


def connect_mapped(place: Place, version: int) -> None:
    """An IPv4 address written as IPv6."""
    _connect(place, f"::ffff:{METADATA[4]}", 80)


def connect_elsewhere(place: Place, version: int) -> None:
    """An ordinary connection to another port."""
    _connect(place, METADATA[version], 81)


def datagram(place: Place, version: int) -> None:
    """A UDP datagram."""
    with socket.socket(FAMILY[version], socket.SOCK_DGRAM) as sender:
        sender.bind(("", place.port))
        sender.sendto(b"x", (METADATA[version], 80))


def raw_ip(place: Place, version: int) -> None:
    """A raw socket whose IP header is the attacker's own."""
    with socket.socket(FAMILY[version], socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.sendto(place.syn(version), (METADATA[version], 0))


def raw_tcp(place: Place, version: int) -> None:
    """A raw socket of protocol TCP."""
    with socket.socket(FAMILY[version], socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
        raw.sendto(place.syn(version)[20 if version == 4 else 40 :], (METADATA[version], 0))


def raw_marked(place: Place, version: int) -> None:
    """A raw socket that marks its packets, as software that is let through might."""
    with socket.socket(FAMILY[version], socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("I", 1))
        raw.sendto(place.syn(version), (METADATA[version], 0))


def _packet_socket(place: Place, protocol: int) -> socket.socket:
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    raw.bind((place.device, protocol))
    return raw


def packet(place: Place, version: int) -> None:
    """A packet socket, frame and all."""
    with _packet_socket(place, ETH_P[version]) as raw:
        raw.send(place.frame(version))


def packet_dgram(place: Place, version: int) -> None:
    """A packet socket that leaves the frame's header to the kernel."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as raw:
        raw.sendto(place.syn(version), (place.device, ETH_P[version], 0, 0, place.frame_ends[:6]))


def packet_wrong_type(place: Place, version: int) -> None:
    """A packet socket that tells the kernel another protocol than the frame has."""
    with _packet_socket(place, 0) as raw:
        raw.sendto(place.frame(version), (place.device, 0x88B5))


def packet_vnet(place: Place, version: int) -> None:
    """A packet socket with a virtio header in front."""
    with _packet_socket(place, ETH_P[version]) as raw:
        raw.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        raw.send(bytes(10) + place.frame(version))


def packet_vlan0(place: Place, version: int) -> None:
    """A frame with a priority tag, which receivers take for one without."""
    with _packet_socket(place, 0x8100) as raw:
        raw.send(place.frame(version, struct.pack("!HH", 0x8100, 0)))


def packet_bypass(place: Place, version: int) -> None:
    """A packet socket past the queueing discipline, and so past tc's egress hook."""
    with _packet_socket(place, ETH_P[version]) as raw:
        raw.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 1)
        raw.send(place.frame(version))


def packet_bypass_vlan0(place: Place, version: int) -> None:
    """The two together."""
    with _packet_socket(place, 0x8100) as raw:
        raw.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 1)
        raw.send(place.frame(version, struct.pack("!HH", 0x8100, 0)))


def packet_ring(place: Place, version: int) -> None:
    """A frame in a ring of memory shared with the kernel."""
    with _packet_socket(place, ETH_P[version]) as raw:
        raw.setsockopt(SOL_PACKET, PACKET_TX_RING, struct.pack("IIII", PAGE, 1, PAGE, 1))
        frame = place.frame(version)
        with mmap.mmap(raw.fileno(), PAGE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE) as ring:
            # struct tpacket_hdr, aligned; the status says that the frame is to be sent.
            ring[32 : 32 + len(frame)] = frame
            struct.pack_into("LII", ring, 0, 1, len(frame), len(frame))
            raw.send(b"")


def packet_on_loopback(place: Place, version: int) -> None:
    """A frame that comes in on lo from nobody's address, for the host to forward."""
    somebody = Place(SOMEBODY, "lo", "00:00:00:00:00:00", "00:00:00:00:00:00", place.port)
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as raw:
        raw.sendto(somebody.syn(version), ("lo", ETH_P[version], 0, 0, bytes(6)))


def xdp(place: Place, version: int) -> None:
    """AF_XDP: a frame handed to the device's driver."""
    frame = place.frame(version)
    with socket.socket(AF_XDP, socket.SOCK_RAW, 0) as raw:
        memory = mmap.mmap(-1, 16 * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        raw.setsockopt(SOL_XDP, XDP_UMEM_REG, struct.pack("QQIIII", start, 16 * PAGE, PAGE, 0, 0, 0))
        for ring in (XDP_UMEM_FILL_RING, XDP_UMEM_COMPLETION_RING, XDP_TX_RING):
            raw.setsockopt(SOL_XDP, ring, struct.pack("I", 16))
        offsets = struct.unpack("16Q", raw.getsockopt(SOL_XDP, XDP_MMAP_OFFSETS, 128))
        producer, _, descriptors, _ = offsets[4:8]
        queue = mmap.mmap(
            raw.fileno(),
            descriptors + 16 * 16,
            mmap.MAP_SHARED,
            mmap.PROT_READ | mmap.PROT_WRITE,
            offset=XDP_PGOFF_TX_RING,
        )
        address = struct.pack("HHIII", AF_XDP, XDP_COPY, socket.if_nametoindex(place.device), 0, 0)
        while libc.bind(raw.fileno(), address, len(address)):
            # The queue of the socket before this one is given back a moment after it was closed.
            if ctypes.get_errno() != errno.EBUSY:
                raise OSError(ctypes.get_errno(), "bind")
        memory[: len(frame)] = frame
        struct.pack_into("QII", queue, descriptors, 0, len(frame), 0)
        struct.pack_into("I", queue, producer, 1)
        if libc.sendto(raw.fileno(), None, 0, socket.MSG_DONTWAIT, None, 0) < 0 and ctypes.get_errno() != errno.EAGAIN:
            raise OSError(ctypes.get_errno(), "sendto")


WAYS: dict[str, Callable[[Place, int], None]] = {
    function.__name__: function
    for function in (
        *(connect, connect_mapped, connect_elsewhere, datagram, raw_ip, raw_tcp, raw_marked),
        *(packet, packet_dgram, packet_wrong_type, packet_vnet, packet_vlan0, packet_ring),
        *(packet_bypass, packet_bypass_vlan0, packet_on_loopback, xdp),
    )
}
V4_ONLY = ("connect_mapped",)


def attack(way: str, version: int, place: dict[str, Any]) -> None:
    """Try one way."""
    WAYS[way](Place(**place), version)


def main() -> None:
    """Answer requests until standard input ends."""
    libc.prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL: not to outlive a killed test
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        answer: dict[str, Any] = {"value": None}
        try:
            globals()[name](*arguments)
        except TimeoutError:
            answer = {"error": "ETIMEDOUT"}
        except OSError as error:
            answer = {"error": errno.errorcode.get(error.errno or 0, str(error))}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
