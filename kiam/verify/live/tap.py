"""Watches a namespace's packets from and to the metadata addresses (packet(7))."""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from kiam.metadata import METADATA_IPV4, METADATA_IPV6
from kiam.verify.live.frames import Seen, metadata_filter, parse

ETH_P_ALL = 3
SO_ATTACH_FILTER = 26
ADDRESSES = (METADATA_IPV4, METADATA_IPV6)


@dataclass(frozen=True, slots=True)
class Tapped:
    """A packet and where it was seen."""

    interface: str
    outgoing: bool
    """Handed to the interface for sending, behind every hook of netfilter and tc that could have dropped it."""
    packet: Seen


class Tap:
    """All interfaces of the calling thread's network namespace, from now on. A context manager."""

    def __init__(self) -> None:
        # Protocol 0 receives nothing until bind, so that no packet gets in before the filter is there.
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, 0)
        try:
            self._attach()
            _bind_to_all(self._socket)
            self._socket.setblocking(False)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Tap:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _attach(self) -> None:
        program = metadata_filter(ADDRESSES)
        code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
        self._socket.setsockopt(
            socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", len(program), ctypes.addressof(code))
        )

    def read(self) -> Iterator[Tapped]:
        """What was seen since the last call."""
        while True:
            try:
                packet, (interface, _, kind, *_) = self._socket.recvfrom(2048)
            except BlockingIOError:
                return
            seen = parse(packet)
            if seen is not None and (seen.source in ADDRESSES or seen.destination in ADDRESSES):
                yield Tapped(interface, kind == socket.PACKET_OUTGOING, seen)


def _bind_to_all(tap: socket.socket) -> None:
    # Python's bind wants an interface's name and so can't say "all" (sll_ifindex 0).
    address = struct.pack("=HHiHBB8s", socket.AF_PACKET, socket.htons(ETH_P_ALL), 0, 0, 0, 0, b"")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.bind(tap.fileno(), address, len(address)):
        raise OSError(ctypes.get_errno(), "can't watch the node's packets")
