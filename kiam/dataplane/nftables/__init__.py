"""The nftables dataplane: one own table, exchanged in one transaction.

What the table holds is in :mod:`kiam.dataplane.nftables.rules`; this module reads, decides and writes.
"""

from __future__ import annotations

import re

from kiam.dataplane.addresses import check_addresses
from kiam.dataplane.cgroup_namespace import where_cgroups_are_found
from kiam.dataplane.cgroups import find_host_pods
from kiam.dataplane.contract import Condition, Counters, Inspection, OwnRule, Traits, WantedState
from kiam.dataplane.egress import EgressGuard
from kiam.dataplane.nftables.readback import read_back
from kiam.dataplane.nftables.rules import DROP_REASONS, FAMILY, REDIRECTS, TABLE, wanted_chains
from kiam.dataplane.nftables.script import differences, install_script
from kiam.errors import UserError
from kiam.netfilter import nft
from kiam.netfilter.model import NO_TABLE, Count, Table
from kiam.netfilter.nft_listing import parse_nft_table

EGRESS = EgressGuard("kiam")


def failure(said: str, with_cgroups: bool = False) -> UserError:
    """One line for what nft complained of, with what to do about it.

    ``with_cgroups``: the rules matched cgroups, which older kernels can't.
    """
    line = next((line.strip() for line in said.splitlines() if "rror" in line), said.strip() or "it said nothing")
    line = line.removeprefix("internal:0:0-0: ").removeprefix("Error: ")
    if "Operation not permitted" in said:
        return UserError(
            "changing nftables needs root and the capability NET_ADMIN: use sudo, or add NET_ADMIN to the container "
            f"({line})"
        )
    if "cgroupv2" in said or (with_cgroups and "not supported" in said):
        return UserError(
            "this kernel or nft can't match cgroups (Linux 5.13 and nftables 0.9.9 can, with the module "
            f"nft_socket): use --host-network=ignore or --dataplane=ebpf ({line})"
        )
    if re.search(r"No such file or directory|not supported|Protocol not available", said):
        return UserError(
            "this kernel lacks a part of nftables (Linux 5.9 or newer has all): "
            f"run 'modprobe -a nf_tables nft_chain_nat nft_reject_inet' on the node ({line})"
        )
    return UserError(f"nftables refused the rules: {line}")


def _list_table() -> Table | None:
    """Our table with all in it; None where there is none."""
    answer = nft.list_table(FAMILY, TABLE)
    if answer.status and "No such file or directory" not in answer.said:
        raise failure(answer.said)
    return parse_nft_table(answer)


def _apply(script: str) -> None:
    answer = nft.run_text(script)
    if answer.status:
        raise failure(answer.said, with_cgroups="cgroupv2" in script)


class NftablesDataplane:
    """Redirects with a table of its own; see :class:`kiam.dataplane.Dataplane` for the methods' contract."""

    name = "nftables"
    traits = Traits(
        tells_pods_by="interface name",
        needs="`nft`",
        rights="NET_ADMIN",
        oldest_kernel=(5, 9),
        oldest_kernel_for_host_network=(5, 13),
        why_these_kernels="a reset from prerouting came with 5.9, `socket cgroupv2` with 5.13 (and nftables 0.9.9)",
        rank=2,
    )

    def install(self, wanted: WantedState) -> None:
        """Bring the table to the wanted state, in one transaction; nothing is written if it is there already."""
        check_addresses(wanted)
        host_pods = find_host_pods(wanted)
        chains = wanted_chains(wanted, host_pods)

        def install() -> None:
            table = _list_table() or NO_TABLE
            if differences(chains, table):
                _apply(install_script(chains, table))

        where_cgroups_are_found(wanted, install)
        EGRESS.install(wanted)

    def remove(self) -> None:
        """Delete the tables."""
        EGRESS.remove()
        if _list_table() is None:
            return
        # Adding first makes the deletion of a table that has gone meanwhile succeed.
        _apply(f"add table {FAMILY} {TABLE}\ndelete table {FAMILY} {TABLE}")

    def inspect(self, wanted: WantedState | None = None) -> Inspection:
        """Compare the table with the wanted state."""
        table = _list_table()
        if table is None:
            return Inspection(Condition.ABSENT)
        found, installed = _list_text(), read_back(table)
        rules = frozenset(
            OwnRule(table.tool, table.name, rule) for chain in table.chains.values() for rule in chain.rules
        )
        if wanted is None:
            return Inspection(Condition.INSTALLED, found, installed=installed, rules=rules)
        chains = wanted_chains(wanted, find_host_pods(wanted))
        problems = [*differences(chains, table), *EGRESS.problems(wanted)]
        condition = Condition.DIFFERENT if problems else Condition.INSTALLED
        return Inspection(condition, found, tuple(problems), installed, rules)

    def counters(self) -> Counters:
        """Read the named counters."""
        found = (_list_table() or NO_TABLE).counters
        drops = {reason: found.get(reason, Count()).packets for reason in DROP_REASONS}
        drops["host-network"] += EGRESS.dropped() if found else 0
        return Counters(found.get(REDIRECTS, Count()).packets, drops)


def _list_text() -> tuple[str, ...]:
    text = nft.list_table_text(FAMILY, TABLE)
    return tuple(line.strip() for line in text.splitlines() if line.strip() not in ("", "}"))
