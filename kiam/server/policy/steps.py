"""The steps by which it is explained why a pod gets its role: what they are made of, on the wire and on a screen."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from kiam.rpc import kiam_pb2


class Outcome(enum.StrEnum):
    """What a step comes to."""

    OK = "ok"
    FAILED = "failed"
    """It keeps the pod from its role."""
    UNDECIDED = "undecided"
    """It can't be told yet: no role for now."""
    NOTE = "note"
    """Worth knowing; it decides nothing."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step, in one line."""

    name: str
    outcome: Outcome
    text: str
    fix: str = ""
    """A command, or what else to do; empty: nothing is to be fixed."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why one pod gets its role, or doesn't."""

    namespace: str
    pod: str
    steps: tuple[Step, ...]

    @property
    def gets_its_role(self) -> bool:
        """Whether nothing keeps the pod from its role."""
        return all(step.outcome in (Outcome.OK, Outcome.NOTE) for step in self.steps)

    @classmethod
    def of(cls, message: kiam_pb2.Explanation) -> Explanation:
        """From the wire. An outcome of a later release counts as undecided: never as a yes."""
        steps = (Step(step.name, _outcome(step.outcome), step.text, step.fix) for step in message.steps)
        return cls(message.namespace, message.pod, tuple(steps))

    def message(self) -> kiam_pb2.Explanation:
        """To the wire."""
        steps = [
            kiam_pb2.ExplanationStep(name=step.name, outcome=step.outcome.value, text=step.text, fix=step.fix)
            for step in self.steps
        ]
        return kiam_pb2.Explanation(namespace=self.namespace, pod=self.pod, steps=steps)


def _outcome(text: str) -> Outcome:
    try:
        return Outcome(text)
    except ValueError:
        return Outcome.UNDECIDED
