"""Whatever bytes a pod sends, in whatever pieces: no exception, bounded memory, and what is answered is what was asked.

The oracle is a second parser: h11, which shares no code with llhttp.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Sequence
from unittest.mock import Mock

import h11
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from kiam.agent.http.connection import Connection
from kiam.agent.http.messages import Plain, Request, Response, recognise
from kiam.agent.http.pod_server import PodServer
from kiam.agent.http.reading import BodyUse
from kiam.agent.metrics import AgentMetrics
from kiam.agent.settings import Limits

LIMITS = Limits(line=200, field=300, fields=8, head=2000, body=100)


class Echo:
    """Answers with what it was asked, and remembers it."""

    draining = False

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.at_once_asked: list[Plain] = []

    def at_once(self, address: str, plain: Plain, uid: str | None) -> bytes | None:
        self.at_once_asked.append(plain)
        return None

    def body_use(self, request: Request) -> BodyUse:
        return {"PUT": BodyUse.KEPT, "POST": BodyUse.IGNORED}.get(request.method, BodyUse.UNREAD)

    async def respond(self, request: Request) -> Response:
        self.asked.append(request)
        return Response(200, request.target.encode("latin-1"))


class Wire:
    """A connection fed by hand, and what it wrote."""

    def __init__(self) -> None:
        self.echo = Echo()
        self.written = bytearray()
        self.transport = Mock(spec=asyncio.Transport)
        self.transport.get_extra_info.side_effect = lambda name: ("10.0.0.2", 40000) if name == "peername" else None
        self.transport.write.side_effect = self.written.extend
        self.server = PodServer(self.echo, LIMITS, AgentMetrics(CollectorRegistry()))
        self.connection: Connection = self.server()

    async def exchange(self, pieces: Sequence[bytes]) -> bytes:
        self.connection.connection_made(self.transport)
        for piece in pieces:
            self.connection.data_received(piece)
            await asyncio.sleep(0)
        for _ in range(3 * (len(pieces) + 4)):
            await asyncio.sleep(0)
        self.connection.connection_lost(None)
        return bytes(self.written)


def run(pieces: Sequence[bytes]) -> tuple[Echo, bytes]:
    async def exchange() -> tuple[Echo, bytes]:
        wire = Wire()
        return wire.echo, await wire.exchange(pieces)

    return asyncio.run(exchange())


METHODS = st.sampled_from([b"GET", b"HEAD", b"PUT", b"POST", b"DELETE", b"OPTIONS", b"CONNECT", b"get", b"PRI", b""])
TARGETS = st.one_of(
    st.sampled_from([b"/", b"/ping", b"/latest/meta-data/iam/security-credentials/app", b"*", b"http://x/", b"/a b"]),
    st.binary(max_size=250),
)
FIELDS = st.one_of(
    st.sampled_from(
        [
            b"Host: x", b"Connection: close", b"Connection: keep-alive", b"Connection: Upgrade", b"Upgrade: h2c",
            b"Content-Length: 0", b"Content-Length: 5", b"Content-Length: 05", b"Content-Length: -1",
            b"Content-Length: 5, 5", b"Content-Length: 999999", b"Transfer-Encoding: chunked",
            b"Transfer-Encoding: identity", b"Transfer-Encoding: xchunked", b"Transfer-Encoding : chunked",
            b"Expect: 100-continue", b" folded", b"X: a\rb", b"X: a\x00b", b"X-aws-ec2-metadata-token: t",
        ]
    ),
    st.binary(max_size=40),
    st.builds(lambda size: b"X: " + b"y" * size, st.integers(0, 400)),
)  # fmt: skip
ENDS = st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r"])
BODIES = st.sampled_from(
    [
        b"",
        b"",
        b"hello",
        b"0\r\n\r\n",
        b"5\r\nhello\r\n0\r\n\r\n",
        b"5;x\r\nhello\r\n0\r\nT: x\r\n\r\n",
        b"g\r\n",
        b"GET / ",
    ]
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    end = draw(ENDS)
    line = b" ".join(
        [draw(METHODS), draw(TARGETS), draw(st.sampled_from([b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b""]))]
    )
    return end.join([line, *draw(st.lists(FIELDS, max_size=10)), b"", draw(BODIES)])


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    marks = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in itertools.pairwise(marks)]


SETTINGS = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@given(st.lists(requests(), min_size=1, max_size=4).map(b"".join), st.lists(st.integers(0, 4000), max_size=6))
@SETTINGS
def test_pieces_make_no_difference(data: bytes, places: Sequence[int]) -> None:
    whole, _ = run([data])
    pieces, _ = run(cut(data, places))
    assert pieces.asked[: len(whole.asked)] == whole.asked[: len(pieces.asked)]
    assert len(pieces.asked) == len(whole.asked)


@given(st.lists(requests(), min_size=1, max_size=4).map(b"".join))
@SETTINGS
def test_requests_are_those_that_another_parser_sees(data: bytes) -> None:
    """Nothing that one parser takes for a body is a request to the other: no smuggling."""
    echo, _ = run([data])
    theirs = h11_requests(data)
    for ours, other in zip(echo.asked, theirs, strict=False):
        assert (ours.method, ours.target, ours.body) == other
    # h11 may be stricter, but for leading blank lines and blanks never takes more.
    assert len(echo.asked) <= len(theirs) or refused_by_h11(data, len(theirs))


@given(st.binary(max_size=3000))
@SETTINGS
def test_any_bytes_are_answered_or_waited_for(data: bytes) -> None:
    echo, written = run([data])
    assert all(re.match(rb"HTTP/1\.1 \d{3} ", part) for part in [written] if part)
    assert len(echo.asked) <= data.count(b"\n")


@given(requests())
@SETTINGS
def test_what_is_recognised_at_first_sight_is_what_is_parsed(data: bytes) -> None:
    plain = recognise(data)
    if plain is None:
        return
    echo, _ = run([data])
    (request,) = echo.asked
    assert request.method == "GET"
    assert request.keep_alive
    assert request.values("x-aws-ec2-metadata-token") == ([] if plain.token is None else [plain.token])


def h11_requests(data: bytes) -> list[tuple[str, str, bytes]]:
    """What h11 makes of the bytes, bodies as :class:`Echo` wants them."""
    found: list[tuple[str, str, bytes]] = []
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                found.append((event.method.decode(), event.target.decode("latin-1"), b""))
            elif isinstance(event, h11.Data):
                method, target, body = found[-1]
                found[-1] = (method, target, body + bytes(event.data) if method == "PUT" else b"")
            elif isinstance(event, h11.EndOfMessage):
                connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                connection.send(h11.EndOfMessage())
                connection.start_next_cycle()
            elif event in (h11.NEED_DATA, h11.PAUSED) or isinstance(event, h11.ConnectionClosed):
                return found
    except (h11.RemoteProtocolError, h11.LocalProtocolError):
        return found


def refused_by_h11(data: bytes, seen: int) -> bool:
    """Whether h11 stopped at an error after so many requests, rather than taking the rest for a body."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    finished = 0
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.EndOfMessage):
                finished += 1
                connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                connection.send(h11.EndOfMessage())
                connection.start_next_cycle()
            elif event in (h11.NEED_DATA, h11.PAUSED) or isinstance(event, h11.ConnectionClosed):
                return False
    except (h11.RemoteProtocolError, h11.LocalProtocolError):
        return finished >= seen - 1


@pytest.mark.parametrize(
    "data",
    [
        # A body behind an upgrade, and behind a GET whose body nobody reads, would be requests.
        b"PUT /a HTTP/1.1\r\nUpgrade: x\r\nConnection: upgrade\r\nContent-Length: 19\r\n\r\nGET /b HTTP/1.1\r\n\r\n",
        b"GET /a HTTP/1.1\r\nContent-Length: 19\r\n\r\nGET /b HTTP/1.1\r\n\r\n",
        b"GET /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /b HTTP/1.1\r\n\r\n",
        b"CONNECT a:80 HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\n",
        b"POST /a HTTP/1.0\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\nGET /b HTTP/1.1\r\n\r\n",
        b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\nGET /b HTTP/1.1\r\n\r\n",
    ],
)
def test_nothing_behind_an_odd_message_is_a_request(data: bytes) -> None:
    for pieces in ([data], [data[index : index + 1] for index in range(len(data))]):
        echo, _ = run(pieces)
        assert "/b" not in [request.target for request in echo.asked]


def test_headers_without_end_are_cut_before_they_fill_memory() -> None:
    for endless in (b"X: " + b"y" * 100, b"GET /" + b"y" * 100):

        async def fill(piece: bytes = endless) -> Wire:
            wire = Wire()
            wire.connection.connection_made(wire.transport)
            wire.connection.data_received(b"GET / HTTP/1.1\r\n" if piece.startswith(b"X") else b"")
            for _ in range(LIMITS.head // 100 + 2):
                wire.connection.data_received(piece)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            return wire

        wire = asyncio.run(fill())
        assert bytes(wire.written).startswith(b"HTTP/1.1 400 ")
        assert wire.connection._is_ending


def test_requests_sent_far_ahead_are_cut() -> None:
    echo, written = run([b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n" * 500])
    assert len(echo.asked) <= 40
    assert written.endswith(b"the request can't be parsed\n")
    assert written.count(b"HTTP/1.1 200 ") == len(echo.asked)


@pytest.mark.parametrize("ahead", [b"", b"GET /first HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_a_trailer_without_end_is_cut_before_the_parser_keeps_it(ahead: bytes) -> None:
    opening = b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Trailer: "

    async def exchange() -> bytes:
        wire = Wire()
        written = await wire.exchange([ahead + opening, *[b"a" * 1000] * 4])
        assert wire.connection._is_ending  # what comes now isn't kept
        return written

    assert asyncio.run(exchange()).count(b"HTTP/1.1 400") == 1


@pytest.mark.parametrize("size", [1, 60, 100])
def test_a_body_in_chunks_with_a_trailer_is_taken_whatever_its_pieces(size: int) -> None:
    body = b"".join(b"%x\r\n%b\r\n" % (size, b"b" * size) for _ in range(100 // size))
    request = b"PUT /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + body + b"0\r\nX: y\r\n\r\n"
    for pieces in ([request], [request[at : at + 1] for at in range(len(request))]):
        echo, _ = run(pieces)
        assert [asked.body for asked in echo.asked] == [b"b" * (100 // size * size)]
