"""What a rule asks of a packet, as plain data, and whether it is true of one.

There are three answers. What can't be decided from a listing alone (marks, ipsets, owners, statistics) is MAYBE:
neither assumed to take a pod's packet nor assumed to leave it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Protocol

from kiam.netfilter.interfaces import InterfacePattern
from kiam.netfilter.packets import Packet

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class Tri(enum.IntEnum):
    """No, maybe, yes: ordered, so that ``min`` is "and" and ``max`` is "or"."""

    NO = 0
    MAYBE = 1
    YES = 2

    def negated_if(self, negate: bool) -> Tri:
        """Swap yes and no; maybe stays."""
        return Tri(2 - self) if negate else self


class Condition(Protocol):
    """One match of a rule."""

    def holds(self, packet: Packet) -> Tri:
        """Whether it is true of the packet."""


@dataclass(frozen=True, slots=True)
class DestinationIn:
    """The destination address is in one of the networks."""

    networks: tuple[Network, ...]
    negated: bool = False

    def holds(self, packet: Packet) -> Tri:
        """See Condition."""
        hit = any(packet.destination in network for network in self.networks)
        return (Tri.YES if hit else Tri.NO).negated_if(self.negated)


@dataclass(frozen=True, slots=True)
class SourceIn:
    """The source address is in one of the networks. A packet without a source is any pod's: maybe."""

    networks: tuple[Network, ...]
    negated: bool = False

    def holds(self, packet: Packet) -> Tri:
        """See Condition."""
        if any(network.prefixlen == 0 for network in self.networks):
            return Tri.YES.negated_if(self.negated)
        if packet.source is None:
            return Tri.MAYBE
        hit = any(packet.source in network for network in self.networks)
        return (Tri.YES if hit else Tri.NO).negated_if(self.negated)


@dataclass(frozen=True, slots=True)
class ComesInOn:
    """The packet's incoming interface is one of the patterns'."""

    patterns: tuple[InterfacePattern, ...]
    negated: bool = False

    def holds(self, packet: Packet) -> Tri:
        """See Condition."""
        return max(map(_how_far(packet.interface), self.patterns), default=Tri.NO).negated_if(self.negated)

    @property
    def pattern(self) -> InterfacePattern | None:
        """The same as one pattern; None where it takes several."""
        if len(self.patterns) != 1:
            return None
        return replace(self.patterns[0], inverted=self.patterns[0].inverted is not self.negated)


def _how_far(interface: InterfacePattern) -> Callable[[InterfacePattern], Tri]:
    def holds(pattern: InterfacePattern) -> Tri:
        if pattern.covers(interface):
            return Tri.YES
        return Tri.MAYBE if pattern.overlaps(interface) else Tri.NO

    return holds


@dataclass(frozen=True, slots=True)
class ProtocolIs:
    """The transport protocol is one of these, by name."""

    protocols: frozenset[str]
    negated: bool = False

    def holds(self, packet: Packet) -> Tri:
        """See Condition."""
        return (Tri.YES if packet.protocol in self.protocols else Tri.NO).negated_if(self.negated)


@dataclass(frozen=True, slots=True)
class PortIn:
    """The destination port is in one of the ranges, both ends included."""

    ranges: tuple[tuple[int, int], ...]
    negated: bool = False

    def holds(self, packet: Packet) -> Tri:
        """See Condition."""
        hit = any(first <= packet.port <= last for first, last in self.ranges)
        return (Tri.YES if hit else Tri.NO).negated_if(self.negated)


@dataclass(frozen=True, slots=True)
class DestinationIsLocal:
    """The destination is an address of the host (``addrtype --dst-type LOCAL``)."""

    negated: bool = False

    def holds(self, packet: Packet) -> Tri:
        """See Condition."""
        return (Tri.YES if packet.local else Tri.NO).negated_if(self.negated)


@dataclass(frozen=True, slots=True)
class StateIn:
    """The connection's state: an ordinary packet is the first of a new one, with or without DNAT done."""

    states: frozenset[str]
    negated: bool = False

    def holds(self, packet: Packet) -> Tri:
        """See Condition."""
        if not packet.ordinary:
            return Tri.MAYBE
        hit = "NEW" in self.states or ("DNAT" in self.states and packet.translated)
        return (Tri.YES if hit else Tri.NO).negated_if(self.negated)


@dataclass(frozen=True, slots=True)
class Never:
    """Never true of an ordinary packet, such as a failed reverse path check or a service's ipset."""

    text: str

    def holds(self, packet: Packet) -> Tri:
        """See Condition."""
        return Tri.NO if packet.ordinary else Tri.MAYBE


@dataclass(frozen=True, slots=True)
class Undecided:
    """A match a listing alone can't decide."""

    text: str

    def holds(self, packet: Packet) -> Tri:
        """See Condition."""
        return Tri.MAYBE
