"""Rules that would redirect the host's own connections, the agent's first of all."""

from __future__ import annotations

from collections.abc import Sequence

from kiam.metadata import METADATA_IPV4
from kiam.netfilter.conditions import Tri
from kiam.netfilter.model import Action, Table
from kiam.netfilter.packets import NO_INTERFACE, Packet
from kiam.netfilter.walk import Hit, hits_at
from kiam.verify.fix import Fix
from kiam.verify.fixes import Fixes
from kiam.verify.results import CheckResult, failed, passed

CHECK = "host untouched"
TAKING = frozenset({Action.DNAT, Action.REDIRECT, Action.DROP, Action.REJECT})


def host_hits(tables: Sequence[Table]) -> list[Hit]:
    """What surely redirects or drops a connection of the host's own to the metadata service."""
    # Rules that name an incoming interface can't be in an output chain.
    packet = Packet(NO_INTERFACE, METADATA_IPV4)
    return [
        hit
        for hit in hits_at(tables, packet, "output")
        if hit.rule.action in TAKING and hit.certain is Tri.YES and not hit.conditional
    ]


def fix_for_host(tables: Sequence[Table], fixes: Fixes) -> Fix | None:
    """What lets the host's own connections out again; None where no rule keeps them in."""
    hits = host_hits(tables)
    return fixes.let_pass(hits[0].table, hits[0].rule, from_pods=False) if hits else None


def check_host(tables: Sequence[Table], fixes: Fixes) -> list[CheckResult]:
    """An agent whose own requests come back to itself can't answer one."""
    hits = host_hits(tables)
    if not hits:
        return [passed(CHECK, "no rule takes the host's own connections to the metadata service")]
    return [
        failed(
            CHECK,
            f"{hit.table.tool} {hit.table.name} {hit.rule.chain} takes the host's own connections: {hit.rule.text}",
            fixes.let_pass(hit.table, hit.rule, from_pods=False),
        )
        for hit in hits
    ]
