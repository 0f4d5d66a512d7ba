"""What the credentials manager knows of one identity, and when something is due about it: decisions without I/O."""

from __future__ import annotations

import asyncio

from kiam.clocks import Clock
from kiam.identity import Identity
from kiam.server.aws.lifetime import Held


class CredentialsUnavailableError(Exception):
    """There are none, for a reason that pods may be told."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds until STS is asked again."""


class Entry:
    """All there is to one identity."""

    __slots__ = (
        "failed_until",
        "failures",
        "held",
        "identity",
        "lines",
        "message",
        "namespaces",
        "outcome",
        "queued",
        "settled_at",
        "waited",
    )

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.held: Held | None = None
        self.namespaces: dict[str, None] = {}
        """Of the pods that want it; empty: nobody does."""
        self.queued: int | None = None
        """How urgently, while it waits for a fetcher."""
        self.lines: set[str] = set()
        """The namespaces in whose turn it is fetched."""
        self.outcome: asyncio.Future[None] | None = None
        self.failures = 0
        self.failed_until = 0.0
        self.settled_at = 0.0
        self.message = ""
        self.waited = False
        """Whether a pod waited for what is held."""

    def left(self, clock: Clock) -> float:
        """Seconds that what is held has to live; not above 0: there is nothing good."""
        return self.held.left(clock) if self.held is not None else 0.0

    def is_late(self, clock: Clock) -> bool:
        """Whether what is held has too little time left to be handed out while newer ones may be had."""
        return self.held is None or self.left(clock) < self.held.least_left

    def is_left_alone(self, clock: Clock) -> bool:
        """Whether STS isn't asked, after a failure."""
        return bool(self.failures) and clock.elapsed() < self.failed_until

    def unavailable(self, clock: Clock) -> CredentialsUnavailableError:
        """The failure, as pods are told."""
        return CredentialsUnavailableError(self.message, max(self.failed_until - clock.elapsed(), 0.0))

    def seconds_until_due(self, clock: Clock) -> float:
        """Until it is renewed, asked for (again) or, if nobody wants it, forgotten; not above 0: now."""
        left_alone = self.failed_until - clock.elapsed()
        if not self.namespaces:
            # Pods that come and go must not make the server forget that AWS has just refused their role.
            return max(self.left(clock), left_alone)
        renewed = self.left(clock) - self.held.renewed_left if self.held is not None else 0.0
        return max(renewed, left_alone, self.settled_at - clock.elapsed())
