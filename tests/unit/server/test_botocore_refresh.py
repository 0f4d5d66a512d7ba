"""How long the credentials handed out have to live, judged by what the real botocore does with them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import botocore.compat
import botocore.credentials
import botocore.session
import botocore.utils
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kiam.server.aws.contract import Issued
from kiam.server.aws.lifetime import Held, hold
from kiam.server.settings import DEFAULT_REFRESH

START = 1_800_000_000.0
STS_SECONDS = 5.0
"""A slow answer, and the way to the node."""


class Clock:
    def __init__(self) -> None:
        self.now = START

    def wall(self) -> float:
        return self.now

    def elapsed(self) -> float:
        return self.now


class Answer:
    status_code = 200

    def __init__(self, text: str) -> None:
        self.text = text
        self.content = text.encode()


class Node:
    """Instance metadata as the agent serves it: credentials that the server holds, and renews when they are due."""

    def __init__(self, clock: Clock, duration: timedelta, refresh: timedelta) -> None:
        self.clock, self.duration, self.refresh = clock, duration, refresh
        self.ends: dict[str, float] = {}
        self.held = self._issue()

    def _issue(self) -> Held:
        now = datetime.fromtimestamp(self.clock.now, UTC)
        key = f"AKIA{len(self.ends)}"
        self.ends[key] = self.clock.now + self.duration.total_seconds()
        return hold(Issued(key, "s", "t", now + self.duration, now), self.refresh, self.duration, self.clock)

    def wait(self, seconds: float) -> None:
        end = self.clock.now + seconds
        while (due := self.clock.now + self.held.left(self.clock) - self.held.renewed_left + STS_SECONDS) <= end:
            self.clock.now = max(due - STS_SECONDS, self.clock.now)
            renewed = self._issue()
            self.clock.now = due
            self.held = renewed
        self.clock.now = end

    def send(self, request: Any) -> Answer:
        """Stands for the HTTP session of botocore's fetcher."""
        if request.method == "PUT":
            return Answer("token")
        if request.url.endswith("security-credentials/"):
            return Answer("app")
        document = self.held.message
        return Answer(
            json.dumps(
                {
                    "AccessKeyId": document.access_key_id,
                    "SecretAccessKey": document.secret_access_key,
                    "Token": document.token,
                    "Expiration": document.expiration,
                }
            )
        )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()

    def now(remove_tzinfo: bool = True) -> datetime:
        moment = datetime.fromtimestamp(clock.now, UTC)
        return moment.replace(tzinfo=None) if remove_tzinfo else moment

    monkeypatch.setattr(botocore.utils, "get_current_datetime", now)
    monkeypatch.setattr(
        botocore.credentials.RefreshableCredentials.__init__,
        "__defaults__",
        tuple(
            (lambda: now(False)) if value is botocore.credentials._local_now else value
            for value in botocore.credentials.RefreshableCredentials.__init__.__defaults__
        ),
    )
    yield clock
    clock.now = START


def seconds_past_their_end(clock: Clock, duration: timedelta, refresh: timedelta, pauses: list[float]) -> float:
    """The longest by which a client that signs something after each pause uses credentials past their end."""
    clock.now = START
    node = Node(clock, duration, refresh)
    provider = botocore.session.Session().get_component("credential_provider").get_provider("iam-role")
    provider._role_fetcher._session = node
    credentials: Any = None
    worst = 0.0
    for pause in pauses:
        node.wait(pause)
        if credentials is None:
            credentials = provider.load()
        used = credentials.get_frozen_credentials()
        worst = max(worst, clock.now - node.ends[used.access_key])
    return worst


SIGNING = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
pauses = st.lists(st.floats(1, 1500), min_size=5, max_size=60)


@SIGNING
@given(duration=st.sampled_from([15, 20, 60, 720]), pauses=pauses)
def test_botocore_never_uses_credentials_past_their_end_by_default(
    clock: Clock, duration: int, pauses: list[float]
) -> None:
    assert seconds_past_their_end(clock, timedelta(minutes=duration), DEFAULT_REFRESH, pauses) <= 0


@SIGNING
@given(pauses=pauses)
def test_nor_with_the_hour_and_25_minutes_that_are_recommended(clock: Clock, pauses: list[float]) -> None:
    assert seconds_past_their_end(clock, timedelta(hours=1), timedelta(minutes=25), pauses) <= 0


def test_conventional_five_minutes_are_used_past_their_end(clock: Clock) -> None:
    """Or the tests above would prove nothing."""
    worst = max(
        seconds_past_their_end(clock, timedelta(minutes=15), timedelta(minutes=5), [first] + [30.0] * 60)
        for first in range(480, 600, 10)
    )
    assert worst > 0
