"""Requests out of the bytes of one connection: HTTP/1.1 framing and its limits, on httptools' parser, without I/O.

The client is hostile. What it may do to the parser's framing ends the reading: whatever follows an error, an upgrade or
a body that isn't read is never taken for a request.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, Literal

import httptools

from kiam.agent.http.messages import Request, Response, text
from kiam.agent.settings import Limits

_MOST_PIPELINED = 32
"""Requests of a connection that may be sent before the first is answered; no SDK sends two."""


class BodyUse(enum.Enum):
    """What becomes of a request's body."""

    KEPT = "kept"
    """It is read, and part of the request."""
    IGNORED = "ignored"
    """It is read, so that the connection can go on, and thrown away."""
    UNREAD = "unread"
    """The request is answered without it, and the connection ends."""


class Expectation(enum.Enum):
    """What a client waits for before it sends a body."""

    CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
    """The interim answer that tells it to go on. Who asks for it waits a second or more (RFC 9110, section 10.1.1)."""


Event = Request | Response | Literal[Expectation.CONTINUE]
"""A whole request; an answer that refuses what was sent, which is the last event; or a wish."""

TOO_LARGE = text("the request's body is too large\n", 413)
_UNPARSABLE = text("the request can't be parsed\n", 400)


class _RefusedError(Exception):
    """Raised in the parser's callbacks, to stop it there."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status)
        self.response = response


class RequestReader:
    """Bytes in, events out. ``is_in_message``: a request has begun to come and isn't whole; ``is_ended``: whatever
    comes from now on is no request, and isn't to be fed."""

    __slots__ = (
        "_body", "_body_size", "_body_use", "_body_use_of", "_client", "_events", "_fields", "_head_size", "_limits",
        "_parser", "_peer", "_request", "_tail_size", "_uid", "_url", "_waiting", "is_ended", "is_in_message",
    )  # fmt: skip

    def __init__(
        self,
        limits: Limits,
        body_use_of: Callable[[Request], BodyUse],
        client: str,
        uid: str | None,
        peer: tuple[Any, ...] | None,
    ) -> None:
        """``client``, ``uid`` and ``peer`` are who all requests are from, as in :class:`Request`."""
        self._limits = limits
        self._body_use_of = body_use_of
        self._client, self._uid, self._peer = client, uid, peer
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        self._events: list[Event] = []
        self._waiting = 0
        self._request: Request | None = None
        self.is_in_message = False
        self.is_ended = False
        self._begin()

    def feed(self, data: bytes, waiting: int) -> list[Event]:
        """What the bytes bring; ``waiting``: how many requests before them aren't answered yet."""
        self._events, self._waiting = [], waiting
        parser = self._parser
        if parser is None or self.is_ended:
            return []
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._end()
        except httptools.HttpParserError as error:
            if not self.is_ended:
                cause = error.__context__
                self._refuse(cause.response if isinstance(cause, _RefusedError) else _UNPARSABLE)
        else:
            if self.is_in_message and self._is_endless(len(data)):
                self._refuse(_UNPARSABLE)
        return self._events

    def close(self) -> None:
        """Nothing is fed any more: let go of the parser, which holds this object's methods."""
        self._parser = None

    # ---- httptools' callbacks

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        if not self.is_ended:
            self._begin()
            self.is_in_message = True

    def on_url(self, url: bytes) -> None:
        """A piece of the request's target."""
        self._url += url
        if len(self._url) > self._limits.line:
            raise _RefusedError(_UNPARSABLE)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A whole header field."""
        limits = self._limits
        if len(self._fields) >= limits.fields or len(name) + len(value) > limits.field:
            raise _RefusedError(_UNPARSABLE)
        self._fields.append((name.decode("latin-1").lower(), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        """Decide what becomes of the body."""
        parser = self._parser
        if self.is_ended or parser is None:
            return
        version = parser.get_http_version()
        if version not in ("1.0", "1.1"):
            raise _RefusedError(_UNPARSABLE)
        request = Request(
            method=parser.get_method().decode("ascii"),
            target=bytes(self._url).decode("latin-1"),
            fields=tuple(self._fields),
            client=self._client,
            uid=self._uid,
            peer=self._peer,
            # Which attack: after an upgrade the parser leaves the framing to us, and a body would be read as requests.
            keep_alive=parser.should_keep_alive() and not parser.should_upgrade(),
            is_old=version == "1.0",
        )
        self._request = request
        length = request.values("content-length")
        if not request.values("transfer-encoding") and length in ([], ["0"]):
            return
        self._body_use = self._body_use_of(request)
        if self._body_use is BodyUse.UNREAD or parser.should_upgrade():
            self._take(request.last())
        elif length and int(length[0]) > self._limits.body:
            raise _RefusedError(TOO_LARGE)
        elif not request.is_old and _expects_continue(request):
            self._events.append(Expectation.CONTINUE)

    def on_body(self, body: bytes) -> None:
        """A piece of a request's body."""
        if self.is_ended:
            return
        self._body_size += len(body)
        self._tail_size = 0
        if self._body_size > self._limits.body:
            raise _RefusedError(TOO_LARGE)
        if self._body_use is BodyUse.KEPT:
            self._body += body

    def on_message_complete(self) -> None:
        """A whole request has come."""
        self.is_in_message = False
        request = self._request
        if self.is_ended or request is None:
            return
        self._take(request.with_body(bytes(self._body)) if self._body else request)

    # ---- the message that comes

    def _begin(self) -> None:
        self._url = bytearray()
        self._fields: list[tuple[str, str]] = []
        self._body = bytearray()
        self._body_use = BodyUse.IGNORED
        self._request = None
        # Bytes of the headers so far, and of the body.
        self._head_size = self._body_size = 0
        # Bytes read since the last piece of the body: of a chunk's head, or of trailers.
        self._tail_size = 0

    def _is_endless(self, size: int) -> bool:
        """Count bytes in. Which attack: one field without end, of the headers or behind a body in chunks (a trailer),
        which the parser keeps until it ends."""
        limits = self._limits
        if self._request is None:
            self._head_size += size
            return self._head_size > limits.head
        # Read together with the end of the body, which isn't counted as such.
        self._tail_size += size
        return self._tail_size > limits.head + limits.body

    def _take(self, request: Request) -> None:
        self._events.append(request)
        self._waiting += 1
        if not request.keep_alive:
            self._end()
        elif self._waiting > _MOST_PIPELINED:
            raise _RefusedError(_UNPARSABLE)

    def _refuse(self, response: Response) -> None:
        self._events.append(response)
        self._end()

    def _end(self) -> None:
        self.is_ended = True
        self.is_in_message = False


def _expects_continue(request: Request) -> bool:
    return any(value.casefold() == "100-continue" for value in request.values("expect"))
