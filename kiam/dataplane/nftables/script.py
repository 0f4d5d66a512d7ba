"""What differs between our table and what it has to hold, and the script that brings it there."""

from __future__ import annotations

from collections.abc import Sequence

from kiam.dataplane.nftables.rules import COUNTERS, FAMILY, TABLE
from kiam.netfilter.model import Chain, Table


def differences(chains: Sequence[Chain], table: Table) -> list[str]:
    """What differs between what the table has to hold and what it holds, one line each."""
    problems: list[str] = []
    for chain in chains:
        present = table.chains.get(chain.name)
        if present is None:
            problems.append(f"the chain {chain.name} is missing")
            continue
        if present.properties != chain.properties:
            problems.append(
                f"the chain {chain.name} is another kind of chain: {present.properties or 'without a hook'}"
            )
        for number, rule in enumerate(chain.rules):
            if number >= len(present.rules) or rule != present.rules[number]:
                problems.append(f"missing in {chain.name}, or not in its place: {rule.text}")
        if len(present.rules) > len(chain.rules):
            problems.append(f"the chain {chain.name} has {len(present.rules) - len(chain.rules)} rules too many")
    names = {chain.name for chain in chains}
    problems += [f"the chain {name} is of another version of ours" for name in table.chains if name not in names]
    problems += [f"the counter {name} is missing" for name in COUNTERS if name not in table.counters]
    return problems


def install_script(chains: Sequence[Chain], table: Table) -> str:
    """Bring the table to what it has to hold: commands of nft's, which happen all together or not at all.

    A chain that stays is emptied and filled, not deleted: its rules are exchanged in one moment, and a chain that is
    deleted and added would be hooked twice or, for a packet under way, not at all. Adding a counter that is there keeps
    its count.
    """
    lines = [f"add table {FAMILY} {TABLE}"]
    lines += [f"add counter {FAMILY} {TABLE} {name}" for name in COUNTERS]
    wanted = {chain.name: chain for chain in chains}
    for name, present in table.chains.items():
        keep = name in wanted and present.properties == wanted[name].properties
        lines += [f"{verb} chain {FAMILY} {TABLE} {name}" for verb in (("flush",) if keep else ("flush", "delete"))]
    for chain in chains:
        lines.append(f"add chain {FAMILY} {TABLE} {chain.name} {{ {chain.properties} }}")
        lines += [f"add rule {FAMILY} {TABLE} {chain.name} {rule.text}" for rule in chain.rules]
    return "\n".join([*lines, ""])
