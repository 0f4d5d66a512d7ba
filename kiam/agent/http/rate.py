"""How often each client may have something done."""

from __future__ import annotations

_MOST_REMEMBERED = 4096
"""Clients after which those are forgotten that have been quiet."""


class RequestRate:
    """The generic cell rate algorithm (ITU-T I.371) by client: so many a second, and a burst of so many at once."""

    def __init__(self, per_second: float, burst: int) -> None:
        self._interval = 1 / per_second
        self._tolerance = (burst - 1) * self._interval
        # When each client's allowance will be whole again, in seconds.
        self._whole_at: dict[str, float] = {}

    def admit(self, client: str, now: float) -> bool:
        """Count one request at a time in seconds; False, and not counted: that is too many."""
        whole_at = max(self._whole_at.get(client, now), now)
        if whole_at - now > self._tolerance:
            return False
        if len(self._whole_at) >= _MOST_REMEMBERED:
            self._whole_at = {other: moment for other, moment in self._whole_at.items() if moment > now}
        self._whole_at[client] = whole_at + self._interval
        return True
