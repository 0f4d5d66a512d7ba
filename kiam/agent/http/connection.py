"""Connections from pods: aiohttp's HTTP protocol, with limits that keep one pod from starving the others."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

from aiohttp import web
from aiohttp.http import HttpVersion11, RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import RequestHandler

from kiam.agent.http.paths import normalise_address
from kiam.agent.metrics import AgentMetrics
from kiam.agent.settings import Limits

log = logging.getLogger(__name__)

_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_LINGERING = 1.0
"""Seconds to go on reading a body that nobody wants, before the connection is closed."""
_LINK_LOCAL = ("fe8", "fe9", "fea", "feb")
"""How the addresses of fe80::/10 begin (RFC 4291, section 2.4)."""
_NOTHING_PARSED: tuple[tuple[()], bool, bytes] = ((), False, b"")

AtOnce = Callable[[str, str], bytes | None]
"""From a client's address and a request target to a whole HTTP/1.1 answer; None: answer it the usual way."""


class Connection(RequestHandler):
    """One connection of a pod. ``client_address`` is who it is: the peer of the TCP connection, never a header."""

    __slots__ = ("_at_once", "_deadline", "_limits", "_metrics", "_server", "_stalled", "_timer", "client_address")

    def __init__(
        self, server: PodServer, limits: Limits, metrics: AgentMetrics, at_once: AtOnce, **options: Any
    ) -> None:
        super().__init__(server, **options)
        self._parser = cast(Any, _Parser(self._parser, self))
        self._at_once = at_once
        self._server = server
        self._limits = limits
        self._metrics = metrics
        self._timer: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        # When the headers being received must be complete; None: none are being received.
        self._deadline: float | None = None
        self.client_address = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Let the client in, unless it has too many connections already."""
        peer = transport.get_extra_info("peername")
        self.client_address = normalise_address(peer[0]) if peer else ""
        super().connection_made(transport)
        refusal = None if self._server.admit(self.client_address) else "too many connections"
        if self.client_address.startswith(_LINK_LOCAL):
            # Which attack: a pod that may send raw packets has as many of these as it likes, each good for connections
            # and waiting requests like a pod's own. No pod is known by one, so nothing is lost.
            refusal = "link-local address"
        if refusal is not None:
            self._metrics.refused_connections.labels(refusal).inc()
            self.force_close()
            return
        self._expect_headers()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget the client's connection and the timers."""
        for timer in (self._timer, self._stalled):
            if timer is not None:
                timer.cancel()
        self._timer = self._stalled = None
        if self._manager is not None:
            self._server.leave(self.client_address)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, and watch for headers that come too slowly (the attack called Slowloris)."""
        seen = self._request_count
        super().data_received(data)
        if self._request_count != seen:
            self._deadline = None
        elif self._waiter is not None and self._deadline is None:
            # Idle, and what came isn't a whole request: the clock starts with its first byte, not with each.
            self._expect_headers()

    def answer_at_once(self, message: RawRequestMessage, payload: object) -> bool:
        """Answer a request here and now if it is a plain one, nothing is before it, and the answer is at hand.

        Half of what aiohttp's way costs are the task, the request and the response objects of each request.
        """
        transport, waiter = self.transport, self._waiter
        if (
            transport is None
            or waiter is None
            or waiter.done()
            or self._messages
            or self._paused
            or self._close
            or self._force_close
            or payload is not EMPTY_PAYLOAD
            or message.method != "GET"
            or message.should_close
            or message.version != HttpVersion11
        ):
            return False
        answer = self._at_once(self.client_address, message.path)
        if answer is None:
            return False
        self._request_count += 1
        close_time = self._loop.time() + self._limits.idle_time
        self._next_keepalive_close_time = close_time
        if self._keepalive_handle is None:
            self._keepalive_handle = self._loop.call_at(close_time, self._process_keepalive)
        transport.write(answer)
        return True

    def pause_writing(self) -> None:
        """The client doesn't read; it has a while to start."""
        super().pause_writing()
        self._stalled = self._loop.call_later(self._limits.stall_time, self._cut, "unread answers")

    def resume_writing(self) -> None:
        """The client has read."""
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _expect_headers(self) -> None:
        self._deadline = self._loop.time() + self._limits.header_time
        if self._timer is None:
            self._timer = self._loop.call_at(self._deadline, self._check_headers)

    def _check_headers(self) -> None:
        self._timer = None
        if self._deadline is None or self.transport is None:
            return
        if self._loop.time() < self._deadline:
            # One timer serves many requests: it is moved when it fires, not at each request.
            self._timer = self._loop.call_at(self._deadline, self._check_headers)
            return
        self.transport.write(_TOO_SLOW)
        self._cut("slow headers")

    def _cut(self, reason: str) -> None:
        self._metrics.refused_connections.labels(reason).inc()
        transport = self.transport
        self.force_close()
        if transport is not None and reason == "unread answers":
            # close() would wait for the buffer to drain, which is what doesn't happen.
            transport.abort()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer in one line what aiohttp couldn't parse or what went wrong in here, and close."""
        if status == 500:
            log.error("bug while answering %s", self.client_address, exc_info=exc)
            line = "internal error of the kiam agent"
        else:
            self._metrics.refused_connections.labels("unparsable").inc()
            line = "the request can't be parsed"
        answer = web.Response(status=status, text=line + "\n", headers={"Server": "kiam"})
        answer.force_close()
        return answer


class _Parser:
    """aiohttp's parser, with what can be answered at once taken out before it is queued for a task."""

    __slots__ = ("_connection", "_parser", "feed_eof", "message_consumed", "pause_reading", "set_upgraded")

    def __init__(self, parser: Any, connection: Connection) -> None:
        self._parser = parser
        self._connection = connection
        self.feed_eof = parser.feed_eof
        self.message_consumed = parser.message_consumed
        self.pause_reading = parser.pause_reading
        self.set_upgraded = parser.set_upgraded

    def feed_data(self, data: bytes) -> tuple[Sequence[tuple[RawRequestMessage, Any]], bool, bytes]:
        parsed: tuple[Sequence[tuple[RawRequestMessage, Any]], bool, bytes] = self._parser.feed_data(data)
        messages = parsed[0]
        if len(messages) == 1 and not parsed[1] and self._connection.answer_at_once(*messages[0]):
            self.message_consumed()
            return _NOTHING_PARSED
        return parsed


class PodServer(web.Server):
    """Makes the connections, and counts them by client."""

    def __init__(
        self,
        handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        limits: Limits,
        metrics: AgentMetrics,
        at_once: AtOnce = lambda address, target: None,
    ) -> None:
        """``at_once`` is asked first, for plain requests; ``handler`` answers what it doesn't."""
        # handler_cancellation: a pod that hangs up while it waits stops being waited for.
        super().__init__(handler, handler_cancellation=True)
        self._limits = limits
        self._metrics = metrics
        self._at_once = at_once
        self._clients: dict[str, int] = {}
        self._empty = asyncio.Event()
        self._empty.set()

    def __call__(self) -> Connection:
        """Make the protocol of one connection."""
        return Connection(
            self,
            self._limits,
            self._metrics,
            self._at_once,
            loop=self._loop,
            keepalive_timeout=self._limits.idle_time,
            max_line_size=self._limits.line,
            max_field_size=self._limits.field,
            max_headers=self._limits.fields,
            lingering_time=_LINGERING,
            auto_decompress=False,
            access_log=None,
        )

    def admit(self, address: str) -> bool:
        """Count a connection in; False if the client has too many. Each call is paired with :meth:`leave`."""
        open_connections = self._clients.get(address, 0) + 1
        self._clients[address] = open_connections
        self._empty.clear()
        return open_connections <= self._limits.connections

    def leave(self, address: str) -> None:
        """Count a connection out."""
        left = self._clients[address] - 1
        if left:
            self._clients[address] = left
        else:
            del self._clients[address]
            if not self._clients:
                self._empty.set()

    async def drain(self, seconds: float) -> None:
        """Wait until the open connections are gone, at most so long, then close what is left.

        Idle ones aren't closed at once: a client may be sending its next request this very moment, and would see the
        connection reset. It gets its answer, and with it ``Connection: close``.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        await self.shutdown(timeout=0.5)
