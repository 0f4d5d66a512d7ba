"""Taking connections from whoever reaches the webhook's port, so that strangers are a burden to nobody.

Which attack: the port asks for no certificate, and is in the process that agents get their credentials from. A pod
that opens connections by the thousand, each with a handshake to work out, or with megabytes that it never ends, would
take that process's memory and time. So connections are few, those of the address that has most go first, and
handshakes have a pace and are done for each address in its turn.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from kiam.addresses import unmapped
from kiam.server.fair_queue import FairQueue

log = logging.getLogger(__name__)

MOST = 128
"""Connections at a time; the API server keeps a few open. One can make the TLS library and aiohttp hold a megabyte."""
BACKLOG = 256
ACCEPTS_AT_A_TIME = 64
"""Then the event loop gets its turn."""
HANDSHAKE_SECONDS = 5.0
HANDSHAKE_EVERY = 0.01
"""Seconds between the beginnings of two handshakes, each of which takes a millisecond or two of processor time."""


@dataclass(slots=True, eq=False)
class _Connection:
    sock: socket.socket
    address: str
    task: asyncio.Task[None] | None = None
    """Its handshake; None: it waits for its turn."""
    transport: asyncio.BaseTransport | None = None

    @property
    def is_open(self) -> bool:
        return self.sock.fileno() >= 0

    def abort(self) -> None:
        """End it now."""
        if isinstance(self.transport, asyncio.WriteTransport):
            self.transport.abort()
        elif self.task is not None:
            self.task.cancel()
        else:
            self.sock.close()


class Connections:
    """Those of one port. :meth:`serve` its listening sockets, :meth:`close` them."""

    def __init__(self, make: Callable[[], asyncio.Protocol], context: ssl.SSLContext) -> None:
        """``make`` makes the protocol of one connection."""
        self._make = make
        self._context = context
        self._listeners: list[socket.socket] = []
        self._open: list[_Connection] = []
        """The oldest first; those that have ended are taken out when there are too many."""
        self._turns: FairQueue[_Connection] = FairQueue()
        self._next: asyncio.TimerHandle | None = None

    def serve(self, listener: socket.socket) -> None:
        """Take the connections of a socket that is bound."""
        listener.setblocking(False)
        listener.listen(BACKLOG)
        self._listeners.append(listener)
        asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._listeners[0].getsockname()[1])

    def close(self) -> None:
        """Stop listening, and end every connection."""
        for listener in self._listeners:
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()
        self._listeners = []
        if self._next is not None:
            self._next.cancel()
        for connection in self._open:
            if connection.is_open:
                connection.abort()

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS_AT_A_TIME):
            try:
                sock, peer = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                # Out of descriptors, or the client has already gone.
                log.debug("accept: %s", error)
                return
            sock.setblocking(False)
            connection = _Connection(sock, str(unmapped(peer[0])))
            self._open.append(connection)
            self._make_room()
            self._turns.put(0, connection.address, connection)
            if self._next is None:
                self._shake_hands()

    def _make_room(self) -> None:
        if len(self._open) <= MOST:
            return
        self._open = [connection for connection in self._open if connection.is_open]
        while len(self._open) > MOST:
            ((greediest, _),) = Counter(connection.address for connection in self._open).most_common(1)
            oldest = next(connection for connection in self._open if connection.address == greediest)
            self._open.remove(oldest)
            oldest.abort()

    def _shake_hands(self) -> None:
        """Begin a handshake with whose turn it is."""
        self._next = None
        while len(self._turns):
            _, connection = self._turns.pop()
            if connection.is_open:
                loop = asyncio.get_running_loop()
                connection.task = loop.create_task(self._join(connection))
                self._next = loop.call_later(HANDSHAKE_EVERY, self._shake_hands)
                return

    async def _join(self, connection: _Connection) -> None:
        try:
            connection.transport, _ = await asyncio.get_running_loop().connect_accepted_socket(
                self._make, connection.sock, ssl=self._context, ssl_handshake_timeout=HANDSHAKE_SECONDS
            )
        except OSError as error:
            # ssl.SSLError is one.
            log.debug("no handshake with %s: %s", connection.address, error)
