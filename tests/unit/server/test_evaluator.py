"""Expressions of tenants: none keeps the event loop, and none keeps another namespace's from being evaluated."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiam.server.policy import evaluator as module
from kiam.server.policy.evaluator import Evaluator
from kiam.server.policy.expressions import decide_namespace, is_cheap
from kiam.server.policy.permitted import Decision, Refusal
from tests.sandbox.process import until

APP = "arn:aws:iam::123456789012:role/team/app"
LONG = "arn:aws:iam::123456789012:role/" + "a" * 500 + "/" + "x" * 64
COSTLY = {
    "nested stars": "(a*)*" * 2000,
    "counted": ".{0,1000}" * 100,
    "plus in plus": "(x+x+)+y" * 500,
    "alternatives": "|".join(f"role-{number}" for number in range(30_000)),
    "classes": "[a-z]{0,30}" * 740,
    "unicode": r"\pL" * 5000,
    "nested groups": "(" * 8000 + "a" + ")" * 8000,
    "short and counted": ".{0,99}" * 73,
    "states": ".*a" + "." * 509,
}


class Bench:
    def __init__(self) -> None:
        self.told: list[str] = []
        self.evaluator = Evaluator(True, self.told.append)

    async def decide(self, expression: str, arn: str = APP, namespace: str = "ns") -> Decision:
        async with asyncio.timeout(60):
            while True:
                decision = self.evaluator.decide(namespace, arn, expression)
                if decision.refusal is not Refusal.UNDECIDED:
                    return decision
                await self.news(namespace)

    async def news(self, namespace: str) -> None:
        before = self.told.count(namespace)
        await until(lambda: self.told.count(namespace) > before)


@asynccontextmanager
async def running() -> AsyncIterator[Bench]:
    bench = Bench()
    task = asyncio.create_task(bench.evaluator.run())
    try:
        yield bench
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("name", COSTLY)
async def test_costly_expression_does_not_keep_the_event_loop(name: str) -> None:
    async with running() as bench:
        longest = 0.0
        stop = asyncio.Event()

        async def beat() -> None:
            nonlocal longest
            while not stop.is_set():
                before = time.thread_time()
                await asyncio.sleep(0.001)
                longest = max(longest, time.thread_time() - before)

        beating = asyncio.create_task(beat())
        decision = await bench.decide(COSTLY[name], LONG)
        stop.set()
        await beating
        # CPU time of this thread, whatever else the machine does.
        assert longest < 0.02
        assert decision.refusal is not Refusal.UNDECIDED


async def test_expression_that_takes_too_much_permits_nothing_and_says_so() -> None:
    async with running() as bench:
        decision = await bench.decide("[a-z]{0,30}" * 740)
        assert decision.refusal is Refusal.UNUSABLE
        assert decision.explanation.endswith("is invalid: it takes more than 250 ms to evaluate; it permits no role")
        assert len(decision.explanation) < 500
        assert (await bench.decide(r"arn:aws:iam::\d{1,20}:role/team/app")).allowed, "the next one is evaluated"


async def test_too_long_an_expression_is_not_even_tried() -> None:
    bench = Bench()
    decision = bench.evaluator.decide("ns", APP, "x" * 16_385)
    assert "it has more than 16384 characters" in decision.explanation
    assert decision.refusal is Refusal.UNUSABLE


async def test_costly_expressions_of_one_namespace_do_not_hold_up_another() -> None:
    async with running() as bench:
        for number in range(20):
            bench.evaluator.decide("greedy", APP, "[a-z]{0,30}" * 740 + str(number))
        assert (await bench.decide(r".*/\pL+", APP, "modest")).allowed
        assert bench.told.count("greedy") <= 3


async def test_many_roles_of_one_namespace_are_told_together() -> None:
    async with running() as bench:
        arns = [f"{APP}{number}" for number in range(300)]
        assert all(bench.evaluator.decide("ns", arn, r".*/\pL+\d*").refusal is Refusal.UNDECIDED for arn in arns)
        await until(lambda: all(bench.evaluator.decide("ns", arn, r".*/\pL+\d*").allowed for arn in arns))
        assert len(bench.told) < 100


async def test_expression_that_turns_out_costly_leaves_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_SECONDS_INLINE", 0.0)
    async with running() as bench:
        monkeypatch.setattr(module, "LEAST_SECONDS_COUNTED", -1.0)
        expression = ".*a" + "." * 400
        assert is_cheap(expression)
        assert bench.evaluator.decide("ns", LONG, expression).refusal is Refusal.UNDECIDED
        assert (await bench.decide(expression, LONG)).refusal is not Refusal.UNDECIDED


async def test_ordinary_expression_stays_on_the_event_loop_however_many_roles_there_are() -> None:
    bench = Bench()
    gc.collect()
    gc.disable()
    try:
        assert all(bench.evaluator.decide("ns", f"{APP}{number}", ".*/app.*").allowed for number in range(20_000))
    finally:
        gc.enable()


async def test_what_an_expression_has_taken_is_forgotten_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST_SECONDS_COUNTED", -1.0)
    monkeypatch.setattr(module, "MOST_SECONDS_INLINE", 1e-9)
    bench = Bench()
    assert bench.evaluator.decide("ns", APP, ".*/app").allowed
    assert bench.evaluator.decide("ns", f"{APP}2", ".*/app").refusal is Refusal.UNDECIDED
    monkeypatch.setattr(module, "INLINE_WINDOW", -1.0)
    assert bench.evaluator.decide("ns", f"{APP}3", "x|.*/app3").allowed
    assert bench.evaluator.decide("ns", f"{APP}33", "x|.*/app3.").allowed


async def test_process_that_is_killed_is_started_again_and_refuses_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESTART_SECONDS", 0.01)
    async with running() as bench:
        assert (await bench.decide(r".*/\pL+")).allowed
        worker = bench.evaluator._worker
        assert worker is not None
        os.kill(worker.pid, signal.SIGKILL)
        assert (await bench.decide(r".*/\pL+", APP + "s")).allowed


async def test_evaluator_that_is_stopped_in_mid_question_leaves_no_broken_pipe_to_be_told_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def stop_in_mid_question() -> None:
        async with running() as bench:
            await bench.decide(r".*/\pL+")
            worker = bench.evaluator._worker
            assert worker is not None
            pipe = worker.stdin
            assert pipe is not None
            os.kill(worker.pid, signal.SIGSTOP)
            bench.evaluator.decide("ns", APP + "y" * 200_000, r".*/\pL+")
            await until(lambda: pipe.transport.get_write_buffer_size() > 0)

    await stop_in_mid_question()
    # Once for what asyncio's callbacks still hold, once when they have run.
    for _ in range(2):
        gc.collect()
        await asyncio.sleep(0)
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


@given(st.from_regex(r"[a\\d.*+?|(){}\[\]^$1,pL]{0,20}", fullmatch=True))
def test_cheap_answer_is_the_plain_answer(expression: str) -> None:
    decision = Evaluator(True, lambda name: None).decide("ns", APP, expression)
    assert decision.refusal is Refusal.UNDECIDED or decision == decide_namespace(APP, expression, True)
