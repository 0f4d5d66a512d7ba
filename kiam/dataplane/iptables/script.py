"""What differs in a table from what it has to hold, and the scripts that bring it there and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from kiam.dataplane.iptables.ours import adopted, made_by_us, own_chains, own_hooks, taken_first
from kiam.dataplane.iptables.rules import INSTALLED, MADE, TableRules
from kiam.netfilter.interfaces import InterfacePattern
from kiam.netfilter.iptables_listing import make_rule, specification
from kiam.netfilter.model import Rule, Table


def _with_made(rules: TableRules, made: Sequence[str]) -> TableRules:
    if not made:
        return rules
    note = make_rule(INSTALLED, "-m", "comment", "--comment", f"{MADE} {' '.join(made)}")
    return TableRules({**rules.chains, INSTALLED: (*rules.chains[INSTALLED], note)}, rules.hooks)


def problems_of(
    table_name: str,
    table: Table,
    rules: TableRules,
    interface: InterfacePattern,
    local: bool = False,
) -> Iterator[str]:
    """What differs in a table from what it has to hold, one line each."""
    present = own_hooks(table)
    for rule in rules.hooks:
        count = present.count(rule)
        if count == 0:
            by_hand = rule in table.rules(rule.chain)
            yield f"missing in {table_name}: {rule.text}" + (" (there is one alike that isn't ours)" if by_hand else "")
        elif count > 1:
            yield f"{count} times in {table_name}: {rule.text}"
        elif taker := taken_first(table, rule, interface, local):
            yield f"in {table_name} {rule.chain}, behind a rule that could take the packet first: {taker.text}"
    for rule in dict.fromkeys(present):
        if rule not in rules.hooks:
            yield f"of an older version of ours in {table_name}: {rule.text}"
    chains = own_chains(table)
    wanted = _with_made(rules, made_by_us(table)).chains
    for chain, content in wanted.items():
        if list(chains.get(chain, ())) != list(content) or chain not in chains:
            yield f"the chain {chain} of {table_name} " + ("differs" if chain in chains else "is missing")
    for chain in chains:
        if chain not in wanted:
            yield f"the chain {chain} of {table_name} is of an older version of ours"


def _line(command: str, rule: Rule, position: str = "") -> str:
    return f"[{rule.packets}:{rule.bytes}] {command} {rule.chain} {position}{specification(rule)}"


def _counted(rule: Rule, known: Mapping[Rule, Rule]) -> Rule:
    before = known.get(rule)
    return rule if before is None else before


def install_script(table_name: str, table: Table, rules: TableRules, made: Sequence[str]) -> str:
    """Input for ``iptables-restore --noflush --counters`` that brings one table to what it has to hold.

    One table is one transaction: packets see the rules before or the rules after. What was ours is taken out in the
    same step, and counters of rules that stay are carried over.
    """
    present = [*own_hooks(table), *adopted(table, rules)]
    chains = own_chains(table)
    wanted = _with_made(rules, made)
    known = {rule: rule for rule in (*present, *(rule for content in chains.values() for rule in content))}
    lines = [f"*{table_name}"]
    lines += _start_record(table)
    lines += [f":{chain} - [0:0]" for chain in wanted.chains if chain != INSTALLED]
    # By text, not by number: numbers change when another program writes, texts don't. Deleting comes before inserting,
    # because -D takes the first rule that reads so.
    lines += [f"-D {rule.chain} {specification(rule)}" for rule in present]
    lines += [_line("-A", _counted(rule, known)) for content in wanted.chains.values() for rule in content]
    lines += [_line("-I", _counted(rule, known), "1 ") for rule in reversed(wanted.hooks)]
    lines += _drop_chains(chain for chain in chains if chain not in wanted.chains)
    return "\n".join([*lines, "COMMIT", ""])


def _start_record(table: Table) -> list[str]:
    # Not by flushing, which always succeeds: of two installs at the same time each would write its rule, and the second
    # forget that the first one's is ours. Making a chain that has come into being meanwhile fails, and so does deleting
    # a copy that has gone.
    if INSTALLED not in table.chains:
        return [f"-N {INSTALLED}"]
    return [f"-D {INSTALLED} {specification(copy)}" for copy in table.rules(INSTALLED)]


def _drop_chains(chains: Iterable[str]) -> list[str]:
    names = list(chains)
    return [f"-F {chain}" for chain in names] + [f"-X {chain}" for chain in names]


def remove_script(table_name: str, table: Table) -> str | None:
    """Input for ``iptables-restore --noflush`` that takes out all that is ours; None when nothing is."""
    hooks, chains = own_hooks(table), own_chains(table)
    if not hooks and not chains:
        return None
    lines = [f"-D {rule.chain} {specification(rule)}" for rule in hooks]
    return "\n".join([f"*{table_name}", *lines, *_drop_chains(chains), "COMMIT", ""])
