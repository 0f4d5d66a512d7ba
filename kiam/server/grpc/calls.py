"""What all calls do: be held for a while, and be refused."""

from __future__ import annotations

import time
from typing import Any, NoReturn

import grpc
from grpc import aio

from kiam.addresses import canonical_address

Context = aio.ServicerContext[Any, Any]

LONGEST_HOLD = 5.0
"""Seconds a call is held that brings no deadline: the conventional agent's budget for a pod's request."""
LONGEST_HOLD_WITH_DEADLINE = 60.0
DEADLINE_MARGIN = 0.1
"""A held call is answered so many seconds (a tenth of what is left, if that is less) before its deadline: the caller
then gets the reason, not its own DEADLINE_EXCEEDED."""


class Hold:
    """How long a call may be held, worked out when it first has to be."""

    __slots__ = ("_context", "_until")

    def __init__(self, context: Context) -> None:
        """Of a call that has just come."""
        self._context = context
        self._until: float | None = None

    def left(self) -> float:
        """Seconds from now; not above 0: no longer."""
        now = time.monotonic()
        if self._until is None:
            remaining = self._context.time_remaining()
            if remaining is None:
                self._until = now + LONGEST_HOLD
            else:
                self._until = now + min(remaining - min(DEADLINE_MARGIN, remaining / 10), LONGEST_HOLD_WITH_DEADLINE)
        return self._until - now


async def abort(
    context: Context, code: grpc.StatusCode, text: str, trailing: tuple[tuple[str, str], ...] = ()
) -> NoReturn:
    """End a call with an error."""
    await context.abort(code, text, trailing)
    raise AssertionError("abort raises")


async def canonical(ip: str, context: Context) -> str:
    """An address in the form that stores have it in; the call ends if it is none."""
    try:
        return canonical_address(ip)
    except ValueError as error:
        await abort(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
