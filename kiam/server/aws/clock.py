"""The two clocks that a lifetime is measured by."""

from __future__ import annotations

import time
from typing import Protocol

LEAST_STEP = 2.0
"""Seconds by which the clocks must part between two looks to count as a step; NTP's slewing moves 0.5 ms a second."""


class Clock(Protocol):
    """What AWS's expiry times are compared with, and what can't be set."""

    def wall(self) -> float:
        """Unix time, which an administrator or NTP may set forward or back."""

    def elapsed(self) -> float:
        """Seconds since some moment, the time a machine was suspended included; nobody sets it."""


class SystemClock:
    """The kernel's CLOCK_REALTIME and CLOCK_BOOTTIME (clock_gettime(2)).

    Not CLOCK_MONOTONIC, which asyncio's timers are on: it stands still while the machine is suspended.
    """

    def wall(self) -> float:
        """Unix time."""
        return time.time()

    def elapsed(self) -> float:
        """Seconds since the machine's start."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)


class StepWatch:
    """Notices that the wall clock was set."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._offset = clock.wall() - clock.elapsed()

    def step(self) -> float:
        """Seconds by which the wall clock was set forward (or back, negative) since the last look; 0: it wasn't."""
        offset = self._clock.wall() - self._clock.elapsed()
        moved, self._offset = offset - self._offset, offset
        return moved if abs(moved) >= LEAST_STEP else 0.0
