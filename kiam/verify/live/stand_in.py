"""Stands in for an agent that isn't running, for the one connection of the proof."""

from __future__ import annotations

import contextlib
import errno
import secrets
import socket
import struct
import threading
from collections.abc import Iterator
from ipaddress import IPv4Address

HEADER = "X-Kiam-Verify"


class StandIn:
    """Listens where the agent would. Whoever doesn't bring the nonce is reset, as if nobody listened."""

    def __init__(self, listener: socket.socket, nonce: str) -> None:
        self.secret = secrets.token_hex(16)
        """What it answers, and nobody else knows."""
        self._listener = listener
        self._nonce = nonce
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        # Reset rather than closed: to a pod it has to look as it does without the stand-in.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.settimeout(5)
        with contextlib.suppress(OSError):
            request = connection.recv(4096)
            if self._nonce.encode() in request:
                connection.sendall(f"HTTP/1.1 200 OK\r\n{HEADER}: {self.secret}\r\nContent-Length: 0\r\n\r\n".encode())
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))

    def close(self) -> None:
        """Stop listening."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(timeout=5)


@contextlib.contextmanager
def stand_in(address: IPv4Address, port: int, nonce: str) -> Iterator[StandIn | None]:
    """Listen on the agent's address while nobody else does; None where somebody does already.

    Raises OSError when the address isn't the host's.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((str(address), port))
        listener.listen(16)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            yield None
            return
        raise
    standing = StandIn(listener, nonce)
    try:
        yield standing
    finally:
        standing.close()
