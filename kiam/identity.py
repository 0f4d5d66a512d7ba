"""What STS is asked for on a pod's behalf."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

SESSION_NAME_LENGTH = 64
"""RoleSessionName's limit (AWS STS API reference, AssumeRole)."""
_NOT_ALLOWED = re.compile(r"[^A-Za-z0-9_+=,.@-]")


@dataclass(frozen=True, slots=True)
class Identity:
    """The key that credentials are shared under: pods with the same three fields have the same credentials."""

    role_arn: str
    session_name: str
    external_id: str


@lru_cache(maxsize=4096)
def session_name(name: str) -> str:
    """The STS session name: ``kiam-`` and the name, what STS doesn't take replaced by ``-``, 64 characters at most."""
    return _NOT_ALLOWED.sub("-", f"kiam-{name}")[:SESSION_NAME_LENGTH]
