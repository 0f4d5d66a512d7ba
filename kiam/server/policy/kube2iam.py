"""kube2iam's ``iam.amazonaws.com/allowed-roles``: a JSON list of roles in which ``*`` stands for anything.

Its own matching (``namespace-restrictions`` with the format ``glob``): a role that isn't an ARN has the base ARN put
before it, ``*`` matches any characters, slashes too, and nothing else is special.
"""

from __future__ import annotations

import re
from functools import lru_cache

import msgspec

from kiam.server.kubernetes.objects import LONGEST_EXPRESSION
from kiam.server.policy.expressions import literal

_ROLES = msgspec.json.Decoder(list[str])


@lru_cache(maxsize=512)
def allowed_roles_expression(annotation: str, base_arn: str) -> str:
    """The expression that permits the same, whatever is strict.

    Raises ValueError with a line that says what is wrong with the annotation.
    """
    if len(annotation) > LONGEST_EXPRESSION:
        raise ValueError(f"it has more than {LONGEST_EXPRESSION} characters")
    try:
        roles = _ROLES.decode(annotation)
    except msgspec.DecodeError:
        raise ValueError('it is not a JSON list of roles, as in ["app", "team/*"]') from None
    arns = [_glob(role) for role in roles if role.startswith("arn:")]
    names = [_glob(role.removeprefix("/")) for role in roles if not role.startswith("arn:")]
    if names:
        arns.append(f"{_glob(base_arn)}(?:{'|'.join(names)})")
    return rf"\A(?:{'|'.join(arns)})\z" if arns else ""


def _glob(role: str) -> str:
    return ".*".join(literal(part) for part in re.split(r"\*+", role))
