"""Calls that wait."""

from __future__ import annotations

import asyncio

from kiam.server.grpc.holds import Waiting
from kiam.server.readiness import Readiness


async def test_all_who_wait_for_a_key_go_on_and_no_others() -> None:
    waiting = Waiting()
    here = [asyncio.create_task(waiting.wait("a", 10)) for _ in range(3)]
    there = asyncio.create_task(waiting.wait("b", 10))
    await asyncio.sleep(0)
    waiting.tell("a")
    assert await asyncio.gather(*here) == [True] * 3
    assert not there.done()
    waiting.tell_all()
    assert await there
    assert len(waiting) == 0


async def test_time_over_too_many_and_no_time_are_no() -> None:
    waiting = Waiting(most=1)
    assert not await waiting.wait("a", 0)
    assert not await waiting.wait("a", 0.01)
    held = asyncio.create_task(waiting.wait("a", 10))
    await asyncio.sleep(0)
    assert not await waiting.wait("b", 10)
    held.cancel()
    await asyncio.gather(held, return_exceptions=True)
    assert len(waiting) == 0
    assert not await waiting.wait("b", 0.01)


async def test_caller_that_gives_up_leaves_the_others_waiting() -> None:
    waiting = Waiting()
    leaver, stayer = (asyncio.create_task(waiting.wait("a", 10)) for _ in range(2))
    await asyncio.sleep(0)
    leaver.cancel()
    await asyncio.gather(leaver, return_exceptions=True)
    waiting.tell("a")
    assert await stayer


def test_readiness_names_what_is_missing_and_says_ok_only_when_nothing_is() -> None:
    readiness = Readiness(["pods", "STS"])
    assert readiness.message == "not ready: waiting for pods, STS"
    readiness.reached("pods")
    readiness.reached("pods")
    assert readiness.message == "not ready: waiting for STS"
    assert not readiness.waits_for("pods")
    readiness.reached("STS")
    assert readiness.message == "ok"
    readiness.stop()
    assert readiness.message == "shutting down"
