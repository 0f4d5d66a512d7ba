"""The two clocks that lifetimes are measured by, on both halves, and noticing when they part."""

from __future__ import annotations

import time
from collections.abc import Callable
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

    wall = staticmethod(time.time)
    """Unix time. Read for each answer of the agent, so no method of ours in between."""

    def elapsed(self) -> float:
        """Seconds since the machine's start."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)


class StepWatch:
    """Notices that a clock went otherwise than another: the wall clock was set, or timers stood still."""

    def __init__(self, clock: Callable[[], float], reference: Callable[[], float]) -> None:
        """Both give seconds."""
        self._clock = clock
        self._reference = reference
        self._offset = clock() - reference()

    def step(self) -> float:
        """Seconds that the clock has gone further (or less far, negative) since the last look; 0: they agree."""
        offset = self._clock() - self._reference()
        moved, self._offset = offset - self._offset, offset
        return moved if abs(moved) >= LEAST_STEP else 0.0
