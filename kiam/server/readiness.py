"""What the server still waits for before it can answer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable


class Readiness:
    """A list of things to wait for."""

    def __init__(self, awaited: Iterable[str]) -> None:
        self._awaited = dict.fromkeys(awaited)
        self._done = asyncio.Event()
        self.stopping = False

    def reached(self, thing: str) -> None:
        """One of the things has happened."""
        self._awaited.pop(thing, None)
        if not self._awaited:
            self._done.set()

    def lost(self, thing: str) -> None:
        """One of the things is no longer as it has to be, and is waited for again."""
        self._awaited[thing] = None

    def stop(self) -> None:
        """The server is about to end."""
        self.stopping = True

    @property
    def message(self) -> str:
        """``ok``, or in one line why not."""
        if self.stopping:
            return "shutting down"
        return f"not ready: waiting for {', '.join(self._awaited)}" if self._awaited else "ok"

    def waits_for(self, *things: str) -> bool:
        """Whether any of these has yet to happen."""
        return any(thing in self._awaited for thing in things)

    async def wait(self) -> None:
        """Until all has happened once."""
        await self._done.wait()
