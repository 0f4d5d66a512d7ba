"""The iptables dataplane: conventional kiam's documented rule, placed where it is reached, and drops for the rest.

What the rules are is in :mod:`kiam.dataplane.iptables.rules`; this module reads, decides and writes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice

from kiam.dataplane.addresses import check_addresses, is_local
from kiam.dataplane.cgroups import HostPods, find_host_pods, in_host_cgroup_namespace
from kiam.dataplane.contract import Condition, Counters, HostNetwork, Inspection, Traits, WantedState
from kiam.dataplane.egress import EgressGuard
from kiam.dataplane.iptables.backend import count_ours, detect_backend
from kiam.dataplane.iptables.readback import read_back
from kiam.dataplane.iptables.rules import (
    TABLES,
    TableRules,
    drops_counted,
    found_lines,
    install_script,
    made_by_us,
    own_chains,
    own_hooks,
    problems_of,
    redirects_counted,
    remove_script,
    table_rules,
)
from kiam.errors import UserError
from kiam.metadata import METADATA_IPV4, METADATA_IPV6
from kiam.netfilter.interfaces import IptablesBackend
from kiam.netfilter.iptables import (
    Programs,
    RulesChangedError,
    find_programs,
    has_ipv6,
    has_legacy_tables,
    require_programs,
    tool_name,
)
from kiam.netfilter.iptables_chains import delete_if_empty, missing
from kiam.netfilter.xtables import Ruleset, Table
from kiam.pauses import scattered

EGRESS = EgressGuard("kiam_iptables")
_BACKENDS = (IptablesBackend.NFT, IptablesBackend.LEGACY)


def _families() -> tuple[bool, ...]:
    """For each address family the kernel speaks whether it's IPv6; IPv4 last, whose redirect may be adopted."""
    return (True, False) if has_ipv6() else (False,)


_ATTEMPTS = 8


def _retry_when_rules_change(work: Callable[[], None]) -> None:
    # Every attempt reads the rules anew: another program may have written between the reading and the writing.
    for pause in islice(scattered(0.2, 0.2), _ATTEMPTS):
        try:
            work()
            return
        except RulesChangedError as error:
            last = error
        time.sleep(pause)
    raise UserError(f"another program keeps changing the iptables rules meanwhile: try again ({last})") from last


def _save(programs: Programs) -> Ruleset:
    # Even to look at a legacy table makes it, so none is looked at where none has been made.
    if programs.backend is IptablesBackend.LEGACY and not has_legacy_tables(programs.ipv6):
        return {}
    return programs.save()


def _all_programs() -> Iterator[Programs]:
    for backend in _BACKENDS:
        for ipv6 in reversed(_families()):
            if programs := find_programs(backend, ipv6):
                yield programs


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
        families = [require_programs(backend, ipv6) for ipv6 in _families()]

        def install() -> None:
            with _put_back_on_error(families):
                for programs in families:
                    self._install_family(programs, wanted, host_pods)

        if wanted.host_network is HostNetwork.IGNORE:
            install()
        else:
            in_host_cgroup_namespace(install)
        EGRESS.install(wanted)
        # Only now, so that pods are redirected by one or by both.
        for programs in _all_programs():
            if programs.backend is not backend:
                self._remove_family(programs)

    def remove(self) -> None:
        """Take out all that is ours, in both backends."""
        families = list(_all_programs())
        if not families:
            require_programs(IptablesBackend.NFT, False)
        EGRESS.remove()
        for programs in families:
            self._remove_family(programs)

    def inspect(self, wanted: WantedState | None = None) -> Inspection:
        """Compare both backends with the wanted state."""
        backend = None if wanted is None else self._backend(wanted)
        host_pods = HostPods() if wanted is None else find_host_pods(wanted)
        found: list[str] = []
        problems: list[str] = []
        tables_of: dict[tuple[IptablesBackend, bool], list[str]] = {}
        rulesets: dict[tuple[IptablesBackend, bool], Ruleset] = {}
        for programs in _all_programs():
            rulesets[programs.backend, programs.ipv6] = ruleset = _save(programs)
            ours = [t for t in TABLES if own_hooks(ruleset.get(t, {})) or own_chains(ruleset.get(t, {}))]
            tables_of[programs.backend, programs.ipv6] = ours
            found += [f"{programs.save_program.removesuffix('-save')} {line}" for line in found_lines(ruleset)]
            if wanted is None:
                continue
            if programs.backend is not backend:
                problems += [f"rules of ours in the other backend, {programs.backend}, table {table}" for table in ours]
                continue
            local = is_local(METADATA_IPV6 if programs.ipv6 else METADATA_IPV4)
            for table in TABLES:
                rules = table_rules(table, wanted, host_pods, programs.ipv6)
                problems += problems_of(table, ruleset.get(table, {}), rules, wanted.interface, local)
        if not any(tables_of.values()):
            return Inspection(Condition.ABSENT)
        problems += _halves(tables_of)
        problems += [] if wanted is None else EGRESS.problems(wanted)
        condition = Condition.DIFFERENT if problems else Condition.INSTALLED
        return Inspection(condition, tuple(found), tuple(problems), read_back(rulesets))

    def counters(self) -> Counters:
        """Read the rules' packet counters, of both backends and both address families."""
        redirects = 0
        drops: dict[str, int] = {}
        for programs in _all_programs():
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

    def _install_family(self, programs: Programs, wanted: WantedState, host_pods: HostPods) -> None:
        local = is_local(METADATA_IPV6 if programs.ipv6 else METADATA_IPV4)

        def install() -> None:
            ruleset = _save(programs)
            for name in TABLES:
                table = ruleset.get(name, {})
                rules = table_rules(name, wanted, host_pods, programs.ipv6)
                if any(problems_of(name, table, rules, wanted.interface, local)):
                    made = {*made_by_us(table), *_missing_chains(programs, name, rules.hooks_in)}
                    programs.restore(install_script(name, table, rules, sorted(made)))

        _retry_when_rules_change(install)

    def _remove_family(self, programs: Programs) -> None:
        def remove() -> None:
            ruleset = _save(programs)
            # The redirect goes first, so that pods meet the drops, not the real service, until both are gone.
            for name in reversed(TABLES):
                _remove_table(programs, name, ruleset.get(name, {}))

        _retry_when_rules_change(remove)


def _remove_table(programs: Programs, name: str, table: Table) -> None:
    script = remove_script(name, table)
    if script is None:
        return
    made = made_by_us(table)
    programs.restore(script)
    if made and programs.backend is IptablesBackend.NFT:
        delete_if_empty(name, made, programs.ipv6)


@contextmanager
def _put_back_on_error(families: Sequence[Programs]) -> Iterator[None]:
    before = [(programs, _save(programs)) for programs in families]
    try:
        yield
    except BaseException as error:
        others: list[str] = []
        for programs, ruleset in reversed(before):
            try:
                _put_back(programs, ruleset)
            except (UserError, OSError) as another:
                others.append(str(another))
        if others:
            raise UserError(
                f"{error}; what had been written could not be taken back ({'; '.join(others)})",
                "run 'kiam dataplane remove'",
            ) from error
        raise


def _put_back(programs: Programs, before: Ruleset) -> None:
    def put_back() -> None:
        now = _save(programs)
        for name in reversed(TABLES):
            table, rules = now.get(name, {}), _ours(before.get(name, {}))
            if not rules.chains and not rules.hooks:
                _remove_table(programs, name, table)
            elif _ours(table) != rules:
                programs.restore(install_script(name, table, rules, ()))

    _retry_when_rules_change(put_back)


def _ours(table: Table) -> TableRules:
    return TableRules({chain: tuple(rules) for chain, rules in own_chains(table).items()}, tuple(own_hooks(table)))


def _halves(tables_of: Mapping[tuple[IptablesBackend, bool], Sequence[str]]) -> Iterator[str]:
    """Which part of a backend is missing where another is there: an install that was cut off, or somebody's flush."""
    for backend in {backend for (backend, _), tables in tables_of.items() if tables}:
        for ipv6 in _families():
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


def _missing_chains(programs: Programs, table: str, chains: frozenset[str]) -> frozenset[str]:
    """What iptables-nft is about to make of a table: ``table`` and built-in chains."""
    if programs.backend is not IptablesBackend.NFT:
        return frozenset()
    return missing(table, chains, programs.ipv6)
