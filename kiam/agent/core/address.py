"""What is known of one address that the server says a pod has, and whether the kernel has contradicted it since."""

from __future__ import annotations

from dataclasses import dataclass

from kiam.agent.core.routes import PodRoute

CONFIRM_AFTER = 1.0
"""Seconds after a changed route by which kubelet has reported it: the server's own news is waited for so long, and its
word as of an earlier moment doesn't count."""
_REMEMBER_SUSPICION = 60.0
"""Seconds for which a suspect address is remembered that the server has withdrawn."""


def is_newer(word_at: float, changed_at: float, confirm_after: float) -> bool:
    """Whether the server's word as of some moment takes in a change: kubelet needs a while to report it."""
    return word_at >= changed_at + confirm_after


@dataclass(slots=True)
class Address:
    """One address's state; :class:`kiam.agent.core.addresses.Addresses` makes the transitions."""

    uid: str
    """The pod that the server says has it."""
    word_at: float
    """As of when the server says so."""
    route: PodRoute | None = None
    lost: PodRoute | None = None
    """The route it had before it became suspect."""
    changed_at: float | None = None
    is_claimed: bool = True
    """False: the server has withdrawn it since it became suspect, which is remembered for a while."""

    def doubt(self, changed_at: float) -> None:
        """The kernel has contradicted the server's word, at that moment."""
        self.lost, self.route, self.changed_at = self.route, None, changed_at

    def is_remembered(self, now: float) -> bool:
        """Whether its change is so recent that it counts though the server withdraws the address."""
        return self.changed_at is not None and now - self.changed_at < _REMEMBER_SUSPICION

    def is_stale(self, now: float) -> bool:
        """Whether it has been withdrawn and can be forgotten."""
        return not self.is_claimed and self.changed_at is not None and not self.is_remembered(now)
