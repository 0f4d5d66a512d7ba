"""What is told of requests that were refused here: the server of a role, the log of an attack."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from kiam.agent.core.failures import RequestFailure
from kiam.agent.core.pods import PushedPods
from kiam.agent.metrics import AgentMetrics

log = logging.getLogger(__name__)

_MOST_REPORTS = 16
"""Refusals that are told to the server at the same time; what is more goes untold."""
_TELL_EVERY = 1.0
"""Seconds between two such reports about one address, or two lines in the log."""
_REPORT_SECONDS = 5.0
_MOST_REMEMBERED = 4096


class Reporting(Protocol):
    """The part of :class:`kiam.agent.control.unary.UnaryCalls` that is needed here."""

    async def report(self, address: str, role: str, deadline: float) -> None:
        """Let the server see what was refused."""


class Refusals:
    """Tells of them, and not too often: whoever is refused can ask as often as it likes."""

    def __init__(self, pods: PushedPods, server: Reporting, metrics: AgentMetrics) -> None:
        """``pods``: tells whose an address is."""
        self._pods = pods
        self._server = server
        self._metrics = metrics
        self._told: dict[str, float] = {}
        self._reports: set[asyncio.Task[None]] = set()

    def impostor(self, address: str, uid: str | None) -> None:
        """Count and say that a pod uses another one's address; one line a second for each address."""
        self._metrics.impostors.inc()
        if self._is_due(f"{address} {uid}", asyncio.get_running_loop().time()):
            owner = self._pods.pod_at(address)
            log.warning(
                "attack: the pod with the UID %s asks from the address of another pod; refused",
                uid,
                extra={
                    "pod.ip": address,
                    "pod.namespace": owner.namespace if owner else "",
                    "pod.name": owner.name if owner else "",
                },
            )

    def tell(self, address: str, role: str) -> None:
        """Let the server see a request that was refused here, so that it writes the pod's Event as it always does."""
        now = asyncio.get_running_loop().time()
        if len(self._reports) >= _MOST_REPORTS or not self._is_due(address, now):
            return
        task = asyncio.create_task(self._report(address, role, now + _REPORT_SECONDS))
        self._reports.add(task)
        task.add_done_callback(self._reports.discard)

    async def _report(self, address: str, role: str, deadline: float) -> None:
        try:
            await self._server.report(address, role, deadline)
        except RequestFailure as failure:
            log.debug("the server says of a refused request: %s", failure)

    def _is_due(self, key: str, now: float) -> bool:
        """Whether something is to be told that isn't to be told too often."""
        if now - self._told.get(key, -_TELL_EVERY) < _TELL_EVERY:
            return False
        if len(self._told) > _MOST_REMEMBERED:
            self._told.clear()
        self._told[key] = now
        return True
