"""The iptables dataplane: conventional kiam's documented rule, placed where it is reached, and drops for the rest.

What the rules are is in :mod:`kiam.dataplane.iptables.rules`; what is read and
written is in :mod:`kiam.dataplane.iptables.family`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from kiam.dataplane.addresses import check_addresses, is_local
from kiam.dataplane.cgroup_namespace import where_cgroups_are_found
from kiam.dataplane.cgroups import HostPods, find_host_pods
from kiam.dataplane.contract import Condition, Counters, Inspection, OwnRule, Traits, WantedState
from kiam.dataplane.egress import EgressGuard
from kiam.dataplane.iptables.backend import count_ours, detect_backend
from kiam.dataplane.iptables.family import (
    all_programs,
    families,
    install_family,
    put_back_on_error,
    remove_family,
    save,
)
from kiam.dataplane.iptables.ours import drops_counted, own_chains, own_hooks, own_rules, redirects_counted
from kiam.dataplane.iptables.readback import read_back
from kiam.dataplane.iptables.rules import TABLES, table_rules
from kiam.dataplane.iptables.script import problems_of
from kiam.metadata import METADATA_IPV4, METADATA_IPV6
from kiam.netfilter.interfaces import IptablesBackend
from kiam.netfilter.iptables import has_legacy_tables, require_programs, tool_name
from kiam.netfilter.model import NO_TABLE, Ruleset

EGRESS = EgressGuard("kiam_iptables")


class IptablesDataplane:
    """Redirects with a rule in nat PREROUTING; see :class:`kiam.dataplane.Dataplane` for the methods' contract."""

    name = "iptables"
    traits = Traits(
        tells_pods_by="interface name",
        needs="`iptables`, `ip6tables`; for pods on the host network `nft` as well",
        rights="NET_ADMIN, NET_RAW",
        oldest_kernel=(3, 10),
        oldest_kernel_for_host_network=(4, 15),
        why_these_kernels="any with the nat, mangle and conntrack modules; kubelet's cgroup2 came with 4.15",
        documented_rule=True,
        rank=1,
    )

    def install(self, wanted: WantedState) -> None:
        """Bring the rules to the wanted state, in the chosen backend, and take ours out of the other one.

        All of it or nothing: on an error both address families are put back to what they were.
        """
        check_addresses(wanted)
        backend = self._backend(wanted)
        host_pods = find_host_pods(wanted)
        installed = [require_programs(backend, ipv6) for ipv6 in families()]

        def install() -> None:
            with put_back_on_error(installed):
                for programs in installed:
                    install_family(programs, wanted, host_pods)

        where_cgroups_are_found(wanted, install)
        EGRESS.install(wanted)
        # Only now, so that pods are redirected by one or by both.
        for programs in all_programs():
            if programs.backend is not backend:
                remove_family(programs)

    def remove(self) -> None:
        """Take out all that is ours, in both backends."""
        installed = list(all_programs())
        if not installed:
            require_programs(IptablesBackend.NFT, False)
        EGRESS.remove()
        for programs in installed:
            remove_family(programs)

    def inspect(self, wanted: WantedState | None = None) -> Inspection:
        """Compare both backends with the wanted state."""
        backend = None if wanted is None else self._backend(wanted)
        host_pods = HostPods() if wanted is None else find_host_pods(wanted)
        rules: list[OwnRule] = []
        problems: list[str] = []
        tables_of: dict[tuple[IptablesBackend, bool], list[str]] = {}
        rulesets: dict[tuple[IptablesBackend, bool], Ruleset] = {}
        for programs in all_programs():
            rulesets[programs.backend, programs.ipv6] = ruleset = save(programs)
            ours = [t for t in TABLES if own_hooks(ruleset.get(t, NO_TABLE)) or own_chains(ruleset.get(t, NO_TABLE))]
            tables_of[programs.backend, programs.ipv6] = ours
            rules += [OwnRule(programs.tool, name, rule) for name, rule in own_rules(ruleset)]
            if wanted is None:
                continue
            if programs.backend is not backend:
                problems += [f"rules of ours in the other backend, {programs.backend}, table {table}" for table in ours]
                continue
            local = is_local(METADATA_IPV6 if programs.ipv6 else METADATA_IPV4)
            for table in TABLES:
                due = table_rules(table, wanted, host_pods, programs.ipv6)
                problems += problems_of(table, ruleset.get(table, NO_TABLE), due, wanted.interface, local)
        if not any(tables_of.values()):
            return Inspection(Condition.ABSENT)
        problems += _halves(tables_of)
        problems += [] if wanted is None else EGRESS.problems(wanted)
        condition = Condition.DIFFERENT if problems else Condition.INSTALLED
        found = tuple(f"{tool} -t {table} {rule.text}" for tool, table, rule in rules)
        return Inspection(condition, found, tuple(problems), read_back(rulesets), frozenset(rules))

    def counters(self) -> Counters:
        """Read the rules' packet counters, of both backends and both address families."""
        redirects = 0
        drops: dict[str, int] = {}
        for programs in all_programs():
            if programs.backend is IptablesBackend.LEGACY and not has_legacy_tables(programs.ipv6):
                continue
            ruleset = count_ours(programs)
            redirects += redirects_counted(ruleset)
            for reason, count in drops_counted(ruleset).items():
                drops[reason] = drops.get(reason, 0) + count
        if "host-network" in drops:
            drops["host-network"] += EGRESS.dropped()
        return Counters(redirects, drops)

    def _backend(self, wanted: WantedState) -> IptablesBackend:
        if wanted.iptables_backend is IptablesBackend.AUTO:
            return detect_backend()
        require_programs(wanted.iptables_backend, False)
        return wanted.iptables_backend


def _halves(tables_of: Mapping[tuple[IptablesBackend, bool], Sequence[str]]) -> Iterator[str]:
    """Which part of a backend is missing where another is there: an install that was cut off, or somebody's flush."""
    for backend in {backend for (backend, _), tables in tables_of.items() if tables}:
        for ipv6 in families():
            program = tool_name(backend, ipv6)
            tables = tables_of.get((backend, ipv6))
            if tables is None:
                yield f"{program} isn't installed, so that half can't be looked at, nor be in"
            else:
                yield from (
                    f"nothing of ours in {program} {table}: half of it is missing"
                    for table in TABLES
                    if table not in tables
                )
