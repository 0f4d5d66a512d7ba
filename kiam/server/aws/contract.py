"""What the server asks of STS, and what comes of it; boto3 stays out of whoever needs no more than these words."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from kiam.errors import ErrorKind
from kiam.identity import Identity

THROTTLING = frozenset({"Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequestsException"})
"""Codes of AWS's common errors that mean "ask less"."""


class STSError(Exception):
    """AWS refused (AccessDenied, Throttling, ...) or could not be reached; the text is for pods and Events."""

    def __init__(self, code: str, message: str, kind: ErrorKind = ErrorKind.OTHER) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Issued:
    """Credentials of a role, as STS gave them."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    token: str = field(repr=False)
    expires: datetime
    issued: datetime


class STS(Protocol):
    """What the credentials manager asks."""

    def assume_role(self, identity: Identity) -> Issued:
        """Credentials of the identity's role; blocks. Raises STSError."""
