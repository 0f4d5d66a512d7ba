"""Noticing when the clock was set or the machine slept."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from kiam.clocks import Clock, StepWatch

log = logging.getLogger(__name__)

_LOOK_EVERY = 5.0
"""Seconds between two looks. Nothing waits for them: lifetimes are compared with the clocks themselves."""


async def notice_steps(clock: Clock, noticed: Callable[[], None], every: float = _LOOK_EVERY) -> None:
    """Say in the log when the clock was set or the machine slept, and call ``noticed``. Runs until cancelled."""
    steps = StepWatch(clock.wall, clock.elapsed)
    # CLOCK_MONOTONIC stands still while the machine is suspended.
    suspensions = StepWatch(clock.elapsed, time.monotonic)
    while True:
        await asyncio.sleep(every)
        stepped, slept = steps.step(), suspensions.step()
        if stepped:
            log.warning("the wall clock was set %s by %.0f s", "forward" if stepped > 0 else "back", abs(stepped))
        if slept > 0:
            log.warning("the machine was suspended for %.0f s", slept)
        if stepped or slept > 0:
            noticed()
