"""What running a printed fix has to come to: what it named is gone, and nothing is worse."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from kiam.verify.fix import Fix, FixKind
from kiam.verify.results import CheckResult, Status
from tests.integration.verify.site import Found, Site

RANK = {Status.PASS: 0, Status.SKIP: 0, Status.WARN: 1, Status.FAIL: 2}


def worse(before: Iterable[CheckResult], after: Iterable[CheckResult]) -> list[CheckResult]:
    """The lines after that are worse than the worst of the same check before."""
    ranks: dict[str, int] = {}
    for line in before:
        ranks[line.check] = max(RANK[line.status], ranks.get(line.check, 0))
    return [line for line in after if RANK[line.status] > ranks.get(line.check, 0)]


def run_fix(
    site: Site,
    before: Found,
    line: CheckResult,
    again: Callable[[], Found],
    programs: Path | None = None,
) -> Found:
    """Run a line's fix as it is printed, verify again, and hold the two against each other."""
    assert line.fix is not None
    assert line.fix.kind is not FixKind.ADVICE
    site.shell(line.command, programs)
    after = again()
    assert worse(before.lines, after.lines) == []
    if line.fix.kind.changes:
        named = [one for one in after.of(line.check) if one.status is not Status.PASS]
        assert line.seen not in [one.seen for one in named]
    else:
        shown = [(one.check, one.status) for one in before.lines]
        assert [(one.check, one.status) for one in after.lines] == shown
    return after


def the_fix(found: Found, kind: FixKind, check: str = "") -> tuple[CheckResult, Fix]:
    """The first line with a fix of that kind, of that check if one is named."""
    for line in found.lines:
        if line.fix is not None and line.fix.kind is kind and check in ("", line.check):
            return line, line.fix
    raise AssertionError(f"no {kind} in {[(one.check, one.status, one.fix_text) for one in found.lines]}")
