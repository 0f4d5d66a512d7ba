"""The packet whose route through the kernel's rules is followed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address

from kiam.metadata import METADATA_IPV4, METADATA_PORT
from kiam.netfilter.interfaces import InterfacePattern

TCP = "tcp"
IFNAMSIZ = 16
NO_INTERFACE = InterfacePattern("")
"""What the host's own packets come in on."""


@dataclass(frozen=True, slots=True)
class Packet:
    """As much of a packet as is known when it comes in from a pod."""

    interface: InterfacePattern
    """It comes in on one of these; of a pattern that takes several it isn't known on which."""
    destination: IPv4Address | IPv6Address
    protocol: str = TCP
    port: int = METADATA_PORT
    source: IPv4Address | IPv6Address | None = None
    """None: any pod's."""
    local: bool = False
    """Whether the destination is an address of the host itself (``addrtype LOCAL``, ``fib daddr type local``)."""
    translated: bool = False
    """Whether a DNAT rule has already taken it (``ctstate DNAT``)."""
    ordinary: bool = True
    """Whether it is the first packet of a new connection and carries what such a packet carries. If not it may be any:
    of an older connection, of none (INVALID), with a forged source; of that, nothing is sure.
    """

    @property
    def family(self) -> str:
        """``ip`` or ``ip6``, as nft says it."""
        return "ip" if self.destination.version == 4 else "ip6"

    def redirected(self, address: IPv4Address | IPv6Address, port: int) -> Packet:
        """The packet after DNAT to an address of the host."""
        return replace(self, destination=address, port=port, local=True, translated=True)


def sample_interface(pattern: InterfacePattern) -> str:
    """A name the pattern matches, for a pod that may come tomorrow."""
    if pattern.inverted:
        return "kiamverify0" if pattern.matches("kiamverify0") else "vpod0"
    return (pattern.name + "kv0")[: IFNAMSIZ - 1] if pattern.wildcard else pattern.name


def metadata_packet(pattern: InterfacePattern, interface: str | None = None) -> Packet:
    """A pod's first packet to the metadata service over IPv4."""
    return Packet(InterfacePattern(interface or sample_interface(pattern)), METADATA_IPV4)
