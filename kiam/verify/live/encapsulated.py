"""A SYN for the metadata service inside a tunnel's packet to the node: the node takes it out and forwards it."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Callable, Mapping
from ipaddress import ip_address

from kiam.metadata import METADATA_IPV4, METADATA_IPV6, METADATA_PORT
from kiam.verify.live.attempts import Attempt, Outcome, TunnelEnd
from kiam.verify.live.context import Context, Route, outcome_of
from kiam.verify.live.frames import ETH_P_IP, ETH_P_IPV6, TCP, ip_packet, tcp_syn

GRE = 47
TRANSPARENT_ETHERNET = 0x6558
"""The protocol type of Ethernet frames in Geneve (RFC 8926)."""
INNER_PORT = 20002
SENDER_MAC = bytes.fromhex("020000000001")


def _ethernet(end: TunnelEnd, packet: bytes) -> bytes:
    ethertype = ETH_P_IPV6 if packet[0] >> 4 == 6 else ETH_P_IP
    return bytes.fromhex(end.mac.replace(":", "")) + SENDER_MAC + struct.pack("!H", ethertype) + packet


def vxlan(end: TunnelEnd, packet: bytes) -> bytes:
    """RFC 7348, section 5: flags with the I bit, then the network's number."""
    return struct.pack("!II", 0x08 << 24, end.number << 8) + _ethernet(end, packet)


def geneve(end: TunnelEnd, packet: bytes) -> bytes:
    """RFC 8926, section 3.4: no options."""
    return struct.pack("!HHI", 0, TRANSPARENT_ETHERNET, end.number << 8) + _ethernet(end, packet)


def bare(_: TunnelEnd, packet: bytes) -> bytes:
    """RFC 2003 and RFC 4213: the packet as it is."""
    return packet


def gre(_: TunnelEnd, packet: bytes) -> bytes:
    """RFC 2784: no checksum, and the inner protocol by its EtherType."""
    return struct.pack("!HH", 0, ETH_P_IP) + packet


WRAP: Mapping[str, tuple[Callable[[TunnelEnd, bytes], bytes], int]] = {
    "vxlan": (vxlan, 0),
    "geneve": (geneve, 0),
    "ipip": (bare, socket.IPPROTO_IPIP),
    "gre": (gre, GRE),
    "sit": (bare, socket.IPPROTO_IPV6),
}
"""Kind of tunnel: what is put around the packet, and the outer IP protocol; 0 for UDP."""


def route(name: str) -> Route:
    """Send one, as anybody can who knows where the node's end is."""
    wrap, protocol = WRAP[name]

    def attempt(context: Context) -> Attempt:
        end = context.order.tunnels.get(name)
        if end is None:
            return Attempt(name, Outcome.UNSUPPORTED, "this node can't be an end of such a tunnel")
        source, sequence = ip_address(end.source), random.getrandbits(32)
        destination = METADATA_IPV6 if source.version == 6 else METADATA_IPV4
        segment = tcp_syn(source, destination, INNER_PORT, METADATA_PORT, sequence)
        outer = wrap(end, ip_packet(source, destination, TCP, segment))
        kind = socket.SOCK_RAW if protocol else socket.SOCK_DGRAM
        try:
            with socket.socket(socket.AF_INET, kind | socket.SOCK_CLOEXEC, protocol) as sender:
                sender.sendto(outer, (context.order.node, end.port))
        except OSError as error:
            return Attempt(name, *outcome_of(error))
        return Attempt(name, Outcome.SILENCE, "no answer", sent=((TCP, f"{sequence:08x}"),))

    return attempt
