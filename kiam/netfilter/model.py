"""Rules as plain data, the same for both iptables backends and nftables, listed or yet to be written."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kiam.netfilter.conditions import Address, ComesInOn, Condition, Tri
from kiam.netfilter.interfaces import EVERY_INTERFACE, InterfacePattern
from kiam.netfilter.packets import Packet


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
    """One rule; two are equal when their tool reads them alike, wherever they stand and whatever they counted."""

    chain: str
    parts: tuple[str, ...]
    """As its tool has it: iptables' words behind ``-A CHAIN``, quotes taken off; nft's statements, JSON each."""
    text: str = field(compare=False)
    """As its tool prints it."""
    comment: str = ""
    conditions: tuple[Condition, ...] = field(default=(), compare=False)
    action: Action = field(default=Action.CONTINUE, compare=False)
    target_chain: str = field(default="", compare=False)
    to_address: Address | None = field(default=None, compare=False)
    to_port: int | None = field(default=None, compare=False)
    position: int = field(default=0, compare=False)
    """From 1, as ``iptables -D CHAIN N`` counts; for nft the handle."""
    packets: int = field(default=0, compare=False)
    bytes: int = field(default=0, compare=False)

    def matches(self, packet: Packet) -> Tri:
        """Whether all conditions hold."""
        return min((condition.holds(packet) for condition in self.conditions), default=Tri.YES)

    @property
    def interface(self) -> InterfacePattern | None:
        """The interfaces whose packets it is for; None where one pattern can't say so."""
        named = [condition.pattern for condition in self.conditions if isinstance(condition, ComesInOn)]
        return EVERY_INTERFACE if not named else named[0] if len(named) == 1 else None


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

    @property
    def properties(self) -> str:
        """What can't be changed without deleting the chain, in nft's words."""
        return f"type {self.kind} hook {self.hook} priority {self.priority}; policy {self.policy};" if self.hook else ""


@dataclass(frozen=True, slots=True)
class Count:
    """What a counter has counted."""

    packets: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Table:
    """A table with its chains, of one tool."""

    tool: str
    """``iptables-nft``, ``iptables-legacy``, ``ip6tables-nft``, ``ip6tables-legacy`` or ``nft``."""
    family: str
    """``ip``, ``ip6``, ``inet`` or another of nft's."""
    name: str
    chains: Mapping[str, Chain] = field(default_factory=dict)
    counters: Mapping[str, Count] = field(default_factory=dict, compare=False)
    """The named counters, which only nft has."""

    def sees(self, packet: Packet) -> bool:
        """Whether packets of that family come through this table."""
        return self.family in {packet.family, "inet"}

    def rules(self, chain: str) -> Sequence[Rule]:
        """A chain's rules; none where there is no such chain."""
        return self.chains[chain].rules if chain in self.chains else ()


Ruleset = Mapping[str, Table]
"""One tool's tables by name."""
NO_TABLE = Table("", "", "")
