"""HTTP/2's first words to clients that connect before gRPC is there. No I/O.

A gRPC client takes a connection for good when it has the server's connection preface, which is a SETTINGS frame (RFC
9113, 3.4); a conventional agent waits a second for it and then dies. So the front sends an empty one, which changes
nothing, and gRPC's own follows as an ordinary change of settings. The client acknowledges both, and gRPC, which has
sent one, closes a connection on which it gets two: the first is taken out.
"""

from __future__ import annotations

FIRST_SETTINGS = b"\0\0\0\4\0\0\0\0\0"
"""A frame's header (RFC 9113, 4.1): length 0, type SETTINGS, no flags, stream 0."""

_CLIENT_PREFACE = len(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
_HEADER = 9
_ACKNOWLEDGEMENT = b"\0\0\0\4\1"
"""Length 0, type SETTINGS, flag ACK (RFC 9113, 6.5)."""


class FirstAcknowledgement:
    """Passes on what a client sends, without the first acknowledgement of SETTINGS."""

    def __init__(self) -> None:
        """At the beginning of a connection."""
        self._as_it_is = _CLIENT_PREFACE
        """Bytes until the next frame's header."""
        self._header = b""
        self._found = False

    def __call__(self, data: bytes) -> bytes:
        """What gRPC is to get of the next bytes."""
        if self._found:
            return data
        passed = []
        while data and not self._found:
            if self._as_it_is:
                passed.append(data[: self._as_it_is])
                self._as_it_is -= len(passed[-1])
                data = data[len(passed[-1]) :]
                continue
            wanted = _HEADER - len(self._header)
            self._header, data = self._header + data[:wanted], data[wanted:]
            if len(self._header) == _HEADER:
                self._found = self._header.startswith(_ACKNOWLEDGEMENT)
                if not self._found:
                    passed.append(self._header)
                    self._as_it_is = int.from_bytes(self._header[:3], "big")
                self._header = b""
        return b"".join(passed) + data
