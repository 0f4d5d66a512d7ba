"""Who waits for news of an address or of a pod, and is woken by it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable


class Waiters:
    """One future for each address or UID that somebody waits at."""

    def __init__(self) -> None:
        """Nobody waits."""
        self._changes: dict[str, asyncio.Future[None]] = {}

    def __len__(self) -> int:
        """At how many of them somebody waits."""
        return len(self._changes)

    def change(self, key: str) -> asyncio.Future[None]:
        """Done at the next change that concerns an address or UID. Wait with ``asyncio.wait``: it is shared."""
        change = self._changes.get(key)
        if change is None:
            change = self._changes[key] = asyncio.get_running_loop().create_future()
        return change

    def wake(self, keys: Iterable[str] | None) -> None:
        """Something has changed for these addresses and UIDs; None: for all."""
        for key in list(self._changes) if keys is None else keys:
            change = self._changes.pop(key, None)
            if change is not None and not change.done():
                change.set_result(None)
