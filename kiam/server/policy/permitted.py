"""Whether a pod may have a role: plain decisions, no I/O."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass

from kiam.arns import resolve_role_arn, role_problem, shown


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


def check_request(requested: str, annotated: str, base_arn: str) -> str | Decision:
    """The full ARN of the role that a pod annotated with one role requests, or why it can't be had.

    It stops a pod from asking for another pod's role. Whether the pod's namespace was given the role is another
    question, or whoever may annotate pods of a namespace could have any.
    """
    arn = resolve_role_arn(requested, base_arn)
    if not annotated or arn != resolve_role_arn(annotated, base_arn):
        return Decision(False, f"requested '{shown(requested)}' but annotated with '{shown(annotated)}', forbidden")
    if problem := role_problem(arn):
        return Decision(False, f"'{shown(annotated)}' can't be an IAM role: {problem}; forbidden", Refusal.UNUSABLE)
    return arn


def forbidden_message(requested: str, decision: Decision) -> str:
    """The Event's text for a refusal."""
    return f"failed assuming role {json.dumps(shown(requested), ensure_ascii=False)}: {decision.explanation}"
