"""Calls that wait for something the watches will bring."""

from __future__ import annotations

import asyncio

MOST_HELD = 10_000
"""Calls held at a time; further ones are answered at once: asking for addresses nobody has must not fill memory."""


class Waiting:
    """Futures by key (an address, a namespace), bounded in number."""

    def __init__(self, most: int = MOST_HELD) -> None:
        self.most = most
        self._futures: dict[str, set[asyncio.Future[None]]] = {}
        self._held = 0

    def __len__(self) -> int:
        return self._held

    async def wait(self, key: str, seconds: float) -> bool:
        """Wait until the key is told, for so many seconds at most. False: that time passed, or too many wait."""
        if seconds <= 0 or self._held >= self.most:
            return False
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._futures.setdefault(key, set())
        waiting.add(future)
        self._held += 1
        try:
            async with asyncio.timeout(seconds):
                await future
        except TimeoutError:
            return False
        finally:
            self._held -= 1
            waiting.discard(future)
            if not waiting and self._futures.get(key) is waiting:
                del self._futures[key]
        return True

    def tell(self, key: str) -> None:
        """Let those go on that wait for the key."""
        if not self._futures:
            return
        for future in self._futures.pop(key, ()):
            if not future.done():
                future.set_result(None)

    def tell_all(self) -> None:
        """Let everyone go on."""
        for key in list(self._futures):
            self.tell(key)
