"""What time it is, and noticing when the clock was set or the machine slept."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

log = logging.getLogger(__name__)

LOOK_EVERY = 5.0
"""Seconds between two looks at the clocks."""
SMALLEST_STEP = 1.0
"""Seconds by which clocks may drift apart between two looks before it is called a step."""


class Clock(Protocol):
    """Two clocks: one to measure by, one that credentials' lifetimes are in."""

    def now(self) -> float:
        """Seconds that nobody can set, and that go on while the machine is suspended."""

    def wall(self) -> float:
        """Seconds since the epoch."""


class SystemClock:
    """The machine's own clocks (clock_gettime(2))."""

    def now(self) -> float:
        """CLOCK_BOOTTIME: CLOCK_MONOTONIC stands still while the machine is suspended."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall(self) -> float:
        """CLOCK_REALTIME."""
        return time.time()

    def awake(self) -> float:
        """CLOCK_MONOTONIC, which timers go by."""
        return time.monotonic()


@dataclass(frozen=True, slots=True)
class Reading:
    """All clocks at one moment."""

    wall: float
    now: float
    awake: float

    @classmethod
    def of(cls, clock: SystemClock) -> Reading:
        """The clocks as they are."""
        return cls(clock.wall(), clock.now(), clock.awake())


def step(before: Reading, after: Reading) -> float:
    """Seconds by which the wall clock was set forward (back, if negative) between two readings; 0: it wasn't."""
    seconds = (after.wall - before.wall) - (after.now - before.now)
    return seconds if abs(seconds) >= SMALLEST_STEP else 0.0


def slept(before: Reading, after: Reading) -> float:
    """Seconds for which the machine was suspended between two readings."""
    seconds = (after.now - before.now) - (after.awake - before.awake)
    return seconds if seconds >= SMALLEST_STEP else 0.0


async def notice_steps(clock: SystemClock, noticed: Callable[[], None]) -> None:
    """Say in the log when the clock was set or the machine slept, and call ``noticed``. Runs until cancelled."""
    before = Reading.of(clock)
    while True:
        await asyncio.sleep(LOOK_EVERY)
        after = Reading.of(clock)
        if seconds := step(before, after):
            log.warning("the wall clock was set %s by %.0f s", "forward" if seconds > 0 else "back", abs(seconds))
        if asleep := slept(before, after):
            log.warning("the machine was suspended for %.0f s", asleep)
        if seconds or asleep:
            noticed()
        before = after
