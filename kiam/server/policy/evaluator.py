"""Evaluates namespaces' expressions without keeping the event loop: what may be costly goes to a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from kiam.arns import shown
from kiam.server.fair_queue import FairQueue
from kiam.server.kubernetes.objects import LONGEST_EXPRESSION
from kiam.server.policy.expressions import decide_namespace, invalid, is_cheap
from kiam.server.policy.permitted import Decision, Refusal
from kiam.server.policy.worker import CPU_SECONDS, READY

log = logging.getLogger(__name__)

MOST_SECONDS_INLINE, INLINE_WINDOW = 0.01, 60.0
"""What one expression may take of the event loop's time in a window, all its ARNs together, before it goes to the
process too."""
LEAST_SECONDS_COUNTED = 0.0005
"""An ordinary expression takes some microseconds for an ARN; those never add up."""
MOST_ANSWERS, MOST_EXPRESSIONS = 65_536, 4096
TELL_INTERVAL = 0.1
"""Seconds between two times that news of a namespace is told, while there is more to come."""
RESTART_SECONDS = 1.0

KeyT = TypeVar("KeyT")
ValueT = TypeVar("ValueT")


class _Remembered(Generic[KeyT, ValueT]):
    """So many values at most; the one not asked for longest is forgotten first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: OrderedDict[KeyT, ValueT] = OrderedDict()

    def get(self, key: KeyT) -> ValueT | None:
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: KeyT, value: ValueT) -> None:
        self._values[key] = value
        self._values.move_to_end(key)
        if len(self._values) > self._most:
            self._values.popitem(last=False)


class _WorkerError(Exception):
    """The process can't be had, or ended."""

    def __init__(self, text: str, asked: bool = False, code: int | None = None) -> None:
        super().__init__(text)
        self.asked = asked
        """Whether it ended over a question."""
        self.out_of_time = code == -signal.SIGPROF


class Evaluator:
    """Answers from what is known; what isn't is worked out, and the namespace told when it is. :meth:`run` does that.

    Namespaces take turns, so that one with a costly expression holds up itself.
    """

    def __init__(self, strict: bool, told: Callable[[str], None]) -> None:
        """``told`` is called with a namespace's name when there are new answers for it."""
        self._strict = strict
        self._told = told
        self._answers: _Remembered[tuple[str, str], Decision] = _Remembered(MOST_ANSWERS)
        self._refused: _Remembered[str, Decision] = _Remembered(MOST_EXPRESSIONS)
        self._spent: _Remembered[str, tuple[float, float]] = _Remembered(MOST_EXPRESSIONS)
        """Seconds, and when the window ends."""
        self._queue: FairQueue[tuple[str, str, str]] = FairQueue()
        self._waiting: set[tuple[str, str, str]] = set()
        self._work = asyncio.Semaphore(0)
        self._news: set[str] = set()
        self._worker: asyncio.subprocess.Process | None = None

    def decide(self, namespace: str, role_arn: str, expression: str) -> Decision:
        """Whether the expression permits the ARN; undecided while that is being worked out."""
        known = self._answers.get((expression, role_arn)) or self._refused.get(expression)
        if known is not None:
            return known
        if not expression or len(expression) > LONGEST_EXPRESSION:
            return decide_namespace(role_arn, expression, self._strict)
        if is_cheap(expression) and self._seconds_spent(expression)[0] < MOST_SECONDS_INLINE:
            return self._decide_inline(role_arn, expression)
        question = (namespace, expression, role_arn)
        if question not in self._waiting:
            self._waiting.add(question)
            self._queue.put(0, namespace, question)
            self._work.release()
        return Decision(
            False, f"namespace policy expression '{shown(expression)}' is being evaluated", Refusal.UNDECIDED
        )

    async def run(self) -> None:
        """Work out what is asked, for ever."""
        try:
            while True:
                await self._work.acquire()
                _, question = self._queue.pop()
                namespace, expression, role_arn = question
                if self._refused.get(expression) is None and self._answers.get((expression, role_arn)) is None:
                    await self._work_out(expression, role_arn)
                self._waiting.discard(question)
                self._tell(namespace)
        finally:
            if self._worker is not None:
                if self._worker.returncode is None:
                    self._worker.kill()
                await _ended(self._worker)

    def _decide_inline(self, role_arn: str, expression: str) -> Decision:
        started = time.thread_time()
        decision = decide_namespace(role_arn, expression, self._strict)
        seconds = time.thread_time() - started
        self._answers.put((expression, role_arn), decision)
        if seconds > LEAST_SECONDS_COUNTED:
            spent, until = self._seconds_spent(expression)
            self._spent.put(expression, (spent + seconds, until))
        return decision

    def _seconds_spent(self, expression: str) -> tuple[float, float]:
        now = time.monotonic()
        spent = self._spent.get(expression)
        return spent if spent is not None and now < spent[1] else (0.0, now + INLINE_WINDOW)

    def _tell(self, namespace: str) -> None:
        """Not after each answer: all pods of a namespace are looked at again each time."""
        if not self._news:
            asyncio.get_running_loop().call_later(TELL_INTERVAL if len(self._queue) else 0.0, self._tell_all)
        self._news.add(namespace)

    def _tell_all(self) -> None:
        news, self._news = self._news, set()
        for namespace in news:
            self._told(namespace)

    async def _work_out(self, expression: str, role_arn: str) -> None:
        deaths = 0
        while True:
            try:
                self._answers.put((expression, role_arn), await self._ask(expression, role_arn))
                return
            except _WorkerError as error:
                self._worker = None
                deaths += error.asked
                if error.out_of_time or deaths > 1:
                    break
                log.error("namespace policy expressions can't be evaluated: %s; trying again", error)
                await asyncio.sleep(RESTART_SECONDS)
        milliseconds = round(CPU_SECONDS * 1000)
        log.warning("namespace policy expression takes too much: %s", shown(expression))
        self._refused.put(expression, invalid(expression, f"it takes more than {milliseconds} ms to evaluate"))

    async def _ask(self, expression: str, role_arn: str) -> Decision:
        """Have the process evaluate. Raises _WorkerError."""
        worker = self._worker = self._worker or await self._start()
        assert worker.stdin is not None, "it is a pipe"
        assert worker.stdout is not None, "it is a pipe"
        worker.stdin.write(json.dumps([expression, role_arn, self._strict]).encode() + b"\n")
        try:
            await worker.stdin.drain()
            line = await worker.stdout.readline()
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            code = await _ended(worker)
            raise _WorkerError(f"the process ended with {code}", True, code)
        allowed, explanation, refusal = json.loads(line)
        return Decision(allowed, explanation, Refusal(refusal))

    async def _start(self) -> asyncio.subprocess.Process:
        try:
            worker = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "kiam.server.policy.worker"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
        except OSError as error:
            raise _WorkerError(str(error)) from error
        assert worker.stdout is not None, "it is a pipe"
        if await worker.stdout.readline() != READY:
            raise _WorkerError(f"the process ended with {await worker.wait()}")
        return worker


async def _ended(worker: asyncio.subprocess.Process) -> int:
    """Wait for the process to end; its exit code."""
    code = await worker.wait()
    if worker.stdin is not None:
        worker.stdin.close()
        # Else asyncio tells of it, with a traceback, whenever the garbage collector finds the broken pipe.
        with contextlib.suppress(OSError):
            await worker.stdin.wait_closed()
    return code
