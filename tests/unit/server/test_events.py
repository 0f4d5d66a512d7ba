"""Events: counted, bounded, and never waited for."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from kiam.server.kubernetes import events as module
from kiam.server.kubernetes.api import KubeError
from kiam.server.kubernetes.events import COMBINED, EventRecorder
from kiam.server.kubernetes.objects import Pod
from tests.sandbox.process import until


def make(name: str = "a", uid: str = "u") -> Pod:
    return Pod(uid, "apps", name, "n1", "192.0.2.1", ("10.0.0.1",), "role", "", "", True, False, False)


class Api:
    """Keeps Events as the Kubernetes API would."""

    def __init__(self) -> None:
        self.events: dict[str, dict[str, Any]] = {}
        self.writes = 0
        self.error: KubeError | None = None

    async def post(self, path: str, body: dict[str, Any]) -> None:
        self.writes += 1
        if self.error is not None:
            raise self.error
        assert path == "/api/v1/namespaces/apps/events"
        self.events[body["metadata"]["name"]] = body

    async def patch(self, path: str, body: dict[str, Any]) -> None:
        self.writes += 1
        if self.error is not None:
            raise self.error
        name = path.rpartition("/")[2]
        if name not in self.events:
            raise KubeError("not found", 404)
        self.events[name].update(body)


@asynccontextmanager
async def recording(
    monkeypatch: pytest.MonkeyPatch, interval: float = 0.02
) -> AsyncIterator[tuple[EventRecorder, Api]]:
    monkeypatch.setattr(module, "REPEAT_INTERVAL", interval)
    monkeypatch.setattr(module, "WRITES_PER_SECOND", 1000.0)
    recorder, api = EventRecorder(), Api()
    task = asyncio.create_task(recorder.run(api))
    try:
        yield recorder, api
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_repeats_are_counted_on_one_event(monkeypatch: pytest.MonkeyPatch) -> None:
    async with recording(monkeypatch) as (recorder, api):
        recorder.record(make(), "KiamRoleForbidden", "no")
        await until(lambda: api.events)
        for _ in range(41):
            recorder.record(make(), "KiamRoleForbidden", "no")
        (event,) = api.events.values()
        await until(lambda: event["count"] == 42)
        assert event["metadata"]["name"].startswith("a.")
        assert (event["reason"], event["message"], event["type"]) == ("KiamRoleForbidden", "no", "Warning")
        assert event["involvedObject"] == {
            "apiVersion": "v1", "kind": "Pod", "namespace": "apps", "name": "a", "uid": "u",
        }  # fmt: skip


async def test_repeats_are_written_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    async with recording(monkeypatch, interval=60) as (recorder, api):
        recorder.record(make(), "R", "no")
        await until(lambda: api.events)
        for _ in range(1000):
            recorder.record(make(), "R", "no")
            await asyncio.sleep(0)
        assert api.writes == 1


async def test_pods_reasons_and_messages_have_events_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    async with recording(monkeypatch) as (recorder, api):
        recorder.record(make(), "R", "no")
        recorder.record(make(), "R", "never")
        recorder.record(make(), "S", "no")
        recorder.record(make("b", "v"), "R", "no")
        await until(lambda: len(api.events) == 4)


async def test_ever_new_messages_end_in_one_combined_event(monkeypatch: pytest.MonkeyPatch) -> None:
    async with recording(monkeypatch) as (recorder, api):
        for number in range(500):
            recorder.record(make(), "R", f"guess {number}")
        await until(lambda: [e for e in api.events.values() if e["message"].startswith(COMBINED) and e["count"] == 490])
        assert len(api.events) == 11


async def test_event_the_api_has_forgotten_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with recording(monkeypatch) as (recorder, api):
        recorder.record(make(), "R", "no")
        await until(lambda: api.events)
        api.events.clear()
        recorder.record(make(), "R", "no")
        await until(lambda: [event["count"] for event in api.events.values()] == [2])


async def test_refused_write_is_logged_and_does_not_stop_the_next(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with recording(monkeypatch) as (recorder, api):
        api.error = KubeError("events is forbidden", 403)
        recorder.record(make(), "R", "no")
        await until(lambda: "events is forbidden" in caplog.text)
        api.error = None
        recorder.record(make("b", "v"), "R", "no")
        await until(lambda: api.events)


async def test_number_of_series_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_SERIES", 100)
    recorder = EventRecorder()
    for number in range(1000):
        recorder.record(make(uid=str(number)), "R", "no")
    assert len(recorder) == 100


class StoppedClock:
    """Counts how often it is read."""

    def __init__(self) -> None:
        self.reads = 0

    def monotonic(self) -> float:
        self.reads += 1
        return 1000.0

    time = monotonic


async def test_rate_of_writes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BURST", 20)
    clock = StoppedClock()
    monkeypatch.setattr(module, "time", clock)
    numbers = itertools.count()

    def provoke() -> int:
        recorder.record(make(uid=str(next(numbers))), "R", "no")
        return clock.reads

    async with recording(monkeypatch) as (recorder, api):
        await until(lambda: provoke() > 0 and api.writes >= 20)
        enough = clock.reads + 500
        # Each pass over what is unwritten reads the clock.
        await until(lambda: provoke() > enough)
        assert api.writes == 20


async def test_messages_and_names_fit_the_api(monkeypatch: pytest.MonkeyPatch) -> None:
    async with recording(monkeypatch) as (recorder, api):
        recorder.record(make(name="x" * 253), "R", "m" * 5000)
        await until(lambda: api.events)
        (event,) = api.events.values()
        assert len(event["metadata"]["name"]) <= 253
        assert len(event["message"]) <= 1024
