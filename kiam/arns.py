"""Role names, paths and ARNs, and which of them are the same role."""

from __future__ import annotations


def resolve_role_arn(role: str, base_arn: str) -> str:
    """The full ARN of a role as a pod's annotation or request names it.

    A role that starts with ``arn:`` is taken whole; otherwise one leading slash is dropped and the base ARN put
    before it, so ``team/app``, ``/team/app`` and ``arn:aws:iam::1:role/team/app`` are one role.
    """
    if role.startswith("arn:"):
        return role
    return base_arn + role.removeprefix("/")
