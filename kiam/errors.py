"""Errors that are the user's to fix."""

from __future__ import annotations

import enum
from collections.abc import Sequence


class ErrorKind(enum.StrEnum):
    """What programs tell errors by; the words of an error are for people alone and may change."""

    OTHER = "other"
    UNREACHABLE = "unreachable"
    """Nobody answers there: no connection came about."""
    CERTIFICATE = "certificate"
    """A certificate is wrong, or one side refuses the other's."""
    RIGHTS = "rights"
    """The process lacks root or a capability."""
    BUSY = "busy"
    """Another program is in the way; trying again later may help."""


class UserError(Exception):
    """One clear line that says what is wrong and what to do; the command prints it and exits with 1.

    Anything else that escapes a command is a bug and keeps its traceback.
    """

    def __init__(self, what: str, fix: str = "", kind: ErrorKind = ErrorKind.OTHER) -> None:
        """``what`` is wrong, and how to ``fix`` it; both make up the line."""
        super().__init__(f"{what}; {fix}" if fix else what)
        self.what = what
        self.fix = fix
        self.kind = kind


def joined(errors: Sequence[UserError]) -> UserError:
    """Several as one line; of one kind if all are of that kind. Raises ValueError for none."""
    if not errors:
        raise ValueError("no errors to join")
    *first, last = errors
    kinds = {error.kind for error in errors}
    what = "; ".join([*map(str, first), last.what])
    return UserError(what, last.fix, kinds.pop() if len(kinds) == 1 else ErrorKind.OTHER)
