"""Joins a TLS connection and a plain one: bytes go both ways as they come, with back-pressure.

gRPC can be given neither a verify callback nor a connected socket, so where it can't do TLS itself, TLS ends here and
gRPC speaks plain HTTP/2 over a Unix socket of this process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from OpenSSL import SSL

CHUNK = 65536
HIGH_WATER = 256 * 1024
"""Bytes waiting to be written to one side, above which the other side isn't read."""

EndHandler = Callable[["TLSEnd"], None]


class TLSEnd(asyncio.Protocol):
    """The TLS side: feeds OpenSSL with what the socket brings, and the socket with what OpenSSL makes.

    ``verified`` is called once after the handshake, ``closed`` once at the end, whatever it was. Plain text is given to
    ``peer`` and taken from it; until there is one, what arrives waits inside OpenSSL.
    """

    def __init__(self, connection: SSL.Connection, verified: EndHandler, closed: EndHandler) -> None:
        """``connection``: on memory BIOs, its state (accept or connect) set."""
        self.connection = connection
        self._verified = verified
        self._closed = closed
        self.established = False
        self.failure: Exception | None = None
        """Why TLS failed, if it did."""
        self.peer: PlainEnd | None = None
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake; a client speaks first."""
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(HIGH_WATER)
        self._advance()

    def data_received(self, data: bytes) -> None:
        """Ciphertext."""
        try:
            self.connection.bio_write(data)
        except SSL.Error as error:
            self._fail(error)
            return
        self._advance()

    def join(self, peer: PlainEnd) -> None:
        """Let plain text flow."""
        self.peer = peer
        self._advance()

    def write(self, plain: bytes) -> None:
        """Send plain text."""
        if self.transport is None or self.transport.is_closing():
            return
        view = memoryview(plain)
        try:
            while view:
                # SSL_write takes up to 2 GiB, but each call makes records of 16 KiB in memory at once.
                view = view[self.connection.send(view[:CHUNK]) :]
                self._flush()
        except SSL.Error as error:
            self._fail(error)

    def close(self) -> None:
        """Say goodbye and close, after what is under way."""
        if self.transport is not None and not self.transport.is_closing():
            if self.established:
                try:
                    self.connection.shutdown()
                    self._flush()
                except SSL.Error:
                    pass
            self.transport.close()

    def abort(self) -> None:
        """Close at once."""
        if self.transport is not None:
            self.transport.abort()

    def eof_received(self) -> None:
        """The socket closes by itself then."""

    def connection_lost(self, exc: Exception | None) -> None:
        """The end, for both sides."""
        self._closed(self)
        if self.peer is not None:
            self.peer.close()

    def pause_writing(self) -> None:
        """The network is slower than gRPC."""
        if self.peer is not None:
            self.peer.pause()

    def resume_writing(self) -> None:
        """It has caught up."""
        if self.peer is not None:
            self.peer.resume()

    def pause(self) -> None:
        """Don't read."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def _advance(self) -> None:
        try:
            if not self.established:
                self.connection.do_handshake()
                self.established = True
                self._flush()
                self._verified(self)
            while self.peer is not None:
                self.peer.write(self.connection.recv(CHUNK))
        except SSL.WantReadError:
            self._flush()
        except SSL.ZeroReturnError:
            self.close()
        except SSL.Error as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.failure = error
        try:
            # The alert with the reason.
            self._flush()
        finally:
            if self.transport is not None:
                self.transport.close()

    def _flush(self) -> None:
        assert self.transport is not None
        while True:
            try:
                out = self.connection.bio_read(CHUNK)
            except SSL.WantReadError:
                return
            self.transport.write(out)


class PlainEnd(asyncio.Protocol):
    """The side of gRPC."""

    def __init__(self, tls: TLSEnd) -> None:
        self._tls = tls
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Join the two."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(HIGH_WATER)
        self._tls.join(self)

    def data_received(self, data: bytes) -> None:
        """Plain text from gRPC."""
        self._tls.write(data)

    def write(self, plain: bytes) -> None:
        """Plain text for gRPC."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(plain)

    def eof_received(self) -> None:
        """The socket closes by itself then."""

    def connection_lost(self, exc: Exception | None) -> None:
        """gRPC is done with it."""
        self._tls.close()

    def pause_writing(self) -> None:
        """gRPC is slower than the network."""
        self._tls.pause()

    def resume_writing(self) -> None:
        """It has caught up."""
        self._tls.resume()

    def pause(self) -> None:
        """Don't read."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def close(self) -> None:
        """Close after what is under way."""
        if self._transport is not None:
            self._transport.close()


def endpoint(context: SSL.Context, *, server: bool, host: str = "") -> SSL.Connection:
    """A connection on memory BIOs. ``host``: the name a client asks for, none for an address (RFC 6066, 3)."""
    connection: Any = SSL.Connection(context, None)
    if server:
        connection.set_accept_state()
    else:
        if host:
            connection.set_tlsext_host_name(host.encode("idna"))
        connection.set_connect_state()
    return cast(SSL.Connection, connection)
