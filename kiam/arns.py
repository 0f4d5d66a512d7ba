"""Role names, paths and ARNs, which of them are the same role, and which can't be any."""

from __future__ import annotations

import re
from functools import lru_cache

LONGEST_ARN, LONGEST_PATH, LONGEST_NAME = 2048, 512, 64
"""Characters (IAM user guide, "IAM and STS quotas"; STS API reference, AssumeRole, RoleArn)."""
_ARN = re.compile(r"arn:[a-z][a-z-]*:iam::\d+:role/(.*)", re.ASCII | re.DOTALL)
_NAME = re.compile(r"[\w+=,.@-]+", re.ASCII)
_PATH_SEGMENT = re.compile(r"[!-.0-~]+")
_DOTS = (".", "..")
_SHOWN = 256


def resolve_role_arn(role: str, base_arn: str) -> str:
    """The full ARN of a role as a pod's annotation or request names it.

    A role that starts with ``arn:`` is taken whole; otherwise one leading slash is dropped and the base ARN put
    before it, so ``team/app``, ``/team/app`` and ``arn:aws:iam::1:role/team/app`` are one role.
    """
    if role.startswith("arn:"):
        return role
    return base_arn + role.removeprefix("/")


@lru_cache(maxsize=4096)
def role_problem(arn: str) -> str:
    """Why a full ARN can't be an IAM role's (IAM API reference, CreateRole); empty: it can.

    The attack stopped: ``x/../../admin`` or an escape code gets past a policy expression that looks at the beginning
    only, and whoever normalises it later, a log or a tool, sees another role than the one that was checked.
    """
    match = _ARN.fullmatch(arn)
    if match is None:
        return "it is no ARN of a role, as in arn:aws:iam::123456789012:role/app"
    *segments, name = match.group(1).split("/")
    if not _NAME.fullmatch(name) or name in _DOTS:
        return "a role's name is letters, digits and _+=,.@- only"
    if not all(_PATH_SEGMENT.fullmatch(segment) and segment not in _DOTS for segment in segments):
        return "its path has an empty part, a part of dots, or a character that no path has"
    if len(name) > LONGEST_NAME:
        return f"its name has {len(name)} characters, and a role's has {LONGEST_NAME} at most"
    if sum(map(len, segments)) + len(segments) + 1 > LONGEST_PATH or len(arn) > LONGEST_ARN:
        return f"its path has more than {LONGEST_PATH} characters"
    return ""


def shown(text: str) -> str:
    """A text from outside as messages show it: of bounded length, and with what isn't printable escaped."""
    cut = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
    return cut if cut.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in cut)
