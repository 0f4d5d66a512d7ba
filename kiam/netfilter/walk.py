"""The route of a packet through base chains and jumps, and what on it decides the packet's fate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from kiam.netfilter.conditions import Tri
from kiam.netfilter.model import Action, Chain, Rule, Table
from kiam.netfilter.packets import Packet

FINAL = frozenset({Action.DROP, Action.REJECT, Action.TPROXY, Action.DNAT, Action.REDIRECT})
"""What ends a packet's route through a whole hook; ACCEPT and RETURN end it in one base chain only."""
MAX_DEPTH = 64
"""Of jumps. nft's own limit is 16 (NFT_JUMP_STACK_SIZE); iptables-legacy has none but the number of chains."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A rule on the packet's route that does something to it."""

    table: Table
    base: Chain
    rule: Rule
    certain: Tri
    """Whether the rule and the jumps that led to it match; MAYBE where a listing can't tell."""
    conditional: bool = False
    """Whether something before it may have ended the packet's route already."""

    @property
    def sure(self) -> bool:
        """Whether the packet comes to this rule and is taken by it, beyond doubt."""
        return self.certain is Tri.YES and not self.conditional


def base_chains(tables: Iterable[Table], packet: Packet, hook: str) -> list[tuple[Table, Chain]]:
    """The chains the packet comes through at that hook, in the kernel's order: by priority."""
    found = [
        (table, chain)
        for table in tables
        if table.sees(packet)
        for chain in table.chains.values()
        if chain.hook == hook
    ]
    return sorted(found, key=lambda pair: pair[1].priority)


def walk(table: Table, base: Chain, packet: Packet) -> list[Hit]:
    """What one base chain does to the packet: every possible hit, and nothing behind the first sure verdict.

    A RETURN or a GOTO from the base chain itself is a hit too: it skips the rules behind it. Of a packet that isn't
    ordinary no verdict is sure.
    """
    walker = _Walker(table, base, packet)
    walker.follow(base, Tri.YES if packet.ordinary else Tri.MAYBE, 0, False)
    return walker.hits


class _Walker:
    def __init__(self, table: Table, base: Chain, packet: Packet) -> None:
        self.table = table
        self.base = base
        self.packet = packet
        self.hits: list[Hit] = []
        self.maybe_over = False
        self._seen: dict[tuple[str, Tri, bool, bool], int] = {}
        """How deep a chain was when the packet came to it in a state before: a second time it meets the same rules."""

    def follow(self, chain: Chain, certain: Tri, depth: int, maybe_left: bool) -> bool:
        """Go through one chain; True when the packet's route surely ended in it.

        Each chain once for each state: chains that jump to each other hold more routes than can be followed.
        """
        state = (chain.name, certain, maybe_left, self.maybe_over)
        if self._seen.get(state, MAX_DEPTH + 1) <= depth:
            return False
        self._seen[state] = depth
        for rule in chain.rules:
            if rule.action is Action.CONTINUE or (match := min(rule.matches(self.packet), certain)) is Tri.NO:
                continue
            # A jump to where no chain is, is a target of iptables that isn't known here.
            target = self.table.chains.get(rule.target_chain)
            if rule.action in {Action.JUMP, Action.GOTO} and target is not None:
                if depth < MAX_DEPTH and self.follow(target, match, depth + 1, maybe_left):
                    return True
                if rule.action is Action.GOTO:
                    if depth == 0:
                        self.hits.append(Hit(self.table, self.base, rule, match, self.maybe_over or maybe_left))
                    if match is Tri.YES:
                        return False
                    maybe_left = True
                continue
            conditional = self.maybe_over or maybe_left
            if rule.action in {Action.UNDECIDED, Action.JUMP, Action.GOTO}:
                match = Tri.MAYBE
            if rule.action is not Action.RETURN or depth == 0:
                self.hits.append(Hit(self.table, self.base, rule, match, conditional))
            if rule.action is Action.RETURN:
                if match is Tri.YES:
                    return depth == 0 and not conditional
                maybe_left = True
            elif rule.action is not Action.NOTRACK:
                if match is Tri.YES and not conditional:
                    return True
                self.maybe_over = True
                if match is Tri.YES:
                    return False
        return False


def hits_at(tables: Sequence[Table], packet: Packet, hook: str) -> Iterator[Hit]:
    """All hits at a hook in the order the kernel meets them.

    An ACCEPT ends its own base chain only; a DROP or a DNAT that is certain ends the packet's route through the hook
    (nf_hook_slow; nf_nat_inet_fn runs the nat chains until the first that sets up a translation).
    """
    for table, base in base_chains(tables, packet, hook):
        for hit in walk(table, base, packet):
            yield hit
            if hit.sure and hit.rule.action in FINAL:
                return
