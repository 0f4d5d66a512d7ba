"""What the dataplanes themselves say is installed, and which of them is the one to verify."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kiam.dataplane.contract import Condition, Inspection, WantedState
from kiam.dataplane.registry import DATAPLANES, load_dataplane
from kiam.errors import UserError
from kiam.verify.fixes import BY_HAND, Mends
from kiam.verify.results import CheckResult, failed, passed, warned

CHECK = "installed state"
OTHERS = "other dataplanes"
AUTO = "auto"
"""Verify the dataplane that is found, or the rule made by hand where none is."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What one dataplane answered."""

    inspection: Inspection | None = None
    error: str = ""
    """Why it couldn't be asked: libraries, capabilities, kernel."""


def ask_all(wanted: WantedState) -> dict[str, Asked]:
    """Inspect with every dataplane there is."""
    return {name: _ask(name, wanted) for name in DATAPLANES}


def _ask(name: str, wanted: WantedState) -> Asked:
    try:
        return Asked(load_dataplane(name).inspect(wanted))
    except UserError as error:
        return Asked(error=str(error))
    except ImportError as error:
        return Asked(error=f"{error}")


def choose(requested: str, asked: Mapping[str, Asked]) -> str:
    """The dataplane to verify: the requested one; with ``auto`` the one installed, or BY_HAND."""
    if requested != AUTO:
        return requested
    for condition in (Condition.INSTALLED, Condition.DIFFERENT):
        for name, answer in asked.items():
            if answer.inspection and answer.inspection.condition is condition:
                return name
    return BY_HAND


def check_installed(chosen: str, asked: Mapping[str, Asked], mends: Mends) -> list[CheckResult]:
    """The chosen dataplane's own inspection, and what of the others is there too."""
    results = [] if chosen == BY_HAND else [_check_chosen(chosen, asked[chosen], mends)]
    others = [
        name
        for name, answer in asked.items()
        if name != chosen and answer.inspection and answer.inspection.condition is not Condition.ABSENT
    ]
    for name in others:
        seen = f"{name} is installed too: {_some(asked[name].inspection)}"
        results.append(warned(OTHERS, seen, mends.remove(name)))
    return results


def _check_chosen(name: str, answer: Asked, mends: Mends) -> CheckResult:
    if answer.inspection is None:
        return failed(CHECK, f"{name}: {answer.error}", mends.install())
    inspection = answer.inspection
    if inspection.condition is Condition.INSTALLED:
        return passed(CHECK, f"{name} is installed as wanted")
    if inspection.condition is Condition.ABSENT:
        return failed(CHECK, f"{name} is not installed", mends.install())
    return failed(CHECK, f"{name} differs from what is wanted: {_joined(inspection.problems)}", mends.install())


def _joined(lines: Sequence[str]) -> str:
    return "; ".join(lines[:3]) + (f"; and {len(lines) - 3} more" if len(lines) > 3 else "")


def _some(inspection: Inspection | None) -> str:
    found = list(inspection.found) if inspection else []
    return found[0] if found else "nothing it can show"
