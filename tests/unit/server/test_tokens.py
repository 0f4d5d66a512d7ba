"""Reviews of service account tokens: whoever makes up tokens holds up itself and nobody else."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest

from kiam.server.grpc.container_credentials import ContainerCredentials, Question, RefusedError
from kiam.server.kubernetes.tokens import AUDIENCE, MOST_AT_ONCE, TokenRefusedError, TokenReviewer
from tests.sandbox.process import until

NOW = 1_800_000_000.0


class Api:
    """Refuses every token, once it is let."""

    def __init__(self) -> None:
        self.asked = 0
        self.under_way = 0
        self.answers = asyncio.Event()

    async def post(self, path: str, body: dict[str, Any]) -> bytes:
        self.asked += 1
        self.under_way += 1
        try:
            await self.answers.wait()
        finally:
            self.under_way -= 1
        return b'{"status": {"authenticated": false}}'


def token(number: int) -> str:
    claims = {"aud": AUDIENCE, "exp": NOW + 1000, "number": number, "kubernetes.io": {"pod": {"uid": "u"}}}
    return f"a.{base64.urlsafe_b64encode(json.dumps(claims).encode()).decode()}.c"


async def test_reviews_nobody_waits_for_any_more_are_not_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    api = Api()
    reviewer = TokenReviewer(api, lambda: NOW)
    for number in range(1000):
        asked = asyncio.create_task(reviewer.review(token(number), "10.0.0.1"))
        await asyncio.sleep(0)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
    await until(lambda: api.under_way == 0)
    asked = asyncio.create_task(reviewer.review(token(-1), "10.0.0.2"))
    await until(lambda: api.under_way == 1)
    api.answers.set()
    with pytest.raises(TokenRefusedError):
        await asked
    assert (reviewer._lanes, reviewer._under_way) == ({}, {})
    assert [record for record in caplog.records if record.name == "asyncio"] == []


async def test_an_address_with_many_tokens_has_one_review_at_a_time() -> None:
    api = Api()
    reviewer = TokenReviewer(api, lambda: NOW)
    flood = [asyncio.create_task(reviewer.review(token(number), "10.0.0.1")) for number in range(100)]
    await until(lambda: api.under_way == 1)
    others = [
        asyncio.create_task(reviewer.review(token(1000 + number), f"10.0.1.{number}"))
        for number in range(MOST_AT_ONCE - 1)
    ]
    await until(lambda: api.under_way == MOST_AT_ONCE)
    assert api.asked == MOST_AT_ONCE
    api.answers.set()
    outcomes = await asyncio.gather(*flood, *others, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {TokenRefusedError}


async def test_pods_that_share_the_nodes_address_are_askers_of_their_own() -> None:
    reviewer = Mock(review=AsyncMock(side_effect=TokenRefusedError("no")))
    credentials = ContainerCredentials(reviewer, Mock(), Mock(), Mock())
    for uid in ("one", "two", ""):
        with pytest.raises(RefusedError):
            await credentials.grant(Question("token", "192.0.2.10", uid, None), Mock(), Mock(left=lambda: 5.0))
    assert [call.args[1] for call in reviewer.review.await_args_list] == ["one", "two", "192.0.2.10"]


async def test_one_asker_that_leaves_takes_nothing_from_the_others_who_wait() -> None:
    api = Api()
    reviewer = TokenReviewer(api, lambda: NOW)
    first, second = (asyncio.create_task(reviewer.review(token(1), "10.0.0.1")) for _ in range(2))
    await until(lambda: api.under_way == 1)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    api.answers.set()
    with pytest.raises(TokenRefusedError):
        await second
    assert api.asked == 1
