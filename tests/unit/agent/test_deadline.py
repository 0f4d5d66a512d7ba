"""A deadline that moves passes once, at the moment it has moved to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast
from unittest.mock import Mock

import pytest

from kiam.agent.http.deadline import NEVER, Deadline


class Loop:
    """An event loop's clock and timers, which go when they are told to."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[tuple[float, Callable[[], None], Mock]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], None]) -> Mock:
        handle = Mock()
        self.timers.append((when, callback, handle))
        return handle

    def go_to(self, now: float) -> None:
        while due := [timer for timer in self.timers if timer[0] <= now and not timer[2].cancel.called]:
            timer = min(due, key=lambda timer: timer[0])
            self.timers.remove(timer)
            self.now = max(self.now, timer[0])
            timer[1]()
        self.now = now


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def passed() -> list[float]:
    return []


@pytest.fixture
def deadline(loop: Loop, passed: list[float]) -> Deadline:
    return Deadline(cast(asyncio.AbstractEventLoop, loop), lambda: passed.append(loop.now))


def test_putting_it_off_costs_no_timer(loop: Loop, deadline: Deadline, passed: list[float]) -> None:
    deadline.set(10)
    for now in range(101, 105):
        loop.go_to(now)
        deadline.at = now + 10
    assert len(loop.timers) == 1
    loop.go_to(113)
    assert passed == []
    loop.go_to(200)
    assert passed == [114]


def test_bringing_it_forward_counts_at_once(loop: Loop, deadline: Deadline, passed: list[float]) -> None:
    deadline.set(60)
    deadline.set(5)
    loop.go_to(200)
    assert passed == [105]


def test_never_is_never_until_it_is_set_again(loop: Loop, deadline: Deadline, passed: list[float]) -> None:
    deadline.set(5)
    deadline.at = NEVER
    loop.go_to(200)
    assert passed == []
    deadline.set(5)
    loop.go_to(300)
    assert passed == [205]


def test_after_the_end_nothing_is_called(loop: Loop, deadline: Deadline, passed: list[float]) -> None:
    deadline.set(5)
    deadline.end()
    deadline.set(5)
    loop.go_to(300)
    assert passed == []
