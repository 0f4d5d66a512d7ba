"""Requests and answers as the agent's handlers see them, and the requests that are recognised at first sight."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from http import HTTPStatus
from typing import Any

import httptools

from kiam.agent.core.failures import Unparsable
from kiam.agent.http.paths import Target, parse_target
from kiam.agent.settings import Limits

TEXT = "text/plain; charset=utf-8"
SERVER = "kiam"
LOOPBACK = "127."
"""How the addresses of 127.0.0.0/8 begin, which are one client."""
TOKEN_FIELD = "x-aws-ec2-metadata-token"  # noqa: S105  # a field's name
_LONGEST_PLAIN = 2048
_MOST_PLAIN_FIELDS = Limits().fields
_WITHOUT_LENGTH = frozenset({204, 304})
_REASONS = {int(status): status.phrase for status in HTTPStatus}
# Targets repeat: every SDK of every pod asks the same few. Refusals raise, and are not kept.
target_of = lru_cache(maxsize=1024)(parse_target)


def asker_of(address: str, uid: str | None) -> str:
    """Who shares one allowance of connections and requests: a pod if the kernel says which, else an address.

    Which attack: pods on the host network share the node's address, so that one could use up what the others have, and
    kubelet; and each of them has all of 127.0.0.0/8.
    """
    return uid or (LOOPBACK if address.startswith(LOOPBACK) else address)


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a pod."""

    method: str
    target: str
    """As it stands in the request line."""
    fields: tuple[tuple[str, str], ...]
    """Names in lower case, in their order."""
    client: str
    """Who asks: the peer of the TCP connection, never a header."""
    peer: tuple[Any, ...] | None
    """The socket's peername."""
    keep_alive: bool = True
    is_old: bool = False
    """HTTP/1.0, in which connections end unless both sides say otherwise."""
    body: bytes = b""
    uid: str | None = None
    """The UID of the pod whose socket the kernel says it is; None: it doesn't say."""

    @property
    def asker(self) -> str:
        """Whose allowance the request is taken from: :func:`asker_of`."""
        return asker_of(self.client, self.uid)

    def values(self, name: str) -> list[str]:
        """The values of every field of a name in lower case."""
        return [value for field, value in self.fields if field == name]

    def with_body(self, body: bytes) -> Request:
        """The same request with its body."""
        return replace(self, body=body)

    def last(self) -> Request:
        """The same request, after whose answer the connection ends."""
        return replace(self, keep_alive=False)


@dataclass(frozen=True, slots=True)
class Response:
    """One answer."""

    status: int
    body: bytes = b""
    fields: tuple[tuple[str, str], ...] = ()
    length: int | None = None
    """Of a body that isn't here, as HEAD is answered; None: as long as the body."""


def text(line: str, status: int = 200, *fields: tuple[str, str]) -> Response:
    """An answer of plain text."""
    return Response(status, line.encode(), (("Content-Type", TEXT), *fields))


def encode(response: Response, request: Request | None, date: bytes, *, close: bool) -> bytes:
    """An answer's bytes. ``request`` is what it answers; None: what couldn't be parsed."""
    lines = [f"HTTP/1.1 {response.status} {_REASONS.get(response.status, '')}", f"Server: {SERVER}"]
    lines += [f"{name}: {value}" for name, value in response.fields]
    if response.status not in _WITHOUT_LENGTH:
        lines.append(f"Content-Length: {len(response.body) if response.length is None else response.length}")
    if close:
        lines.append("Connection: close")
    elif request is not None and request.is_old:
        lines.append("Connection: keep-alive")
    body = b"" if request is not None and request.method == "HEAD" else response.body
    return b"%b\r\nDate: %b\r\n\r\n%b" % ("\r\n".join(lines).encode("latin-1"), date, body)


@dataclass(frozen=True, slots=True)
class Plain:
    """A GET of HTTP/1.1 that has no body and leaves the connection open: nearly all that SDKs send."""

    target: Target
    token: str | None
    """The IMDSv2 session token; None: it has none."""


@lru_cache(maxsize=1024)
def recognise(data: bytes) -> Plain | None:
    """The plain request of which the bytes consist, and of nothing else; None: they have to be parsed in full.

    Clients send the same bytes again and again, so that this is one look-up. It is safe to remember, because what comes
    out depends on the bytes alone: they must come at the start of a message and be all of it.
    """
    # A first look that keeps bodies and pipelined requests from being parsed twice.
    if not (data.startswith(b"GET /") and data.find(b"\r\n\r\n") == len(data) - 4 and len(data) <= _LONGEST_PLAIN):
        return None
    seen = _Seen()
    parser = httptools.HttpRequestParser(seen)
    try:
        parser.feed_data(data)
        is_plain = (
            seen.messages == 1
            and parser.get_http_version() == "1.1"
            and parser.should_keep_alive()
            and seen.fields <= _MOST_PLAIN_FIELDS
            and not seen.is_special
        )
        return Plain(target_of(seen.url.decode("ascii")), seen.token) if is_plain else None
    except (httptools.HttpParserError, httptools.HttpParserUpgrade, Unparsable, UnicodeDecodeError):
        # Answered where all requests are that can't be parsed.
        return None


class _Seen:
    """What the parser tells of a request that may be plain."""

    _special = frozenset({b"content-length", b"transfer-encoding", b"expect", b"upgrade", b"connection"})

    def __init__(self) -> None:
        self.url = b""
        self.messages = 0
        self.fields = 0
        self.token: str | None = None
        self.is_special = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields += 1
        folded = name.lower()
        if folded == b"x-aws-ec2-metadata-token":
            # Two tokens, of which one may be good, are for the full parser to refuse.
            self.is_special |= self.token is not None
            self.token = value.decode("latin-1")
        elif folded in self._special:
            self.is_special |= folded != b"connection" or value.lower() != b"keep-alive"

    def on_message_complete(self) -> None:
        self.messages += 1
