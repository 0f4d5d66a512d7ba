"""The redirect in the kernel's rules against the wanted one: missing, twice, nearly right, or in the other backend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_network

from kiam.dataplane.contract import WantedState
from kiam.metadata import METADATA_IPV4, METADATA_PORT
from kiam.netfilter.interfaces import InterfacePattern
from kiam.netfilter.model import (
    Action,
    Chain,
    ComesInOn,
    DestinationIn,
    PortIn,
    ProtocolIs,
    Rule,
    SourceIn,
    StateIn,
    Table,
    Tri,
)
from kiam.netfilter.packets import Packet
from kiam.netfilter.walk import base_chains, walk
from kiam.verify.fixes import Mends, both, delete_rule
from kiam.verify.results import CheckResult, failed, passed, warned

METADATA_NETWORK = ip_network(f"{METADATA_IPV4}/32")
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
                if _as_pattern(patterns, negated) != wanted.interface:
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
                if condition.holds(Packet("", METADATA_IPV4)) is not Tri.YES:
                    found.append(f"only from {_names(networks, negated)}")
            case StateIn():
                if condition.holds(Packet("", METADATA_IPV4)) is not Tri.YES:
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


def _as_pattern(patterns: Sequence[InterfacePattern], negated: bool) -> InterfacePattern | None:
    if len(patterns) != 1:
        return None
    only = patterns[0]
    return InterfacePattern(only.name, only.wildcard, only.inverted is not negated)


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


def check_redirect(
    tables: Sequence[Table], packets: Sequence[Packet], wanted: WantedState, mends: Mends
) -> list[CheckResult]:
    """The redirect itself, what is nearly it, and the backend it is in."""
    found = list(redirects(tables, wanted))
    good = [redirect for redirect in found if works(redirect, tables, packets, wanted)]
    bad = [redirect for redirect in found if redirect not in good]
    results = [_presence(good, bad, mends)]
    results.extend(_near_miss(good, redirect, mends) for redirect in bad)
    results.extend(_wider(redirect, mends) for redirect in good if redirect.chain.hook and redirect.differences)
    backend = _backend(good, mends)
    return [*results, backend] if backend else results


def _presence(good: Sequence[Redirect], bad: Sequence[Redirect], mends: Mends) -> CheckResult:
    target = f"{mends.wanted.host_address}:{mends.wanted.port}"
    if not good:
        nearly = f"; {len(bad)} near miss{'es' if len(bad) > 1 else ''}, see below" if bad else ""
        return failed("redirect rule", f"no rule sends metadata traffic of pods to {target}{nearly}", mends.install())
    if len(good) > 1:
        places = ", ".join(f"{redirect.table.tool} {redirect.rule.chain}" for redirect in good)
        return passed("redirect rule", f"{len(good)} rules alike ({places}), which is harmless")
    return passed("redirect rule", str(good[0]))


def _near_miss(good: Sequence[Redirect], redirect: Redirect, mends: Mends) -> CheckResult:
    seen = f"{redirect}: {'; '.join(redirect.differences) or 'not reached by packets of pods'}"
    delete = delete_rule(redirect.table, redirect.rule)
    if good:
        return warned("near miss", seen, delete)
    # The right rule first, so that at no moment there is none.
    return failed("near miss", seen, both([mends.install(), delete]))


def _wider(redirect: Redirect, mends: Mends) -> CheckResult:
    seen = f"{redirect}: works for pods, but {'; '.join(redirect.differences)}"
    return warned("near miss", seen, both([mends.install(), delete_rule(redirect.table, redirect.rule)]))


def _backend(good: Sequence[Redirect], mends: Mends) -> CheckResult | None:
    in_iptables = [redirect for redirect in good if redirect.table.tool.startswith("iptables")]
    if not in_iptables:
        return None
    others = [redirect for redirect in in_iptables if redirect.table.tool != mends.iptables]
    if not others:
        return passed("iptables backend", f"{mends.iptables}, the one the rules of this node are in")
    seen = f"a rule is in {others[0].table.tool}, which '{mends.iptables} -S' doesn't show: {others[0].rule.text}"
    commands = [] if len(others) < len(in_iptables) else [mends.insert_rule()]
    commands.extend(delete_rule(redirect.table, redirect.rule) for redirect in others)
    return warned("iptables backend", seen, both(commands))
