"""A moment by which something must have come, which moves with every request and costs none of them a timer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

NEVER = float("inf")


class Deadline:
    """One of a connection's. The timer that there is sees when it fires that the moment has moved, and is set anew."""

    __slots__ = ("_loop", "_passed", "_timer", "_timer_at", "at")

    def __init__(self, loop: asyncio.AbstractEventLoop, passed: Callable[[], None]) -> None:
        """``passed`` is called when the moment has come."""
        self._loop = loop
        self._passed: Callable[[], None] | None = passed
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = NEVER
        self.at = NEVER
        """By the event loop's clock. May be put off by assigning to it; to bring it forward takes :meth:`set`."""

    def set(self, seconds: float) -> None:
        """So many seconds from now."""
        self.at = self._loop.time() + seconds
        if self.at < self._timer_at and self._passed is not None:
            if self._timer is not None:
                self._timer.cancel()
            self._start()

    def end(self) -> None:
        """Never again, and let go of what would be called."""
        self.at = NEVER
        self._passed = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start(self) -> None:
        self._timer_at = self.at
        self._timer = self._loop.call_at(self.at, self._fire)

    def _fire(self) -> None:
        self._timer = None
        self._timer_at = NEVER
        if self._passed is None or self.at == NEVER:
            return
        if self._loop.time() < self.at:
            self._start()
        else:
            self._passed()
