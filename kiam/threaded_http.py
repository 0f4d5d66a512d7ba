"""A small HTTP server in threads of its own, which answers while the event loop is busy: that is when one looks.

Not the standard library's: that brings a parser of mails, 3 MiB that every agent would hold, and wakes ten times a
second to see whether it is to stop.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus

import httptools

log = logging.getLogger(__name__)

CLIENT_TIMEOUT_SECONDS = 10
"""A client that hasn't sent its request by then is cut, and one that hasn't read its answer so long after that."""
MOST_CONNECTIONS = 32
"""Open at a time to one listener; each has a thread."""
_LONGEST_REQUEST = 32768
_CHUNK = 8192


@dataclass(frozen=True, slots=True)
class Asked:
    """A request."""

    method: str
    target: str
    """As it stands in the request line."""
    accept: str
    """The Accept field; empty if there is none."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer."""

    status: HTTPStatus
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


class ThreadedServer:
    """Answers GET and HEAD, one request a connection."""

    def __init__(self, sock: socket.socket, answer: Callable[[Asked], Answer], name: str) -> None:
        """``sock`` listens, and is closed at the end; ``name`` is the accepting thread's."""
        self._sock = sock
        self._answer = answer
        self._connections: dict[socket.socket, None] = {}
        self._counting = threading.Lock()
        self._is_closing = False
        self._thread = threading.Thread(target=self._accept, name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Listen no more. Requests under way are still answered, as long as the process lives."""
        self._is_closing = True
        # Wakes accept, which closing alone doesn't.
        self._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._sock.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._sock.accept()
            except OSError:
                if self._is_closing:
                    return
                # The client has gone again, or descriptors have run out for now.
                time.sleep(0.05)
                continue
            self._make_room_for(connection)
            try:
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()
            except RuntimeError:  # no thread can be had
                self._forget(connection)
                connection.close()

    def _make_room_for(self, connection: socket.socket) -> None:
        """The connection that has been open for longest goes when there are too many.

        Which attack: metrics are reachable from pods, and one that opens connections by the thousand, and sends a byte
        now and then, would have as many threads fill the process's memory.
        """
        oldest = None
        with self._counting:
            if len(self._connections) >= MOST_CONNECTIONS:
                oldest = next(iter(self._connections))
                del self._connections[oldest]
            self._connections[connection] = None
        if oldest is not None:
            with suppress(OSError):  # its own thread was quicker
                oldest.shutdown(socket.SHUT_RDWR)

    def _forget(self, connection: socket.socket) -> None:
        with self._counting:
            self._connections.pop(connection, None)

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection, suppress(OSError):  # whoever goes or is too slow gets no answer
                asked = _read(connection)
                answer = _UNPARSABLE if asked is None else self._answered(asked)
                connection.settimeout(CLIENT_TIMEOUT_SECONDS)
                connection.sendall(_encode(answer, without_body=asked is not None and asked.method == "HEAD"))
        finally:
            self._forget(connection)

    def _answered(self, asked: Asked) -> Answer:
        if asked.method not in ("GET", "HEAD"):
            return Answer(HTTPStatus.METHOD_NOT_ALLOWED, b"only GET and HEAD\n")
        try:
            return self._answer(asked)
        except Exception:
            log.exception("bug while answering %s", ascii(asked.target))
            return Answer(HTTPStatus.INTERNAL_SERVER_ERROR, b"internal error\n")


_UNPARSABLE = Answer(HTTPStatus.BAD_REQUEST, b"the request can't be parsed\n")


class _Reader:
    """What httptools tells of a request."""

    def __init__(self) -> None:
        self.url = b""
        self.accept: list[str] = []
        self.is_complete = False

    def on_url(self, url: bytes) -> None:
        # What is sent behind the request is nobody's.
        if not self.is_complete:
            self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"accept" and not self.is_complete:
            self.accept.append(value.decode("latin-1"))

    def on_headers_complete(self) -> None:
        self.is_complete = True


def _read(connection: socket.socket) -> Asked | None:
    """The request's head; None: it isn't one. Raises OSError when the client goes or takes too long."""
    until = time.monotonic() + CLIENT_TIMEOUT_SECONDS
    reader = _Reader()
    parser = httptools.HttpRequestParser(reader)
    size = 0
    while not reader.is_complete:
        # Never 0, which would mean not to wait at all.
        connection.settimeout(max(until - time.monotonic(), 0.001))
        data = connection.recv(_CHUNK)
        if not data:
            raise ConnectionError("the client has gone")
        size += len(data)
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            break
        except httptools.HttpParserError:
            return None
        if size > _LONGEST_REQUEST:
            return None
    return Asked(parser.get_method().decode("ascii"), reader.url.decode("latin-1"), ", ".join(reader.accept))


def _encode(answer: Answer, *, without_body: bool) -> bytes:
    head = (
        f"HTTP/1.1 {int(answer.status)} {answer.status.phrase}\r\n"
        f"Server: kiam\r\n"
        f"Date: {formatdate(usegmt=True)}\r\n"
        f"Content-Type: {answer.content_type}\r\n"
        f"Content-Length: {len(answer.body)}\r\n"
        + ("Allow: GET, HEAD\r\n" if answer.status is HTTPStatus.METHOD_NOT_ALLOWED else "")
        + "Connection: close\r\n\r\n"
    )
    return head.encode("latin-1") + (b"" if without_body else answer.body)
