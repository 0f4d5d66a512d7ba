"""Whether a pod may have a role: plain decisions, no I/O."""

from __future__ import annotations

import enum
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import re2

from kiam.arns import resolve_role_arn, role_problem, shown

EXPRESSION_MEMORY = 2 << 20
"""Bytes RE2 may spend on one compiled expression; a larger one is invalid, so no namespace can exhaust the server."""


class Refusal(enum.Enum):
    """What kind of no it is."""

    POLICY = "policy"
    """Not this role for this pod."""
    UNUSABLE = "unusable"
    """What is annotated can't work, whatever the pod asks for: its owner is to know."""
    UNDECIDED = "undecided"
    """It can't be told yet."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The policy's word, and why when it is no."""

    allowed: bool
    explanation: str = ""
    refusal: Refusal = Refusal.POLICY


ALLOWED = Decision(True)


def decide(requested: str, annotated: str, base_arn: str, expression: str, *, strict: bool) -> Decision:
    """Whether a pod annotated with one role may have the one it requests, its namespace permitting ``expression``.

    Both checks must pass. The first stops a pod from asking for another pod's role, the second stops whoever may
    annotate pods of a namespace from annotating them with a role that the namespace wasn't given.
    """
    arn = resolve_role_arn(requested, base_arn)
    if not annotated or arn != resolve_role_arn(annotated, base_arn):
        return Decision(False, f"requested '{shown(requested)}' but annotated with '{shown(annotated)}', forbidden")
    if problem := role_problem(arn):
        return Decision(False, f"'{shown(annotated)}' can't be an IAM role: {problem}; forbidden", Refusal.UNUSABLE)
    return decide_namespace(arn, expression, strict)


@lru_cache(maxsize=8192)
def decide_namespace(role_arn: str, expression: str, strict: bool) -> Decision:
    """Whether a namespace's ``iam.amazonaws.com/permitted`` expression permits a role's full ARN; empty permits none.

    Strict: the whole ARN has to match the whole expression, so a top-level ``a|b`` can't escape as it can from
    ``^a|b$``. Otherwise a match anywhere in the ARN is enough.
    """
    if not expression:
        return Decision(False, f"namespace policy expression '(empty)' forbids role '{role_arn}'")
    pattern = _compile(expression)
    if isinstance(pattern, str):
        return Decision(
            False,
            f"namespace policy expression '{shown(expression)}' is invalid: {shown(pattern)}; it permits no role",
            Refusal.UNUSABLE,
        )
    match = pattern.fullmatch(role_arn) if strict else pattern.search(role_arn)
    if match is None:
        return Decision(False, f"namespace policy expression '{shown(expression)}' forbids role '{role_arn}'")
    return ALLOWED


@lru_cache(maxsize=512)
def _compile(expression: str) -> Any:
    """The compiled expression, or the text of what is wrong with it.

    RE2 runs in time linear in the text, so an expression can't hang the server, and it reads the syntax that Go's
    regexp package reads, with one exception: ``\\C`` (any byte), which Go refuses and RE2 takes.
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


def forbidden_message(requested: str, decision: Decision) -> str:
    """The Event's text for a refusal."""
    return f"failed assuming role {json.dumps(shown(requested), ensure_ascii=False)}: {decision.explanation}"
