"""What a running process keeps of the certificates it uses. Free of any library that parses them."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from kiam.errors import ErrorKind, UserError
from kiam.tls import TLSFiles, TLSMaterial


class Side(enum.StrEnum):
    """Which end of the connection a certificate is for; the word conventional kiam's metrics use."""

    CLIENT = "client"
    SERVER = "server"


class Severity(enum.StrEnum):
    """Whether TLS can work at all with a problem."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with one of the files."""

    flag: str
    severity: Severity
    what: str
    """The path, what is wrong, and until when."""
    fix: str
    """What to do."""

    @property
    def message(self) -> str:
        """Both in one line."""
        return f"{self.what}; {self.fix}"

    def __str__(self) -> str:
        return f"--{self.flag}: {self.message}"

    def as_error(self) -> UserError:
        """To be raised."""
        return UserError(f"--{self.flag}: {self.what}", self.fix, ErrorKind.CERTIFICATE)


@dataclass(frozen=True, slots=True)
class TLSSummary:
    """What was found in three files that can work."""

    subject: str
    names: str
    """The subject alternative names, for people."""
    not_before: datetime
    not_after: datetime
    expiry: datetime
    """When the first certificate of the chain up to the authority expires; our own one's, if it has no chain."""
    warn_after: datetime
    """From when on one of the chain should have been renewed."""
    problems: tuple[Problem, ...]

    @property
    def lifetime(self) -> str:
        """From when until when our own certificate is valid, for people."""
        return f"valid from {format_time(self.not_before)} until {format_time(self.not_after)}"

    @property
    def verified(self) -> bool:
        """Whether our own certificate is good in the eyes of a peer that has the same ``--ca``."""
        return not self.problems

    def expires_soon(self, now: datetime) -> bool:
        """Whether whoever renews it should have done so by now."""
        return now > self.warn_after


Loader = Callable[[TLSFiles, Side, datetime], tuple[TLSMaterial, TLSSummary]]
"""Reads and inspects files. Raises UserError, in one line, for anything no handshake can succeed with."""


def format_time(moment: datetime) -> str:
    """Write a time as certificates tools do, to the second and in UTC."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
