"""Kubernetes Events that explain refusals on the pod they happen to. Nothing here is waited for by a pod's request."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from http import HTTPStatus
from typing import Any, Protocol

from kiam.server.kubernetes.api import KubeError
from kiam.server.kubernetes.objects import Pod

log = logging.getLogger(__name__)

COMPONENT = "kiam.server"
ROLE_FORBIDDEN, CREDENTIAL_ERROR = "KiamRoleForbidden", "KiamCredentialError"
"""The conventional reasons."""
CERTIFICATE_EXPIRING = "KiamCertificateExpiring"
"""On the server's own pod and agents' pods."""
EXPIRY_EVENT_SECONDS = 1800.0
"""Between two Events about one certificate: the API keeps them for an hour."""
LONGEST_MESSAGE = 1024
"""Characters the API takes (validation of v1.Event)."""
WRITES_PER_SECOND, BURST = 10.0, 50
"""Bounds what refused pods can make the server write to the API, all of them together."""
REPEAT_INTERVAL, LONGEST_REPEAT_INTERVAL = 1.0, 300.0
"""Seconds between two writes of one Event, doubling with each: repeats in between are counted and written together."""
MOST_MESSAGES = 10
"""Different messages a pod gets for one reason; what else it provokes (a role's name is the pod's to choose) is
counted on one combined Event."""
COMBINED = "(combined from similar events): "
MOST_SERIES = 4096
"""Events remembered for counting; the one not seen for longest is forgotten first."""


class EventsApi(Protocol):
    """What is needed of the Kubernetes API."""

    async def post(self, path: str, body: dict[str, Any]) -> object:
        """Create an object. Raises KubeError."""

    async def patch(self, path: str, body: dict[str, Any]) -> None:
        """Merge fields into an object. Raises KubeError."""


@dataclass(slots=True)
class _Series:
    """One Event and how often it happened."""

    pod: Pod
    reason: str
    message: str
    first: datetime
    last: datetime
    count: int = 0
    writes: int = 0
    write_after: float = 0.0
    created: bool = False

    @property
    def name(self) -> str:
        """Unique for the pod, the reason, the message and the moment; a pod's name may be 253 characters long."""
        key = f"{self.pod.uid}/{self.reason}/{self.message}/{self.first.timestamp()}"
        return f"{self.pod.name[:200].rstrip('.-')}.{blake2b(key.encode(), digest_size=8).hexdigest()}"


class EventRecorder:
    """Counts and writes Events, at a bounded rate."""

    def __init__(self) -> None:
        self._series: OrderedDict[tuple[str, str, str], _Series] = OrderedDict()
        self._messages: dict[tuple[str, str], int] = {}
        self._unwritten: dict[tuple[str, str, str], None] = {}
        self._work = asyncio.Event()

    def __len__(self) -> int:
        return len(self._series)

    def record(self, pod: Pod, reason: str, message: str) -> None:
        """Note that something happened to a pod. Returns at once; :meth:`run` writes."""
        message = message[:LONGEST_MESSAGE]
        key = (pod.uid, reason, message)
        series = self._series.get(key)
        if series is None and self._messages.get(key[:2], 0) >= MOST_MESSAGES:
            # The attack stopped: a pod that asks for ever new names would fill etcd with Events.
            key = (pod.uid, reason, COMBINED)
            series = self._series.get(key)
            message = (COMBINED + message)[:LONGEST_MESSAGE]
        now = datetime.now(UTC)
        if series is None:
            series = self._series[key] = _Series(pod, reason, message, now, now)
            self._messages[key[:2]] = self._messages.get(key[:2], 0) + 1
            self._forget_oldest()
        self._series.move_to_end(key)
        series.count += 1
        series.last = now
        self._unwritten[key] = None
        self._work.set()

    async def run(self, api: EventsApi) -> None:
        """Write what is recorded, for ever."""
        tokens, refilled = float(BURST), time.monotonic()
        delay: float | None = None
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._work.wait()
            self._work.clear()
            now = time.monotonic()
            tokens, refilled = min(BURST, tokens + (now - refilled) * WRITES_PER_SECOND), now
            for key in list(self._unwritten):
                series = self._series.get(key)
                if series is None:
                    del self._unwritten[key]
                elif time.monotonic() >= series.write_after and tokens >= 1:
                    del self._unwritten[key]
                    tokens -= 1
                    await self._write(api, series)
            delay = 1.0 if self._unwritten else None
            # One pass looks at everything unwritten; refusals by the thousand must not make it run all the time.
            await asyncio.sleep(1 / WRITES_PER_SECOND)

    def _forget_oldest(self) -> None:
        while len(self._series) > MOST_SERIES:
            key, _ = self._series.popitem(last=False)
            self._unwritten.pop(key, None)
            left = self._messages[key[:2]] - 1
            if left:
                self._messages[key[:2]] = left
            else:
                del self._messages[key[:2]]

    async def _write(self, api: EventsApi, series: _Series) -> None:
        interval = min(REPEAT_INTERVAL * 2 ** min(series.writes, 20), LONGEST_REPEAT_INTERVAL)
        series.write_after = time.monotonic() + interval
        series.writes += 1
        path = f"/api/v1/namespaces/{series.pod.namespace}/events"
        try:
            if series.created:
                await self._count(api, path, series)
            else:
                await api.post(path, _body(series))
                series.created = True
        except KubeError as error:
            # A pod that is gone, a namespace that is ending, RBAC without events: an Event is worth one try.
            whose = {"pod.namespace": series.pod.namespace, "pod.name": series.pod.name}
            log.warning("event not written: %s", error, extra=whose)

    async def _count(self, api: EventsApi, path: str, series: _Series) -> None:
        try:
            await api.patch(
                f"{path}/{series.name}",
                {"count": series.count, "lastTimestamp": _time(series.last), "message": series.message},
            )
        except KubeError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            # The API keeps Events for an hour.
            await api.post(path, _body(series))


def _body(series: _Series) -> dict[str, Any]:
    """A v1.Event."""
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": series.name, "namespace": series.pod.namespace},
        "involvedObject": {
            "apiVersion": "v1",
            "kind": "Pod",
            "namespace": series.pod.namespace,
            "name": series.pod.name,
            "uid": series.pod.uid,
        },
        "type": "Warning",
        "reason": series.reason,
        "message": series.message,
        "source": {"component": COMPONENT},
        "firstTimestamp": _time(series.first),
        "lastTimestamp": _time(series.last),
        "count": series.count,
    }


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
