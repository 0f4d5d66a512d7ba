"""What is verified, and what the dataplanes said when they were asked."""

from __future__ import annotations

from dataclasses import dataclass

from kiam.dataplane.contract import Condition, Inspection, WantedState


@dataclass(frozen=True, slots=True)
class Asked:
    """What one dataplane answered."""

    inspection: Inspection | None = None
    error: str = ""
    """Why it couldn't be asked: libraries, capabilities, kernel."""

    @property
    def present(self) -> bool:
        """Whether anything of it is in the kernel."""
        return self.inspection is not None and self.inspection.condition is not Condition.ABSENT

    @property
    def installed(self) -> WantedState | None:
        """What it was installed for."""
        return self.inspection.installed if self.inspection is not None else None


@dataclass(frozen=True, slots=True)
class Subject:
    """What is verified."""

    dataplane: str
    """A name of the registry, or BY_HAND."""
    wanted: WantedState
    """What it is compared with."""
    target: WantedState
    """The same with what can't be right put right; what fixes install."""
    present: bool
    """Whether the dataplane is there at all."""
    difference: str = ""
    """In what the person asked about something else than what is installed."""
    stale: bool = False
    """The person is right: the agent is where they say, and not where what is installed leads."""
