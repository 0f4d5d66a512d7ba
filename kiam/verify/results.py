"""What a check found: one line of the table."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from kiam.verify.fix import Fix, advice


class Status(enum.StrEnum):
    """How a check ended."""

    PASS = "PASS"  # noqa: S105 - a verdict, not a password
    FAIL = "FAIL"
    WARN = "WARN"
    SKIP = "SKIP"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One line: which check, how it ended, what was seen, and what fixes it (all but PASS have a fix)."""

    check: str
    status: Status
    seen: str
    fix: Fix | None = None

    def __post_init__(self) -> None:
        if self.status is not Status.PASS and self.fix is None:
            raise ValueError(f"{self.check}: {self.status} without a fix")

    @property
    def command(self) -> str:
        """The fix's command; empty without one."""
        return self.fix.command if self.fix is not None else ""

    @property
    def fix_text(self) -> str:
        """The fix's command, or its words; empty without one."""
        return self.fix.text if self.fix is not None else ""


def passed(check: str, seen: str) -> CheckResult:
    """The check found nothing wrong."""
    return CheckResult(check, Status.PASS, seen)


def failed(check: str, seen: str, fix: Fix | str) -> CheckResult:
    """A pod of this node would not get its role, or could get the node's. Words for a fix are advice."""
    return CheckResult(check, Status.FAIL, seen, _as_fix(fix))


def warned(check: str, seen: str, fix: Fix | str) -> CheckResult:
    """Something a person should look at; pods get their role all the same."""
    return CheckResult(check, Status.WARN, seen, _as_fix(fix))


def skipped(check: str, reason: str, fix: Fix | str) -> CheckResult:
    """The check could not be made here; the fix makes it possible."""
    return CheckResult(check, Status.SKIP, reason, _as_fix(fix))


def any_failed(results: Iterable[CheckResult]) -> bool:
    """Whether the command has to exit with 1."""
    return any(result.status is Status.FAIL for result in results)


def _as_fix(fix: Fix | str) -> Fix:
    return advice(fix) if isinstance(fix, str) else fix
