"""One address family of one backend: read its rules, write what has to be there, take it out, put it back.

Every attempt is made on rules just read; what another program changed meanwhile makes the write fail, never go wrong.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

from kiam.dataplane.addresses import is_local
from kiam.dataplane.cgroups import HostPods
from kiam.dataplane.contract import WantedState
from kiam.dataplane.iptables.ours import made_by_us, own_chains, own_hooks
from kiam.dataplane.iptables.rules import TABLES, TableRules, table_rules
from kiam.dataplane.iptables.script import install_script, problems_of, remove_script
from kiam.errors import UserError
from kiam.metadata import METADATA_IPV4, METADATA_IPV6
from kiam.netfilter.interfaces import IptablesBackend
from kiam.netfilter.iptables import Programs, RulesChangedError, find_programs, has_ipv6, has_legacy_tables
from kiam.netfilter.iptables_chains import delete_if_empty, missing
from kiam.netfilter.model import NO_TABLE, Ruleset, Table
from kiam.pauses import scattered

ATTEMPTS = 8
BACKENDS = (IptablesBackend.NFT, IptablesBackend.LEGACY)


def families() -> tuple[bool, ...]:
    """For each address family the kernel speaks whether it's IPv6; IPv4 last, whose redirect may be adopted."""
    return (True, False) if has_ipv6() else (False,)


def _retry_when_rules_change(work: Callable[[], None]) -> None:
    # Every attempt reads the rules anew: another program may have written between the reading and the writing.
    for pause in islice(scattered(0.2, 0.2), ATTEMPTS):
        try:
            work()
            return
        except RulesChangedError as error:
            last = error
        time.sleep(pause)
    raise UserError(f"another program keeps changing the iptables rules meanwhile: try again ({last})") from last


def save(programs: Programs) -> Ruleset:
    """All tables that are there."""
    # Even to look at a legacy table makes it, so none is looked at where none has been made.
    if programs.backend is IptablesBackend.LEGACY and not has_legacy_tables(programs.ipv6):
        return {}
    return programs.save()


def all_programs() -> Iterator[Programs]:
    """Those of every backend and address family that are installed."""
    for backend in BACKENDS:
        for ipv6 in reversed(families()):
            if programs := find_programs(backend, ipv6):
                yield programs


def install_family(programs: Programs, wanted: WantedState, host_pods: HostPods) -> None:
    """Bring that family's tables to the wanted state; nothing is written if they are there already."""
    local = is_local(METADATA_IPV6 if programs.ipv6 else METADATA_IPV4)

    def install() -> None:
        ruleset = save(programs)
        for name in TABLES:
            table = ruleset.get(name, NO_TABLE)
            rules = table_rules(name, wanted, host_pods, programs.ipv6)
            if any(problems_of(name, table, rules, wanted.interface, local)):
                made = {*made_by_us(table), *_missing_chains(programs, name, rules.hooks_in)}
                programs.restore(install_script(name, table, rules, sorted(made)))

    _retry_when_rules_change(install)


def remove_family(programs: Programs) -> None:
    """Take out all that is ours."""

    def remove() -> None:
        ruleset = save(programs)
        # The redirect goes first, so that pods meet the drops, not the real service, until both are gone.
        for name in reversed(TABLES):
            _remove_table(programs, name, ruleset.get(name, NO_TABLE))

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
def put_back_on_error(families: Sequence[Programs]) -> Iterator[None]:
    """All families or none: on an error each is brought back to what it was. Raises what went wrong, as it was."""
    before = [(programs, save(programs)) for programs in families]
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
        now = save(programs)
        for name in reversed(TABLES):
            table, rules = now.get(name, NO_TABLE), _ours(before.get(name, NO_TABLE))
            if not rules.chains and not rules.hooks:
                _remove_table(programs, name, table)
            elif _ours(table) != rules:
                programs.restore(install_script(name, table, rules, ()))

    _retry_when_rules_change(put_back)


def _ours(table: Table) -> TableRules:
    return TableRules({chain: tuple(rules) for chain, rules in own_chains(table).items()}, tuple(own_hooks(table)))


def _missing_chains(programs: Programs, table: str, chains: frozenset[str]) -> frozenset[str]:
    """What iptables-nft is about to make of a table: ``table`` and built-in chains."""
    if programs.backend is not IptablesBackend.NFT:
        return frozenset()
    return missing(table, chains, programs.ipv6)
