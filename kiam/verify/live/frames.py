"""Packets as bytes: the ones the raw probes send, and what a tap needs to know of the ones it sees."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

ETH_P_IP = 0x0800
ETH_P_IPV6 = 0x86DD
ETH_P_8021Q = 0x8100
ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
SYN, RST, ACK = 0x02, 0x04, 0x10

Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Seen:
    """One packet as a tap saw it."""

    protocol: int
    source: Address
    destination: Address
    source_port: int
    destination_port: int
    mark: str
    """What no NAT changes and nobody else has: the sequence number of TCP, the payload of UDP and ICMP."""
    flags: int = 0

    @property
    def key(self) -> tuple[int, str]:
        """Tells the packet from all others, however its addresses and ports are translated as it goes."""
        return self.protocol, self.mark


def parse(packet: bytes) -> Seen | None:
    """An IP packet without its link header; None for a fragment, another protocol, or nonsense."""
    try:
        version = packet[0] >> 4
        if version == 4:
            if struct.unpack_from("!H", packet, 6)[0] & 0x1FFF:
                return None
            source: Address = IPv4Address(packet[12:16])
            destination: Address = IPv4Address(packet[16:20])
            return _transport(packet[9], source, destination, packet[(packet[0] & 15) * 4 :])
        if version == 6:
            source, destination = IPv6Address(packet[8:24]), IPv6Address(packet[24:40])
            return _transport(packet[6], source, destination, packet[40:])
    except (IndexError, struct.error, ValueError):
        pass
    return None


def _transport(protocol: int, source: Address, destination: Address, segment: bytes) -> Seen | None:
    if protocol == TCP:
        source_port, destination_port, sequence = struct.unpack_from("!HHI", segment)
        return Seen(protocol, source, destination, source_port, destination_port, f"{sequence:08x}", segment[13])
    if protocol == UDP:
        source_port, destination_port = struct.unpack_from("!HH", segment)
        return Seen(protocol, source, destination, source_port, destination_port, segment[8:72].hex())
    if protocol in {ICMP, ICMPV6}:
        return Seen(protocol, source, destination, 0, 0, segment[8:72].hex())
    return None


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def tcp_syn(source: Address, destination: Address, source_port: int, destination_port: int, sequence: int) -> bytes:
    """A TCP segment that asks for a connection."""

    def segment(check: int) -> bytes:
        ports = struct.pack("!HHII", source_port, destination_port, sequence, 0)
        return ports + struct.pack("!BBHHH", 5 << 4, SYN, 64240, check, 0)

    pseudo = source.packed + destination.packed
    pseudo += struct.pack("!BBH", 0, TCP, 20) if source.version == 4 else struct.pack("!IHBB", 20, 0, 0, TCP)
    return segment(checksum(pseudo + segment(0)))


def icmp_echo(identifier: int, payload: bytes) -> bytes:
    """An ICMP echo request."""

    def message(check: int) -> bytes:
        return struct.pack("!BBHHH", 8, 0, check, identifier, 1) + payload

    return message(checksum(message(0)))


def ip_packet(source: Address, destination: Address, protocol: int, payload: bytes) -> bytes:
    """An IP packet around a transport segment, with a time to live of 64."""
    if source.version == 6:
        header = struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64)
        return header + source.packed + destination.packed + payload

    def header4(check: int) -> bytes:
        words = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0x4000, 64, protocol, check)
        return words + source.packed + destination.packed

    return header4(checksum(header4(0))) + payload


def metadata_filter(addresses: Sequence[Address]) -> list[tuple[int, int, int, int]]:
    """A classic BPF program that lets only packets from or to one of the addresses up to the tap.

    On a busy node the tap must cost nothing but this: (code, jump if true, jump if false, k) for packets that begin at
    the network header, as SOCK_DGRAM gives them (packet(7), bpf(4); SKF_AD_PROTOCOL, linux/filter.h).
    """
    protocol_of_packet = 0xFFFFF000
    program: list[tuple[int, int, int, int]] = []
    for address in addresses:
        ethertype, places = (ETH_P_IP, (12, 16)) if address.version == 4 else (ETH_P_IPV6, (8, 24))
        words = struct.unpack(f"!{len(address.packed) // 4}I", address.packed)
        for place in places:
            block = [(0x28, 0, 0, protocol_of_packet), (0x15, 0, 2 * len(words) + 1, ethertype)]
            for number, word in enumerate(words):
                block.append((0x20, 0, 0, place + 4 * number))
                block.append((0x15, 0, 2 * (len(words) - number - 1) + 1, word))
            block.append((0x06, 0, 0, 0x40000))
            program.extend(block)
    return [*program, (0x06, 0, 0, 0)]
