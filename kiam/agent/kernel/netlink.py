"""Netlink messages: packing requests, and taking answers apart (netlink(7), linux/netlink.h).

By hand, and only what rtnetlink needs here: a library for all of netlink is a fifth of the agent's memory and of its
start, and the agent has to read what hostile pods make the kernel tell faster than they can make it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP, NLM_F_CREATE = 0x1, 0x4, 0x300, 0x400
NLMSG_ERROR, NLMSG_DONE = 2, 3

_HEADER = struct.Struct("=IHHII")
"""struct nlmsghdr: length, type, flags, sequence, port."""
_ATTRIBUTE = struct.Struct("=HH")
"""struct nlattr: length, type."""
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
