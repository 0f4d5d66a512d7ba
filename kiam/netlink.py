"""Netlink: packing requests, taking answers apart, and asking (netlink(7), linux/netlink.h).

By hand, and only what the agent and the dataplanes need while the agent runs: a library for all of netlink is a fifth
of the agent's memory and of its start, and the agent has to read what hostile pods make the kernel tell faster than
they can make it.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP, NLM_F_CREATE = 0x1, 0x4, 0x300, 0x400
NLMSG_ERROR, NLMSG_DONE = 2, 3

_TIMEOUT = 2.0
"""Seconds for an answer, which the kernel gives at once."""
_DATAGRAM = 1 << 16
_HEADER = struct.Struct("=IHHII")
"""struct nlmsghdr: length, type, flags, sequence, port."""
_ATTRIBUTE = struct.Struct("=HH")
"""struct nlattr: length, type."""
_ERROR = struct.Struct("=i")
_TYPE_MASK = 0x3FFF
"""Without the flags for "nested" and "network byte order"."""

Attributes = dict[int, bytes]


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a datagram; ``start`` and ``end`` enclose what follows the header."""

    kind: int
    sequence: int
    data: bytes
    start: int
    end: int

    @property
    def error(self) -> int:
        """Of an NLMSG_ERROR, the positive number of the error; 0: an acknowledgement."""
        code: int = _ERROR.unpack_from(self.data, self.start)[0]
        return -code

    def attributes(self, behind: int) -> Attributes:
        """The attributes behind a fixed part of so many bytes; of several with a type the last."""
        return read_attributes(self.data, self.start + _aligned(behind), self.end)


def request(kind: int, flags: int, sequence: int, fixed: bytes, attributes: Attributes | None = None) -> bytes:
    """A message to the kernel: its fixed part, and attributes by type."""
    body = fixed
    for number, value in (attributes or {}).items():
        length = _ATTRIBUTE.size + len(value)
        body += _ATTRIBUTE.pack(length, number) + value + bytes(_aligned(length) - length)
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0) + body


def split(data: bytes) -> Iterator[Message]:
    """The messages of a datagram; what isn't whole is left out."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, _, sequence, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size or offset + length > len(data):
            return
        yield Message(kind, sequence, data, offset + _HEADER.size, offset + length)
        offset += _aligned(length)


def read_attributes(data: bytes, start: int, end: int) -> Attributes:
    """The attributes between two places; nothing behind a broken one."""
    values: Attributes = {}
    while start + _ATTRIBUTE.size <= end:
        length, number = _ATTRIBUTE.unpack_from(data, start)
        if length < _ATTRIBUTE.size or start + length > end:
            break
        values[number & _TYPE_MASK] = data[start + _ATTRIBUTE.size : start + length]
        start += _aligned(length)
    return values


def _aligned(length: int) -> int:
    return (length + 3) & ~3


Request = tuple[int, int, bytes, Attributes]
"""Kind, flags, fixed part and attributes."""


class RefusedError(OSError):
    """The kernel answered with an error; ``errno`` says which."""


class Conversation:
    """A socket to ask one of the kernel's subsystems on, in this thread's network namespace. A context manager.

    What goes wrong raises: :class:`RefusedError`, TimeoutError if no answer comes, and other OSErrors.
    """

    def __init__(self, family: int) -> None:
        """``family``: the subsystem, as NETLINK_ROUTE."""
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family)
        self._sock.settimeout(_TIMEOUT)
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """No more questions."""
        self._sock.close()

    def dump(self, kind: int, fixed: bytes, attributes: Attributes | None = None) -> Iterator[Message]:
        """Ask for all there is of something."""
        sequence = self._next()
        self._sock.send(request(kind, NLM_F_REQUEST | NLM_F_DUMP, sequence, fixed, attributes))
        while True:
            for message in self._receive(sequence):
                if message.kind == NLMSG_DONE:
                    return
                yield message

    def ask(self, kind: int, flags: int, fixed: bytes, attributes: Attributes | None = None) -> Message:
        """Send one request; the first message of its answer, which may be an acknowledgement (NLMSG_ERROR)."""
        sequence = self._next()
        self._sock.send(request(kind, NLM_F_REQUEST | flags, sequence, fixed, attributes))
        return self._first(sequence)

    def ask_together(self, *messages: Request) -> None:
        """Send several messages at once, of which one asks to be acknowledged (``NLM_F_ACK``)."""
        sequence = self._next()
        self._sock.send(b"".join(request(one[0], one[1], sequence, one[2], one[3]) for one in messages))
        self._first(sequence)

    def _first(self, sequence: int) -> Message:
        while True:
            for message in self._receive(sequence):
                return message

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence

    def _receive(self, sequence: int) -> list[Message]:
        """One datagram's messages; none if it is an answer that came too late for an earlier question."""
        messages = list(split(self._sock.recv(_DATAGRAM)))
        if any(message.sequence != sequence for message in messages):
            return []
        for message in messages:
            if message.kind == NLMSG_ERROR and (code := message.error):
                raise RefusedError(code, os.strerror(code))
        return messages
