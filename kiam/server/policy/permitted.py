"""Whether a pod may have a role: plain decisions, no I/O."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import re2

from kiam.arns import resolve_role_arn

EXPRESSION_MEMORY = 2 << 20
"""Bytes RE2 may spend on one compiled expression; a larger one is invalid, so no namespace can exhaust the server."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The policy's word, and why when it is no."""

    allowed: bool
    explanation: str = ""


ALLOWED = Decision(True)


def decide(requested: str, annotated: str, base_arn: str, expression: str, *, strict: bool) -> Decision:
    """Whether a pod annotated with one role may have the one it requests, its namespace permitting ``expression``.

    Both checks must pass. The first stops a pod from asking for another pod's role, the second stops whoever may
    annotate pods of a namespace from annotating them with a role that the namespace wasn't given.
    """
    arn = resolve_role_arn(requested, base_arn)
    if not annotated or arn != resolve_role_arn(annotated, base_arn):
        return Decision(False, f"requested '{requested}' but annotated with '{annotated}', forbidden")
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
        return Decision(False, f"namespace policy expression '{expression}' is invalid: {pattern}; it permits no role")
    match = pattern.fullmatch(role_arn) if strict else pattern.search(role_arn)
    if match is None:
        return Decision(False, f"namespace policy expression '{expression}' forbids role '{role_arn}'")
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
    return f"failed assuming role {json.dumps(requested, ensure_ascii=False)}: {decision.explanation}"
