"""What the container credentials endpoint hands on to the server about who asks."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
from prometheus_client import CollectorRegistry

from kiam.agent.http.container_credentials import PATH, ContainerAnswers
from kiam.agent.http.messages import Request
from kiam.agent.metrics import AgentMetrics
from kiam.agent.settings import Limits


class Calls:
    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str]] = []

    async def container_credentials(self, token: str, address: str, uid: str, deadline: float) -> bytes:
        self.asked.append((token, address, uid))
        return b"{}"


@pytest.mark.parametrize(("known", "told"), [("uid-a", "uid-a"), (None, "")])
async def test_the_kernels_word_on_who_asks_goes_along_with_the_token(known: str | None, told: str) -> None:
    calls = Calls()
    answers = ContainerAnswers(calls, Mock(), Limits(), AgentMetrics(CollectorRegistry()))
    request = Request("GET", PATH, (("authorization", " token "),), "10.0.0.1", ("10.0.0.1", 4711), uid=known)
    assert (await answers.respond(request)).status == 200
    assert calls.asked == [("token", "10.0.0.1", told)]
