"""When clocks part."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from kiam.agent.clock_steps import notice_steps
from kiam.clocks import StepWatch


class Clock:
    def __init__(self) -> None:
        self.ahead, self.slept = 0.0, 0.0

    def elapsed(self) -> float:
        return asyncio.get_running_loop().time() + self.slept

    def wall(self) -> float:
        return self.elapsed() + 1.8e9 + self.ahead


def test_slewing_is_no_step() -> None:
    times = {"wall": 100.0, "elapsed": 10.0}
    watch = StepWatch(lambda: times["wall"], lambda: times["elapsed"])
    times.update(wall=200.5, elapsed=110.0)
    assert watch.step() == 0
    times.update(wall=1400.5, elapsed=110.0)
    assert watch.step() == pytest.approx(1200.0)
    assert watch.step() == 0


@pytest.mark.parametrize(
    ("ahead", "slept", "says"),
    [
        (1200.0, 0.0, "the wall clock was set forward by 1200 s"),
        (-60.0, 0.0, "the wall clock was set back by 60 s"),
        (0.0, 3600.0, "the machine was suspended for 3600 s"),
    ],
)
async def test_steps_and_suspensions_are_said_and_counted(
    ahead: float, slept: float, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    clock, noticed = Clock(), asyncio.Event()
    task = asyncio.create_task(notice_steps(clock, noticed.set, every=0.001))
    await asyncio.sleep(0)
    clock.ahead, clock.slept = ahead, slept
    async with asyncio.timeout(10):
        await noticed.wait()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert [record.message for record in caplog.records] == [says]
