"""The redirect in the kernel's rules against the wanted one: missing, twice, nearly right, or in the other backend."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from kiam.dataplane.contract import OwnRule, WantedState
from kiam.netfilter.model import Table
from kiam.netfilter.packets import Packet
from kiam.verify.checks.redirects import Redirect, is_ours, redirects, works
from kiam.verify.fix import Fix, FixKind, both
from kiam.verify.fixes import Fixes, delete_rule
from kiam.verify.results import CheckResult, failed, passed, warned


def check_redirect(
    tables: Sequence[Table],
    packets: Sequence[Packet],
    wanted: WantedState,
    fixes: Fixes,
    ours: Collection[OwnRule] = (),
) -> list[CheckResult]:
    """The redirect itself, what is nearly it, and the backend it is in.

    ``ours``: rules the dataplanes know as theirs. A rule of ours that isn't right is the installed
    state's to tell, never a near miss to be deleted by hand: the dataplane would miss it.
    """
    found = list(redirects(tables, wanted))
    good = [redirect for redirect in found if works(redirect, tables, packets, wanted)]
    bad = [redirect for redirect in found if redirect not in good and not is_ours(redirect, ours)]
    wider = [one for one in good if one.chain.hook and one.differences and not is_ours(one, ours)]
    results = [_presence(good, bad, fixes)]
    results.extend(_near_miss(good, alike, fixes) for alike in _grouped(bad))
    results.extend(_wider(alike, fixes) for alike in _grouped(wider))
    backend = _backend([one for one in good if not is_ours(one, ours)], fixes)
    return [*results, backend] if backend else results


def _grouped(found: Sequence[Redirect]) -> list[list[Redirect]]:
    """Those that read alike together: a person sees one finding, and one fix takes all of them out."""
    groups: dict[str, list[Redirect]] = {}
    for redirect in found:
        groups.setdefault(str(redirect), []).append(redirect)
    return list(groups.values())


def _times(alike: Sequence[Redirect]) -> str:
    return f"{alike[0]}" + (f" ({len(alike)} times)" if len(alike) > 1 else "")


def _deletions(alike: Sequence[Redirect]) -> list[str]:
    return [delete_rule(redirect.table, redirect.rule) for redirect in alike]


def _presence(good: Sequence[Redirect], bad: Sequence[Redirect], fixes: Fixes) -> CheckResult:
    target = f"{fixes.target.host_address}:{fixes.target.port}"
    if not good:
        nearly = f"; {len(bad)} near miss{'es' if len(bad) > 1 else ''}, see below" if bad else ""
        seen = f"no rule sends metadata traffic of pods to {target}{nearly}"
        return failed("redirect rule", seen, fixes.install())
    if len(good) > 1:
        places = ", ".join(f"{redirect.table.tool} {redirect.rule.chain}" for redirect in good)
        return passed("redirect rule", f"{len(good)} rules alike ({places}), which is harmless")
    return passed("redirect rule", str(good[0]))


def _near_miss(good: Sequence[Redirect], alike: Sequence[Redirect], fixes: Fixes) -> CheckResult:
    seen = f"{_times(alike)}: {'; '.join(alike[0].differences) or 'not reached by packets of pods'}"
    if good:
        return warned("near miss", seen, Fix(FixKind.DELETE_RULE, both(*_deletions(alike))))
    return failed("near miss", seen, fixes.replace_rule(*_deletions(alike)))


def _wider(alike: Sequence[Redirect], fixes: Fixes) -> CheckResult:
    seen = f"{_times(alike)}: works for pods, but {'; '.join(alike[0].differences)}"
    return warned("near miss", seen, fixes.replace_rule(*_deletions(alike)))


def _backend(good: Sequence[Redirect], fixes: Fixes) -> CheckResult | None:
    in_iptables = [redirect for redirect in good if redirect.table.tool.startswith("iptables")]
    if not in_iptables:
        return None
    others = [redirect for redirect in in_iptables if redirect.table.tool != fixes.iptables]
    if not others:
        return passed("iptables backend", f"{fixes.iptables}, the one the rules of this node are in")
    seen = f"a rule is in {others[0].table.tool}, which '{fixes.iptables} -S' doesn't show: {others[0].rule.text}"
    return warned("iptables backend", seen, fixes.move_rule(len(others) == len(in_iptables), *_deletions(others)))
