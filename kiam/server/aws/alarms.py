"""When what needs looking at: alarms on the clock that nobody sets, and notice when the other one is set."""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Generic, TypeVar

from kiam.clocks import Clock, StepWatch

log = logging.getLogger(__name__)

LONGEST_SLEEP = 1.0
"""Seconds until the clocks are looked at again; a step or the end of a suspension is noticed after so long."""

KeyT = TypeVar("KeyT", bound=Hashable)


class Alarms(Generic[KeyT]):
    """One alarm for each key, at most. :meth:`run` rings them."""

    def __init__(self, clock: Clock, ring: Callable[[KeyT], None], stepped: Callable[[], None]) -> None:
        """``ring`` is told a key whose time has come; ``stepped``, that the wall clock was set."""
        self._clock = clock
        self._ring = ring
        self._stepped = stepped
        self._steps = StepWatch(clock.wall, clock.elapsed)
        self._due: dict[KeyT, float] = {}
        self._heap: list[tuple[float, int, KeyT]] = []
        self._number = 0
        self._sooner = asyncio.Event()

    def set(self, key: KeyT, seconds: float) -> None:
        """Ring in so many seconds, and not when was said before."""
        due = self._clock.elapsed() + seconds
        self._due[key] = due
        self._number += 1
        heapq.heappush(self._heap, (due, self._number, key))
        if self._heap[0][2] is key:
            self._sooner.set()
        if len(self._heap) > 2 * len(self._due) + 64:
            self._heap = [entry for entry in self._heap if self._due.get(entry[2]) == entry[0]]
            heapq.heapify(self._heap)

    def cancel(self, key: KeyT) -> None:
        """Don't ring; a key without an alarm is fine."""
        self._due.pop(key, None)

    async def run(self) -> None:
        """Ring, for ever."""
        while True:
            left = self._heap[0][0] - self._clock.elapsed() if self._heap else LONGEST_SLEEP
            with suppress(TimeoutError):
                async with asyncio.timeout(min(max(left, 0.0), LONGEST_SLEEP)):
                    await self._sooner.wait()
            self._sooner.clear()
            self.tick()

    def tick(self) -> None:
        """Look at the clocks once."""
        if step := self._steps.step():
            log.warning("the clock was set %+.0f s; what is held is looked at again", step)
            self._stepped()
        now = self._clock.elapsed()
        while self._heap and self._heap[0][0] <= now:
            due, _, key = heapq.heappop(self._heap)
            if self._due.get(key) == due:
                del self._due[key]
                self._ring(key)
