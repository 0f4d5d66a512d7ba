"""Requests that wait for the server or the real service, bounded by client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from kiam.agent.core.failures import TooManyWaiting
from kiam.agent.metrics import AgentMetrics
from kiam.agent.settings import Limits

T = TypeVar("T")


class Waiting:
    """How many requests of each client wait."""

    def __init__(self, limits: Limits, metrics: AgentMetrics) -> None:
        self._most = limits.waiting
        self._refused = metrics.refused_connections.labels("too many waiting")
        self._by_client: dict[str, int] = {}

    async def wait(self, client: str, ask: Callable[[], Awaitable[T]]) -> T:
        """Have a request wait for its answer. Raises TooManyWaiting if too many of the same client do."""
        waiting = self._by_client.get(client, 0)
        if waiting >= self._most:
            self._refused.inc()
            raise TooManyWaiting("too many requests of yours are waiting; try again")
        self._by_client[client] = waiting + 1
        try:
            return await ask()
        finally:
            if self._by_client[client] == 1:
                del self._by_client[client]
            else:
                self._by_client[client] -= 1
