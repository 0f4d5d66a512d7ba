"""What STS is asked for on a pod's behalf."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from kiam.rpc import kiam_pb2

SESSION_NAME_LENGTH, LONGEST_EXTERNAL_ID = 64, 1224
"""Characters of RoleSessionName and ExternalId (AWS STS API reference, AssumeRole)."""
_EXTERNAL_ID = re.compile(r"[\w+=,.@:/-]{2,}", re.ASCII)
_NOT_ALLOWED = re.compile(r"[^A-Za-z0-9_+=,.@-]")


@dataclass(frozen=True, slots=True)
class Identity:
    """The key that credentials are shared under: pods with the same three fields have the same credentials."""

    role_arn: str
    session_name: str
    external_id: str

    @classmethod
    def of(cls, message: kiam_pb2.Identity) -> Identity:
        """From the wire."""
        return cls(message.role_arn, message.session_name, message.external_id)

    def message(self) -> kiam_pb2.Identity:
        """To the wire."""
        return kiam_pb2.Identity(role_arn=self.role_arn, session_name=self.session_name, external_id=self.external_id)


@lru_cache(maxsize=4096)
def session_name(name: str) -> str:
    """The STS session name: ``kiam-`` and the name, what STS doesn't take replaced by ``-``, 64 characters at most."""
    return _NOT_ALLOWED.sub("-", f"kiam-{name}")[:SESSION_NAME_LENGTH]


def external_id_problem(external_id: str) -> str:
    """Why STS takes no such external id; empty: it takes it, or there is none."""
    if not external_id:
        return ""
    if len(external_id) > LONGEST_EXTERNAL_ID:
        return f"has more than {LONGEST_EXTERNAL_ID} characters"
    if not _EXTERNAL_ID.fullmatch(external_id):
        return "has a character that none has: it is two or more letters, digits and _+=,.@:/- only"
    return ""
