"""Finds the redirect in the kernel's rules, and what is nearly it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_network

from kiam.dataplane.addresses import is_local
from kiam.dataplane.contract import OwnRule, WantedState
from kiam.metadata import METADATA_IPV4, METADATA_PORT
from kiam.netfilter.conditions import ComesInOn, DestinationIn, PortIn, ProtocolIs, SourceIn, StateIn, Tri
from kiam.netfilter.interfaces import InterfacePattern
from kiam.netfilter.model import Action, Chain, Rule, Table
from kiam.netfilter.packets import NO_INTERFACE, Packet
from kiam.netfilter.walk import base_chains, walk

METADATA_NETWORK = ip_network(f"{METADATA_IPV4}/32")
ORDINARY = Packet(NO_INTERFACE, METADATA_IPV4)
TRANSLATIONS = frozenset({Action.DNAT, Action.REDIRECT})


@dataclass(frozen=True, slots=True)
class Redirect:
    """A rule that redirects metadata traffic, or tries to."""

    table: Table
    chain: Chain
    rule: Rule
    differences: tuple[str, ...]
    """What isn't as the documentation has it, for people."""

    def __str__(self) -> str:
        return f"{self.table.tool} {self.table.name}: {self.rule.text}"


def redirects(tables: Sequence[Table], wanted: WantedState) -> Iterator[Redirect]:
    """Every rule in a prerouting chain of type nat, or reached from one, that is about metadata or the agent."""
    for table in tables:
        if table.family == "ip6":
            continue
        for chain in _nat_prerouting(table):
            for rule in chain.rules:
                if rule.action in TRANSLATIONS and _concerns(rule, wanted):
                    yield Redirect(table, chain, rule, differences(rule, wanted))


def _nat_prerouting(table: Table) -> list[Chain]:
    pending = [chain.name for chain in table.chains.values() if chain.hook == "prerouting" and chain.kind == "nat"]
    seen: dict[str, Chain] = {}
    while pending:
        name = pending.pop()
        chain = table.chains.get(name)
        if chain is None or name in seen:
            continue
        seen[name] = chain
        pending.extend(rule.target_chain for rule in chain.rules if rule.target_chain)
    return list(seen.values())


def _concerns(rule: Rule, wanted: WantedState) -> bool:
    if rule.to_address == wanted.host_address and rule.to_port == wanted.port:
        return True
    if rule.action is Action.DNAT and rule.to_address != wanted.host_address and rule.to_port != wanted.port:
        return False  # somebody else's; precedence tells whether it is in the way
    return _for_metadata(rule)


def _for_metadata(rule: Rule) -> bool:
    return any(
        isinstance(condition, DestinationIn)
        and not condition.negated
        and any(METADATA_IPV4 in network and network.prefixlen > 0 for network in condition.networks)
        for condition in rule.conditions
    )


def differences(rule: Rule, wanted: WantedState) -> tuple[str, ...]:
    """In what a rule isn't the documented one; empty where it is."""
    found: list[str] = []
    destination = protocol = port = interface = False
    for condition in rule.conditions:
        match condition:
            case DestinationIn(networks, negated):
                destination = True
                if negated or networks != (METADATA_NETWORK,):
                    found.append(f"address {_names(networks, negated)} instead of {METADATA_NETWORK}")
            case ComesInOn(patterns, negated):
                interface = True
                if condition.pattern != wanted.interface:
                    found.append(f"interface {_names(patterns, negated)} instead of {wanted.interface}")
            case ProtocolIs(protocols, negated):
                protocol = True
                if negated or protocols != {"tcp"}:
                    found.append(f"protocol {_names(sorted(protocols), negated)} instead of tcp")
            case PortIn(ranges, negated):
                port = True
                if negated or ranges != ((METADATA_PORT, METADATA_PORT),):
                    text = _names([f"{a}" if a == b else f"{a}-{b}" for a, b in ranges], negated)
                    found.append(f"destination port {text} instead of {METADATA_PORT}")
            case SourceIn(networks, negated):
                if condition.holds(ORDINARY) is not Tri.YES:
                    found.append(f"only from {_names(networks, negated)}")
            case StateIn():
                if condition.holds(ORDINARY) is not Tri.YES:
                    found.append("not for new connections")
            case _:
                found.append(f"only if {condition}")
    for present, text in (
        (destination, "any address"),
        (protocol, "any protocol"),
        (port, "any port"),
        (interface or not wanted.interface.name, "any interface"),
    ):
        if not present:
            found.append(text)
    if rule.action is Action.REDIRECT:
        found.append(f"REDIRECT to port {rule.to_port} instead of DNAT to {wanted.host_address}:{wanted.port}")
    elif (rule.to_address, rule.to_port) != (wanted.host_address, wanted.port):
        found.append(f"to {rule.to_address}:{rule.to_port} instead of {wanted.host_address}:{wanted.port}")
    return tuple(found)


def _names(values: Sequence[object], negated: bool) -> str:
    return "not " * negated + ",".join(str(value) for value in values)


def works(redirect: Redirect, tables: Sequence[Table], packets: Sequence[Packet], wanted: WantedState) -> bool:
    """Whether every one of the packets comes to this rule and is sent to the agent by it, other takers left aside."""
    if (redirect.rule.to_address, redirect.rule.to_port) != (wanted.host_address, wanted.port):
        return False
    if redirect.rule.action is not Action.DNAT:
        return False
    return all(_reaches(redirect, packet) for packet in packets)


def _reaches(redirect: Redirect, packet: Packet) -> bool:
    if redirect.rule.matches(packet) is not Tri.YES:
        return False
    if redirect.chain.hook:
        return True
    return any(
        hit.rule is redirect.rule
        for _, base in base_chains([redirect.table], packet, "prerouting")
        for hit in walk(redirect.table, base, packet)
    )


def is_ours(redirect: Redirect, ours: Collection[OwnRule]) -> bool:
    """Whether one of our dataplanes knows the rule as its own."""
    return OwnRule(redirect.table.tool, redirect.table.name, redirect.rule) in ours


def made_by_hand(tables: Sequence[Table]) -> tuple[IPv4Address, int, InterfacePattern] | None:
    """Where a redirect leads that somebody else made, and for which interfaces: the nearest to the documented one."""
    found: list[tuple[int, tuple[IPv4Address, int, InterfacePattern]]] = []
    for table in tables:
        if table.family == "ip6":
            continue
        for chain in _nat_prerouting(table):
            for rule in chain.rules:
                address, port = rule.to_address, rule.to_port
                if rule.action is not Action.DNAT or not isinstance(address, IPv4Address) or port is None:
                    continue
                if not _for_metadata(rule) or not is_local(address):
                    continue
                if rule.interface is not None:
                    state = WantedState(address, port, rule.interface)
                    found.append((len(differences(rule, state)), (address, port, rule.interface)))
    return min(found, key=lambda one: one[0])[1] if found else None
