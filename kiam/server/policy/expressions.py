"""A namespace's ``permitted`` expression and a role's full ARN: plain answers, no I/O, but perhaps much CPU time."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import re2

from kiam.arns import shown
from kiam.server.kubernetes.objects import LONGEST_EXPRESSION
from kiam.server.policy.permitted import ALLOWED, Decision, Refusal

EXPRESSION_MEMORY = 2 << 20
"""Bytes RE2 may spend on one compiled expression; a larger one is invalid, so no namespace can exhaust the server."""
LONGEST_CHEAP = 512
"""Characters of an expression that RE2 compiles and matches within some milliseconds if it has nothing costly."""
_COSTLY = re.compile(r"\\[pP]|\(\?[A-Za-z]*i")
"""Classes of Unicode and letters of either case: RE2 makes a large program of each."""
_SPECIAL = re.compile(r"([\\.+*?()|\[\]{}^$])")
_CHEAP_REPETITION = re.compile(r"\{(\d|1\d|20)\}")


def is_cheap(expression: str) -> bool:
    """Whether an expression is certain to cost little; most are. A no says nothing."""
    repetitions = expression.count("{")
    return (
        len(expression) <= LONGEST_CHEAP
        and _COSTLY.search(expression) is None
        and (repetitions == 0 or (repetitions == 1 and _CHEAP_REPETITION.search(expression) is not None))
    )


@lru_cache(maxsize=8192)
def decide_namespace(role_arn: str, expression: str, strict: bool) -> Decision:
    """Whether a namespace's ``iam.amazonaws.com/permitted`` expression permits a role's full ARN; empty permits none.

    Strict: the whole ARN has to match the whole expression, so a top-level ``a|b`` can't escape as it can from
    ``^a|b$``. Otherwise a match anywhere in the ARN is enough.
    """
    if not expression:
        return Decision(False, f"namespace policy expression '(empty)' forbids role '{role_arn}'")
    if len(expression) > LONGEST_EXPRESSION:
        return invalid(expression, expression_problem(expression))
    pattern = _compile(expression)
    if isinstance(pattern, str):
        return invalid(expression, pattern)
    match = pattern.fullmatch(role_arn) if strict else pattern.search(role_arn)
    if match is None:
        return Decision(False, f"namespace policy expression '{shown(expression)}' forbids role '{role_arn}'")
    return ALLOWED


def expression_problem(expression: str) -> str:
    """What is wrong with an expression; empty: nothing."""
    if len(expression) > LONGEST_EXPRESSION:
        return f"it has more than {LONGEST_EXPRESSION} characters"
    compiled = _compile(expression)
    return compiled if isinstance(compiled, str) else ""


def literal(text: str) -> str:
    """The expression that matches a text and no other."""
    return _SPECIAL.sub(r"\\\1", text)


def invalid(expression: str, reason: str) -> Decision:
    """The answer to an expression that can't be used: it permits nothing, and its owner is to know."""
    return Decision(
        False,
        f"namespace policy expression '{shown(expression)}' is invalid: {shown(reason)}; it permits no role",
        Refusal.UNUSABLE,
    )


@lru_cache(maxsize=512)
def _compile(expression: str) -> Any:
    """The compiled expression, or the text of what is wrong with it.

    RE2 matches in time linear in the text, and reads the syntax that Go's regexp package reads, with one exception:
    ``\\C`` (any byte), which Go refuses and RE2 takes.
    """
    if "\\C" in re.sub(r"\\Q.*?(?:\\E|\Z)|\\[^C]", "", expression, flags=re.DOTALL):
        return "invalid escape sequence: \\C"
    options = re2.Options()
    options.log_errors = False
    options.max_mem = EXPRESSION_MEMORY
    try:
        return re2.compile(expression, options)
    except re2.error as error:
        reason = error.args[0] if error.args else ""
        return reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
