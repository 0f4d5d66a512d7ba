"""What the dataplanes themselves say is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kiam.dataplane.cgroups import GONE
from kiam.dataplane.contract import Condition, Inspection
from kiam.verify.checks.services import restart_agent
from kiam.verify.fixes import BY_HAND, Fixes, verify_again
from kiam.verify.results import CheckResult, failed, passed, warned
from kiam.verify.subject import Asked, Subject

CHECK = "installed state"
OTHERS = "other dataplanes"


def check_installed(subject: Subject, now: Asked, asked: Mapping[str, Asked], fixes: Fixes) -> list[CheckResult]:
    """The chosen dataplane's own inspection, and what of the others is there too.

    ``now``: what it says compared with the state that is verified. ``asked``: what all say of themselves.
    """
    if subject.dataplane == BY_HAND:
        return []
    kept_is_right = now.inspection is not None and now.inspection.condition is Condition.INSTALLED
    others = [
        warned(
            OTHERS, f"{name} is installed too: {_some(answer.inspection)}", fixes.remove_dataplane(name, kept_is_right)
        )
        for name, answer in asked.items()
        if name != subject.dataplane and answer.present
    ]
    return [_check_chosen(subject, now, fixes), *others]


def _check_chosen(subject: Subject, now: Asked, fixes: Fixes) -> CheckResult:
    name = subject.dataplane
    if subject.stale:
        return failed(CHECK, f"{subject.difference}, where an agent answers", fixes.install())
    if subject.difference:
        return failed(CHECK, subject.difference, verify_again("verifies what is installed"))
    if subject.wanted.agent_cgroup == GONE:
        seen = f"{name} leaves a pod of the agent's alone that is no more; the agent's own installs it anew"
        return failed(CHECK, seen, restart_agent())
    if now.inspection is None:
        return failed(CHECK, f"{name}: {now.error}", fixes.install())
    if now.inspection.condition is Condition.INSTALLED:
        return passed(CHECK, f"{name} is installed as wanted")
    if now.inspection.condition is Condition.ABSENT:
        return failed(CHECK, f"{name} is not installed", fixes.install())
    return failed(CHECK, f"{name} differs from what is wanted: {_joined(now.inspection.problems)}", fixes.install())


def _joined(lines: Sequence[str]) -> str:
    return "; ".join(lines[:3]) + (f"; and {len(lines) - 3} more" if len(lines) > 3 else "")


def _some(inspection: Inspection | None) -> str:
    found = list(inspection.found) if inspection else []
    return found[0] if found else "nothing it can show"
