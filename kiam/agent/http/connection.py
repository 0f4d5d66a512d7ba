"""One connection of a pod: what its bytes ask for is answered in order, in time, and not without end.

The client is hostile: limits keep one pod from starving the others. How bytes become requests is
:mod:`kiam.agent.http.reading`'s business.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from typing import TYPE_CHECKING, Any, cast

from kiam.agent.http.deadline import NEVER, Deadline
from kiam.agent.http.listener import original_destination
from kiam.agent.http.messages import Request, Response, asker_of, encode, recognise, text
from kiam.agent.http.paths import normalise_address
from kiam.agent.http.reading import TOO_LARGE, Event, Expectation, RequestReader

if TYPE_CHECKING:
    from kiam.agent.http.pod_server import PodServer

log = logging.getLogger(__name__)

_LINGER_SECONDS = 1.0
"""How long what is still sent is thrown away before the connection is closed, so that the answer isn't lost."""
_LINK_LOCAL = ("fe8", "fe9", "fea", "feb")
"""How the addresses of fe80::/10 begin (RFC 4291, section 2.4)."""
_TOO_SLOW = text("the request comes too slowly\n", 408)
_BUG = text("internal error of the kiam agent\n", 500)


class Connection(asyncio.Protocol):
    """asyncio's protocol of one connection. ``client_address`` is its peer, ``client_uid`` the peer's pod if known."""

    __slots__ = (
        "_deadline", "_drained", "_in_message", "_is_ending", "_is_expected", "_is_paused", "_linger", "_loop", "_peer",
        "_queue", "_reader", "_server", "_stalled", "_task", "_transport", "asker", "client_address", "client_uid",
    )  # fmt: skip

    def __init__(self, server: PodServer) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._peer: tuple[Any, ...] | None = None
        # Made when something comes that isn't recognised at first sight, which most connections never see.
        self._reader: RequestReader | None = None
        self._queue: deque[Request | Response] = deque()
        self._task: asyncio.Task[None] | None = None
        # By when the headers that come must be complete, or an idle connection ends; never: an answer is being made.
        self._deadline = Deadline(self._loop, self._too_late)
        self._is_expected = False
        self._linger: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._drained: asyncio.Future[None] | None = None
        self._in_message = False
        self._is_ending = False
        self._is_paused = False
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
        for timer in (self._linger, self._stalled):
            if timer is not None:
                timer.cancel()
        self._linger = self._stalled = None
        self._deadline.end()
        if self._task is not None:
            self._task.cancel()
        self._queue.clear()
        if self._transport is not None:
            self._server.leave(self)
        self._transport = None
        if self._reader is not None:
            self._reader.close()

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
                    self._deadline.at = self._loop.time() + self._server.limits.idle_time
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

    # ---- reading

    def _feed(self, data: bytes) -> None:
        reader = self._reader
        if reader is None:
            reader = self._reader = RequestReader(
                self._server.limits, self._server.answering.body_use, self.client_address, self.client_uid, self._peer
            )
        if not self._in_message and not self._is_expected and self._task is None:
            # Idle, and what came isn't a request known at first sight: the clock starts with its first byte.
            self._expect(self._server.limits.header_time, is_expected=True)
        events = reader.feed(data, len(self._queue))
        self._in_message, self._is_ending = reader.is_in_message, reader.is_ended
        for event in events:
            self._heard(event)

    def _heard(self, event: Event) -> None:
        if isinstance(event, Expectation):
            # Not before the answers to the requests before it.
            if self._task is None:
                self._write(event.value)
            return
        if isinstance(event, Response) and event is not TOO_LARGE:
            self._server.refused("unparsable")
        self._queue.append(event)
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
        self._deadline.at = NEVER
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
                asked = self._queue.popleft()
                request = asked if isinstance(asked, Request) else None
                response = asked if isinstance(asked, Response) else await self._respond(asked)
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

    async def _respond(self, request: Request) -> Response:
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
        self._deadline.end()
        self._linger = self._loop.call_later(_LINGER_SECONDS, transport.close)

    def close(self) -> None:
        """Close now, whatever is under way."""
        if self._transport is not None:
            self._transport.abort()

    # ---- clocks

    def _expect(self, seconds: float, *, is_expected: bool) -> None:
        """Have the connection end in so many seconds unless something comes; ``is_expected``: a whole request."""
        if self._transport is None or self._is_ending:
            return
        self._is_expected = is_expected
        self._deadline.set(seconds)

    def _too_late(self) -> None:
        if self._transport is None:
            return
        if self._is_expected:
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
