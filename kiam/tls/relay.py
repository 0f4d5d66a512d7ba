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

GOODBYE_SECONDS = 10.0
"""Time for the other side to take what is left, when a connection is closed."""

EndHandler = Callable[["TLSEnd"], None]


class TLSEnd(asyncio.Protocol):
    """The TLS side: feeds OpenSSL with what the socket brings, and the socket with what OpenSSL makes.

    ``verified`` is called once after the handshake, ``closed`` once at the end, whatever it was. Plain text is given to
    ``peer`` and taken from it; until there is one, what the client sends waits in the kernel.
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
        self.received: Callable[[bytes], bytes] | None = None
        """What becomes of plain text before ``peer`` gets it, if it isn't to be passed on as it is."""
        self.transport: asyncio.Transport | None = None
        self._aborted = False
        self._lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake; a client speaks first."""
        self.transport = cast(asyncio.Transport, transport)
        if self._aborted:
            self.transport.abort()
            return
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
        """Let plain text flow; ``peer`` is closed if this side has ended meanwhile."""
        self.peer = peer
        if self._lost:
            peer.close()
            return
        self.resume()
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
            self._close_transport()

    def abort(self) -> None:
        """Close at once, or as soon as there is a connection."""
        self._aborted = True
        if self.transport is not None:
            self.transport.abort()

    def eof_received(self) -> None:
        """The socket closes by itself then."""

    def connection_lost(self, exc: Exception | None) -> None:
        """The end, for both sides."""
        self._lost = True
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
                # Which attack: whoever has a certificate could fill this process's memory before gRPC is there.
                self.pause()
                self._verified(self)
            while self.peer is not None:
                plain = self.connection.recv(CHUNK)
                self.peer.write(plain if self.received is None else self.received(plain))
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
            self._close_transport()

    def _close_transport(self) -> None:
        if self.transport is None:
            return
        self.transport.close()
        if self.transport.get_write_buffer_size():
            # Which attack: who reads nothing any more would keep the connection, and its share of the bounds, for ever.
            asyncio.get_running_loop().call_later(GOODBYE_SECONDS, self.transport.abort)

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


def reason(failure: Exception) -> str:
    """Why TLS failed, in OpenSSL's words."""
    errors = failure.args[0] if failure.args else ()
    # Each is (library, function, reason).
    words = [str(error[-1]) for error in errors if error] if isinstance(errors, list | tuple) else []
    return ", ".join(words) or str(failure) or type(failure).__name__
