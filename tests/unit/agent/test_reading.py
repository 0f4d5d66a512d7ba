"""Bytes in, events out: what a connection's reader tells, without a connection."""

from __future__ import annotations

import pytest

from kiam.agent.http.messages import Request, Response
from kiam.agent.http.reading import TOO_LARGE, BodyUse, Event, Expectation, RequestReader
from kiam.agent.settings import Limits

LIMITS = Limits(line=200, field=300, fields=8, head=2000, body=100)
GET = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"


def reader(use: BodyUse = BodyUse.KEPT) -> RequestReader:
    return RequestReader(LIMITS, lambda _: use, "10.0.0.2", "u1", ("10.0.0.2", 4000))


def names(events: list[Event]) -> list[str | int]:
    """Targets of requests, statuses of refusals, and wishes by their name."""
    return [
        event.target if isinstance(event, Request) else event.status if isinstance(event, Response) else event.name
        for event in events
    ]


def test_requests_come_in_order_with_who_asks() -> None:
    made = reader()
    events = made.feed(GET + GET[:10], 0)
    assert names(events) == ["/a"]
    assert isinstance(events[0], Request)
    assert (events[0].client, events[0].uid, events[0].keep_alive) == ("10.0.0.2", "u1", True)
    assert made.is_in_message
    assert names(made.feed(GET[10:], 0)) == ["/a"]
    assert not made.is_in_message


def test_a_wish_for_100_comes_before_the_request() -> None:
    made = reader()
    assert made.feed(POST, 0) == [Expectation.CONTINUE]
    (request,) = made.feed(b"body", 0)
    assert isinstance(request, Request)
    assert request.body == b"body"


@pytest.mark.parametrize(
    ("sent", "use", "told"),
    [
        (b"GET /a HTTP/1.1\r\nConnection: close\r\n\r\n", BodyUse.KEPT, ["/a"]),
        (POST, BodyUse.UNREAD, ["/b"]),
        (b"POST /b HTTP/1.1\r\nContent-Length: 101\r\n\r\n", BodyUse.KEPT, [TOO_LARGE.status]),
        (b"GET /a HTTP/1.1\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n", BodyUse.KEPT, ["/a"]),
        (b"nonsense\r\n\r\n", BodyUse.KEPT, [400]),
        (GET + b"GET /" + b"a" * 200, BodyUse.KEPT, ["/a", 400]),
        (GET * 40, BodyUse.KEPT, ["/a"] * 33 + [400]),
    ],
)
def test_what_ends_the_reading_is_the_last_event(sent: bytes, use: BodyUse, told: list[str | int]) -> None:
    made = reader(use)
    assert names(made.feed(sent, 0)) == told
    assert made.is_ended
    assert not made.is_in_message
    assert made.feed(GET, 0) == []


def test_requests_that_wait_already_count() -> None:
    made = reader()
    assert names(made.feed(GET, 31)) == ["/a"]
    assert names(made.feed(GET, 32)) == ["/a", 400]


def test_nothing_is_told_after_the_end_of_the_connection() -> None:
    made = reader()
    made.close()
    assert made.feed(GET, 0) == []
