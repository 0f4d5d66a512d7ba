"""Rules as plain data, alike for both iptables backends and nftables, and whether a packet matches them.

Matching knows three answers. What these checks can't decide from a listing alone (marks, ipsets, owners, statistics)
is MAYBE: neither assumed to take a pod's packet nor assumed to leave it.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
        hit = any(pattern.matches(packet.interface) for pattern in self.patterns)
        return (Tri.YES if hit else Tri.NO).negated_if(self.negated)


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
    """The connection's state: here always the first packet of a new one, with or without DNAT done."""

    states: frozenset[str]
    negated: bool = False

    def holds(self, packet: Packet) -> Tri:
        """See Condition."""
        hit = "NEW" in self.states or ("DNAT" in self.states and packet.translated)
        return (Tri.YES if hit else Tri.NO).negated_if(self.negated)


@dataclass(frozen=True, slots=True)
class Never:
    """Never true of a pod's ordinary packet, such as a failed reverse path check or a service's ipset."""

    text: str

    def holds(self, packet: Packet) -> Tri:
        """See Condition."""
        return Tri.NO


@dataclass(frozen=True, slots=True)
class Undecided:
    """A match a listing alone can't decide."""

    text: str

    def holds(self, packet: Packet) -> Tri:
        """See Condition."""
        return Tri.MAYBE


class Action(enum.StrEnum):
    """What a rule does with a packet it matches."""

    ACCEPT = "accept"
    DROP = "drop"
    REJECT = "reject"
    RETURN = "return"
    JUMP = "jump"
    GOTO = "goto"
    DNAT = "dnat"
    REDIRECT = "redirect"
    TPROXY = "tproxy"
    NOTRACK = "notrack"
    CONTINUE = "continue"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a listing."""

    chain: str
    position: int
    """From 1, as ``iptables -D CHAIN N`` counts; for nft the handle."""
    conditions: tuple[Condition, ...]
    action: Action
    text: str
    """As its tool prints it."""
    target_chain: str = ""
    to_address: Address | None = None
    to_port: int | None = None

    def matches(self, packet: Packet) -> Tri:
        """Whether all conditions hold."""
        return min((condition.holds(packet) for condition in self.conditions), default=Tri.YES)


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain; those with a hook are where packets come in."""

    name: str
    rules: Sequence[Rule] = ()
    hook: str = ""
    """``prerouting``, ``input``...; empty for chains reached by a jump only."""
    kind: str = ""
    """``nat``, ``filter`` or ``route``; empty like hook."""
    priority: int = 0
    policy: Action = Action.ACCEPT


@dataclass(frozen=True, slots=True)
class Table:
    """A table with its chains, of one tool."""

    tool: str
    """``iptables-nft``, ``iptables-legacy``, ``ip6tables-nft``, ``ip6tables-legacy`` or ``nft``."""
    family: str
    """``ip``, ``ip6`` or ``inet``."""
    name: str
    chains: Mapping[str, Chain] = field(default_factory=dict)

    def sees(self, packet: Packet) -> bool:
        """Whether packets of that family come through this table."""
        return self.family in {packet.family, "inet"}


def drop_table_option(text: str) -> str:
    """A rule's words without the leading ``-A CHAIN``: what follows ``-A``, ``-C`` or ``-D`` in a command."""
    words = text.split(" ", 2)
    return words[2] if len(words) > 2 and words[0] == "-A" else text
