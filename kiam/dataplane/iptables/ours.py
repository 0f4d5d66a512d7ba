"""Which rules of a listing are ours, what they count, and whether another could take a packet before them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from kiam.dataplane.iptables.rules import (
    BUILT_IN,
    FROM_METADATA,
    HOST_NETWORK,
    INSTALLED,
    MADE,
    PREFIX,
    TABLES,
    TO_METADATA,
    TableRules,
)
from kiam.metadata import METADATA_IPV4, METADATA_IPV6
from kiam.netfilter.conditions import DestinationIn
from kiam.netfilter.interfaces import InterfacePattern
from kiam.netfilter.model import NO_TABLE, Action, Chain, Rule, Ruleset, Table
from kiam.netfilter.packets import Packet
from kiam.netfilter.walk import walk

_DROPS = frozenset({Action.DROP, Action.REJECT})


def own_hooks(table: Table) -> list[Rule]:
    """Our rules in the built-in chains: those that lead to a chain of ours, and those with a copy in INSTALLED.

    A rule that reads like one of INSTALLED but is there more often than INSTALLED says was written by hand, and stays
    until an install finds it (see :func:`adopted`).
    """
    owned = [rule for chain in BUILT_IN for rule in table.rules(chain) if rule.target_chain.startswith(PREFIX)]
    present = list(table.rules("PREROUTING"))
    for copy in table.rules(INSTALLED):
        rule = replace(copy, chain="PREROUTING")
        if rule in present:
            owned.append(present.pop(present.index(rule)))
    return owned


def adopted(table: Table, rules: TableRules) -> list[Rule]:
    """Rules of others that an install takes over, because they read as ours do.

    A conventional agent's, or the documentation's command's: two rules alike would be one too many, and the second
    would go on leading pods to the agent's port after ours is removed.
    """
    wanted = [rule for rule in rules.hooks if not rule.target_chain.startswith(PREFIX)]
    alike = [rule for chain in BUILT_IN for rule in table.rules(chain) if rule in wanted]
    for rule in own_hooks(table):
        if rule in alike:
            alike.remove(rule)
    return alike


def own_chains(table: Table) -> dict[str, Sequence[Rule]]:
    """Our own chains, of whatever version of ours."""
    return {name: chain.rules for name, chain in table.chains.items() if name.startswith(PREFIX)}


def made_by_us(table: Table) -> tuple[str, ...]:
    """What the comment in INSTALLED lists: ``table`` and names of built-in chains."""
    for rule in table.rules(INSTALLED):
        if rule.comment.startswith(MADE):
            return tuple(rule.comment.removeprefix(MADE).split())
    return ()


def packet_of(rule: Rule, interface: InterfacePattern, local: bool = False) -> Packet | None:
    """The packet a rule of ours in a built-in chain is there for; None for host-network pods and for answers.

    Any packet: the guards are there for those of older connections and of none, too. ``local``: whether the node has
    the metadata address itself.
    """
    networks = [condition.networks[0] for condition in rule.conditions if isinstance(condition, DestinationIn)]
    if rule.chain in {"OUTPUT", "POSTROUTING"} or not networks:
        return None
    metadata = METADATA_IPV6 if networks[0].version == 6 else METADATA_IPV4
    return Packet(interface, metadata, local=local, ordinary=False)


def taken_first(table: Table, rule: Rule, interface: InterfacePattern, local: bool = False) -> Rule | None:
    """The rule of others, ahead of ours, that could take a packet meant for ours; None if there is none.

    What only drops is passed by: it can't let a packet out.
    """
    packet = packet_of(rule, interface, local)
    if packet is None:
        return None
    ahead: list[Rule] = []
    ours = own_hooks(table)
    for other in table.rules(rule.chain):
        if other == rule:
            break
        if other not in ours:
            ahead.append(other)
    hits = walk(table, Chain(rule.chain, ahead), packet)
    return next((hit.rule for hit in hits if hit.rule.action not in _DROPS), None)


def own_rules(ruleset: Ruleset) -> Iterator[tuple[str, Rule]]:
    """Each table's name with each rule of ours in it, but for the record of what is ours."""
    for name in TABLES:
        table = ruleset.get(name, NO_TABLE)
        yield from ((name, rule) for rule in own_hooks(table))
        chains = (rules for chain, rules in own_chains(table).items() if chain != INSTALLED)
        yield from ((name, rule) for rules in chains for rule in rules)


def redirects_counted(ruleset: Ruleset) -> int:
    """Connections redirected: nat sees the first packet of each."""
    nat = ruleset.get("nat", NO_TABLE)
    rules = [rule for rule in own_hooks(nat) if rule.chain == "PREROUTING"] + list(nat.rules(HOST_NETWORK))
    return sum(rule.packets for rule in rules if rule.action is Action.DNAT)


def drops_counted(ruleset: Ruleset) -> dict[str, int]:
    """Packets dropped, by reason; a refused IPv6 connection counts once."""
    drops: dict[str, int] = {}
    for chain in (TO_METADATA, FROM_METADATA, HOST_NETWORK):
        for rule in ruleset.get("mangle", NO_TABLE).rules(chain):
            if rule.action is Action.DROP and rule.comment:
                drops[rule.comment] = drops.get(rule.comment, 0) + rule.packets
    for rule in own_hooks(ruleset.get("nat", NO_TABLE)):
        if rule.action is Action.REDIRECT:
            drops["ipv6"] = drops.get("ipv6", 0) + rule.packets
    return drops
