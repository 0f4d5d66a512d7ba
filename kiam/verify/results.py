"""What a check found: one line of the table."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass


class Status(enum.StrEnum):
    """How a check ended."""

    PASS = "PASS"  # noqa: S105 - a verdict, not a password
    FAIL = "FAIL"
    WARN = "WARN"
    SKIP = "SKIP"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One line: which check, how it ended, what was seen, and the command that mends it (all but PASS have one)."""

    check: str
    status: Status
    seen: str
    mend: str = ""

    def __post_init__(self) -> None:
        if self.status is not Status.PASS and not self.mend:
            raise ValueError(f"{self.check}: {self.status} without a command that mends it")


def passed(check: str, seen: str) -> CheckResult:
    """The check found nothing wrong."""
    return CheckResult(check, Status.PASS, seen)


def failed(check: str, seen: str, mend: str) -> CheckResult:
    """A pod of this node would not get its role, or could get the node's."""
    return CheckResult(check, Status.FAIL, seen, mend)


def warned(check: str, seen: str, mend: str) -> CheckResult:
    """Something a person should look at; pods get their role all the same."""
    return CheckResult(check, Status.WARN, seen, mend)


def skipped(check: str, reason: str, mend: str) -> CheckResult:
    """The check could not be made here; ``mend`` is what makes it possible."""
    return CheckResult(check, Status.SKIP, reason, mend)


def any_failed(results: Iterable[CheckResult]) -> bool:
    """Whether the command has to exit with 1."""
    return any(result.status is Status.FAIL for result in results)
