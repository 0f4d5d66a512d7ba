"""One connection of a pod: HTTP/1.1 on httptools' parser, with limits that keep one pod from starving the others.

The client is hostile. What it may do to the parser's framing ends the connection: whatever follows an error, an
upgrade or a body that isn't read is never taken for a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
from collections import deque
from typing import TYPE_CHECKING, cast

import httptools

from kiam.agent.http.listener import original_destination
from kiam.agent.http.messages import Request, Response, asker_of, encode, recognise, text
from kiam.agent.http.paths import normalise_address

if TYPE_CHECKING:
    from kiam.agent.http.pod_server import PodServer

log = logging.getLogger(__name__)

_LINGER_SECONDS = 1.0
"""How long what is still sent is thrown away before the connection is closed, so that the answer isn't lost."""
_MOST_PIPELINED = 32
"""Requests of a connection that may be sent before the first is answered; no SDK sends two."""
_LINK_LOCAL = ("fe8", "fe9", "fea", "feb")
"""How the addresses of fe80::/10 begin (RFC 4291, section 2.4)."""
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_NEVER = float("inf")


class BodyUse(enum.Enum):
    """What becomes of a request's body."""

    KEPT = "kept"
    """It is read, and part of the request."""
    IGNORED = "ignored"
    """It is read, so that the connection can go on, and thrown away."""
    UNREAD = "unread"
    """The request is answered without it, and the connection ends."""


class _RefusedError(Exception):
    """Raised in the parser's callbacks, to stop it there."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status)
        self.response = response


_UNPARSABLE = text("the request can't be parsed\n", 400)
_TOO_LARGE = text("the request's body is too large\n", 413)
_TOO_SLOW = text("the request comes too slowly\n", 408)
_BUG = text("internal error of the kiam agent\n", 500)


class Connection(asyncio.Protocol):
    """asyncio's protocol of one connection. ``client_address`` is its peer, ``client_uid`` the peer's pod if known."""

    __slots__ = (
        "_body", "_body_use", "_deadline", "_drained", "_fields", "_head_size", "_in_message", "_is_ending",
        "_is_expected", "_is_paused", "_loop", "_parser", "_peer", "_queue", "_request", "_server", "_stalled",
        "_tail_size", "_task", "_timer", "_timer_at", "_transport", "_url", "asker", "client_address", "client_uid",
    )  # fmt: skip

    def __init__(self, server: PodServer) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpRequestParser | None = None
        self._queue: deque[tuple[Request | None, Response | None]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = _NEVER
        # When the headers being received must be complete, or an idle connection ends; never: an answer is being made.
        self._deadline = _NEVER
        self._is_expected = False
        self._stalled: asyncio.TimerHandle | None = None
        self._drained: asyncio.Future[None] | None = None
        self._in_message = False
        self._is_ending = False
        self._is_paused = False
        self._request: Request | None = None
        self._begin()
        self.client_address = ""
        self.client_uid: str | None = None
        self.asker = ""

    # ---- asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Let the client in."""
        self._transport = cast(asyncio.Transport, transport)
        self._peer = transport.get_extra_info("peername")
        self.client_address = normalise_address(self._peer[0]) if self._peer else ""
        if self.client_address.startswith(_LINK_LOCAL):
            # Which attack: a pod that may send raw packets has as many of these as it likes, each good for connections
            # and waiting requests like a pod's own. No pod is known by one, so nothing is lost.
            self._server.refused("link-local address")
            self._is_ending = True
            transport.close()
            return
        if self._server.peers is not None and self._peer:
            # Once a connection: the cgroup of a socket never changes.
            here = transport.get_extra_info("sockname")
            self.client_uid = self._server.peers.uid_of(
                (self.client_address, self._peer[1]),
                (normalise_address(here[0]), here[1]),
                original_destination(transport.get_extra_info("socket"), self.client_address),
            )
        self.asker = asker_of(self.client_address, self.client_uid)
        self._server.enter(self)
        self._expect(self._server.limits.header_time, is_expected=True)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget the client's connection; whoever waits for its answer stops waiting."""
        for timer in (self._timer, self._stalled):
            if timer is not None:
                timer.cancel()
        self._timer = self._stalled = None
        if self._task is not None:
            self._task.cancel()
        self._queue.clear()
        if self._transport is not None:
            self._server.leave(self)
        self._transport = None
        # It holds this object's methods.
        self._parser = None

    def data_received(self, data: bytes) -> None:
        """Answer a plain request here and now if the answer is at hand; parse everything else."""
        if self._is_ending:
            return
        if not self._in_message and self._task is None and self._stalled is None:
            plain = recognise(data)
            if plain is not None:
                answer = self._server.answering.at_once(self.client_address, plain, self.client_uid)
                if answer is not None and self._transport is not None:
                    # No timer is touched: the one there is sees the new deadline when it fires.
                    self._deadline = self._loop.time() + self._server.limits.idle_time
                    self._is_expected = False
                    self._transport.write(answer)
                    return
        self._feed(data)

    def eof_received(self) -> bool:
        """The client has hung up: nothing is waited for any more."""
        return False

    def pause_writing(self) -> None:
        """The client doesn't read; it has a while to start, and isn't read from meanwhile."""
        self._stalled = self._loop.call_later(self._server.limits.stall_time, self._cut_unread)
        self._drained = self._loop.create_future()
        self._pause()

    def resume_writing(self) -> None:
        """The client has read."""
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None
        if not self._queue:
            self._resume()

    # ---- httptools' callbacks

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self._begin()
        self._in_message = True

    def on_url(self, url: bytes) -> None:
        """A piece of the request's target."""
        self._url += url
        if len(self._url) > self._server.limits.line:
            raise _RefusedError(_UNPARSABLE)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A whole header field."""
        limits = self._server.limits
        if len(self._fields) >= limits.fields or len(name) + len(value) > limits.field:
            raise _RefusedError(_UNPARSABLE)
        self._fields.append((name.decode("latin-1").lower(), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        """Decide what becomes of the body."""
        parser = self._parser
        assert parser is not None
        version = parser.get_http_version()
        if version not in ("1.0", "1.1"):
            raise _RefusedError(_UNPARSABLE)
        request = Request(
            method=parser.get_method().decode("ascii"),
            target=bytes(self._url).decode("latin-1"),
            fields=tuple(self._fields),
            client=self.client_address,
            uid=self.client_uid,
            peer=self._peer,
            # Which attack: after an upgrade the parser leaves the framing to us, and a body would be read as requests.
            keep_alive=parser.should_keep_alive() and not parser.should_upgrade(),
            is_old=version == "1.0",
        )
        self._head_size = 0
        self._request = request
        length = request.values("content-length")
        has_body = bool(request.values("transfer-encoding")) or length not in ([], ["0"])
        if not has_body:
            return
        self._body_use = self._server.answering.body_use(request)
        if self._body_use is BodyUse.UNREAD or parser.should_upgrade():
            self._take(request.last())
        elif length and int(length[0]) > self._server.limits.body:
            raise _RefusedError(_TOO_LARGE)
        elif self._task is None and not request.is_old and _expects_continue(request):
            # Whoever asks so waits a second or more for this before it sends its body (RFC 9110, section 10.1.1).
            self._write(_CONTINUE)

    def on_body(self, body: bytes) -> None:
        """A piece of a request's body."""
        if self._is_ending:
            return
        self._head_size += len(body)
        self._tail_size = 0
        if self._head_size > self._server.limits.body:
            raise _RefusedError(_TOO_LARGE)
        if self._body_use is BodyUse.KEPT:
            self._body += body

    def on_message_complete(self) -> None:
        """A whole request has come."""
        self._in_message = False
        request = self._request
        if self._is_ending or request is None:
            return
        self._take(request.with_body(bytes(self._body)) if self._body else request)

    # ---- reading

    def _begin(self) -> None:
        self._url = bytearray()
        self._fields: list[tuple[str, str]] = []
        self._body = bytearray()
        self._body_use = BodyUse.IGNORED
        self._request = None
        # Bytes of the headers so far; once they are complete, of the body.
        self._head_size = 0
        # Bytes read since the last piece of the body: of a chunk's head, or of trailers.
        self._tail_size = 0

    def _feed(self, data: bytes) -> None:
        if self._parser is None:
            self._parser = httptools.HttpRequestParser(self)
        if not self._in_message and not self._is_expected and self._task is None:
            # Idle, and what came isn't a request known at first sight: the clock starts with its first byte.
            self._expect(self._server.limits.header_time, is_expected=True)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._end_reading()
        except httptools.HttpParserError as error:
            if not self._is_ending:
                cause = error.__context__
                self._refuse(cause.response if isinstance(cause, _RefusedError) else _UNPARSABLE)
        else:
            if self._in_message and self._is_endless(len(data)):
                self._refuse(_UNPARSABLE)

    def _is_endless(self, size: int) -> bool:
        """Count bytes in. Which attack: one field without end, of the headers or behind a body in chunks (a trailer),
        which the parser keeps until it ends."""
        limits = self._server.limits
        if self._request is None:
            self._head_size += size
            return self._head_size > limits.head
        # Read together with the end of the body, which isn't counted as such.
        self._tail_size += size
        return self._tail_size > limits.head + limits.body

    def _take(self, request: Request) -> None:
        """Have a request answered after those before it."""
        self._queue.append((request, None))
        if not request.keep_alive:
            self._end_reading()
        elif len(self._queue) > _MOST_PIPELINED:
            raise _RefusedError(_UNPARSABLE)
        self._work_on()

    def _refuse(self, response: Response) -> None:
        if response.status != 413:
            self._server.refused("unparsable")
        self._queue.append((None, response))
        self._end_reading()
        self._work_on()

    def _end_reading(self) -> None:
        """Whatever comes from now on is thrown away."""
        self._is_ending = True
        self._in_message = False

    def _pause(self) -> None:
        if self._transport is not None and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()

    def _resume(self) -> None:
        if self._transport is not None and self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()

    # ---- answering

    def _work_on(self) -> None:
        self._deadline = _NEVER
        self._is_expected = False
        if self._task is None:
            self._task = self._loop.create_task(self._work())
        elif not self._is_ending:
            # Somebody sends ahead; it may wait in the kernel.
            self._pause()

    async def _work(self) -> None:
        """Answer what is queued, in order."""
        try:
            while self._queue:
                request, refusal = self._queue.popleft()
                response = refusal or await self._respond(request)
                keep = request is not None and request.keep_alive and not self._server.answering.draining
                self._write(encode(response, request, self._server.date(), close=not keep))
                if not keep:
                    self._close()
                    return
                if self._drained is not None:
                    await self._drained
        finally:
            self._task = None
        self._resume()
        if self._in_message:
            self._expect(self._server.limits.header_time, is_expected=True)
        else:
            self._expect(self._server.limits.idle_time, is_expected=False)

    async def _respond(self, request: Request | None) -> Response:
        assert request is not None
        try:
            return await self._server.answering.respond(request)
        except Exception:
            log.exception("bug while answering %s", self.client_address)
            self._queue.clear()
            self._end_reading()
            return _BUG

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _close(self) -> None:
        """Close once the answers are read; what the client still sends would make the kernel throw them away."""
        transport = self._transport
        self._is_ending = True
        self._queue.clear()
        if transport is None:
            return
        self._resume()
        with contextlib.suppress(OSError):
            transport.write_eof()
        self._timer_at = 0.0
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(_LINGER_SECONDS, transport.close)

    def close(self) -> None:
        """Close now, whatever is under way."""
        if self._transport is not None:
            self._transport.abort()

    # ---- clocks

    def _expect(self, seconds: float, *, is_expected: bool) -> None:
        """Have the connection end in so many seconds unless something comes; ``is_expected``: a whole request."""
        if self._transport is None or self._is_ending:
            return
        self._deadline = self._loop.time() + seconds
        self._is_expected = is_expected
        if self._deadline < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._start_timer()

    def _start_timer(self) -> None:
        self._timer_at = self._deadline
        self._timer = self._loop.call_at(self._deadline, self._check)

    def _check(self) -> None:
        # One timer serves many requests: it is moved when it fires, not at each request.
        self._timer = None
        self._timer_at = _NEVER
        if self._transport is None or self._deadline == _NEVER:
            return
        if self._loop.time() < self._deadline:
            self._start_timer()
        elif self._is_expected:
            # Which attack: headers or a body that come a byte at a time, called Slowloris.
            self._server.refused("slow headers")
            self._write(encode(_TOO_SLOW, None, self._server.date(), close=True))
            self._end_reading()
            self._close()
        else:
            self._transport.close()

    def _cut_unread(self) -> None:
        self._server.refused("unread answers")
        # close() would wait for the buffer to drain, which is what doesn't happen.
        self.close()


def _expects_continue(request: Request) -> bool:
    return any(value.casefold() == "100-continue" for value in request.values("expect"))
