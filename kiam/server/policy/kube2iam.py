"""kube2iam's ``iam.amazonaws.com/allowed-roles``: a JSON list of roles, globs or expressions by a flag of its own.

Its matching (``--namespace-restriction-format``; checkRoleForNamespace in mappings/mapper.go): what doesn't begin with
``arn:`` has the base ARN put before it. As a ``glob``, ``*`` matches any characters, slashes too, and nothing else is
special. As a ``regexp``, it has the syntax of Go's regexp package, and a match anywhere in the role's ARN is enough for
kube2iam: ``app`` permits ``app-admin`` too.
"""

from __future__ import annotations

import re
from functools import lru_cache

import msgspec

from kiam.arns import shown
from kiam.server.kubernetes.objects import LONGEST_EXPRESSION
from kiam.server.policy.expressions import literal
from kiam.server.settings import RestrictionFormat

_ROLES = msgspec.json.Decoder(list[str])
_PART = re.compile(r"\\Q.*?(?:\\E|\Z)|\\.|\[\^?+\]?+(?:\[:\w*:\]|\\.|[^\]\\])*+\]|.", re.DOTALL)
"""What a parenthesis is in and means nothing there: a quotation, an escape, a class; or a single character."""


@lru_cache(maxsize=512)
def allowed_roles_expression(
    annotation: str, base_arn: str, restriction_format: RestrictionFormat = RestrictionFormat.GLOB
) -> str:
    """The one expression for all of them; globs are matched whole by it, whatever is strict.

    The attack stopped: an expression of kube2iam's that matches anywhere, or isn't escaped, permits more roles than its
    author saw in it. So expressions are matched as ``permitted`` is: the whole ARN, unless strictness is switched off.

    Raises ValueError with a line that says what is wrong with the annotation.
    """
    if len(annotation) > LONGEST_EXPRESSION:
        raise ValueError(f"it has more than {LONGEST_EXPRESSION} characters")
    try:
        roles = _ROLES.decode(annotation)
    except msgspec.DecodeError:
        raise ValueError('it is not a JSON list of roles, as in ["app", "team/*"]') from None
    if restriction_format is RestrictionFormat.REGEXP:
        return "|".join(_expression(role, base_arn) for role in roles)
    arns = [_glob(role) for role in roles if role.startswith("arn:")]
    names = [_glob(role.removeprefix("/")) for role in roles if not role.startswith("arn:")]
    if names:
        arns.append(f"{_glob(base_arn)}(?:{'|'.join(names)})")
    return rf"\A(?:{'|'.join(arns)})\z" if arns else ""


def _expression(role: str, base_arn: str) -> str:
    # In a group, or the base ARN would be put before the first of several alternatives only.
    if role.lower().startswith("arn:"):
        return f"(?:{_closed(role)})"
    return f"{literal(base_arn)}(?:{_closed(role.removeprefix('/'))})"


def _closed(role: str) -> str:
    """An expression that doesn't change the meaning of what is put after it. Raises ValueError if it is none.

    The attack stopped: within the parentheses around it, ``a)|(?:.*`` would be valid, and permit everything.
    """
    depth, part = 0, ""
    # One by one: after a bracket that nothing closes, each further one would be looked for to the end again.
    for match in _PART.finditer(role):
        part = match[0]
        depth += (part == "(") - (part == ")")
        if depth < 0 or part in ("[", "\\"):
            break
    if depth or part in ("[", "\\"):
        raise ValueError(f"in '{shown(role)}' something is opened and not closed, or closed and not opened")
    return role + r"\E" if part.startswith(r"\Q") and not part.endswith(r"\E") else role


def _glob(role: str) -> str:
    return ".*".join(literal(part) for part in re.split(r"\*+", role))
