"""What arrives at the real metadata service: every packet for its addresses, told by its source port."""

from __future__ import annotations

import itertools
import socket
import struct
import threading
from ipaddress import ip_address

from tests.sandbox.netns import METADATA_IPV4, METADATA_IPV6, NetNs
from tests.sandbox.process import wait_until

ETH_P_ALL = 0x0003
_sentinels = itertools.count(20000)


class ServiceLog:
    """Listens on the service's own interface, ahead of anything that could drop there. A context manager."""

    def __init__(self, aws: NetNs, node: NetNs) -> None:
        self._node = node
        self._seen: set[int] = set()
        self._ended = False
        self._socket = aws.call(_listen)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def __enter__(self) -> ServiceLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._node.call(_send_sentinel, next(_sentinels))  # wakes the reader
        self._thread.join()
        self._socket.close()

    def _read(self) -> None:
        while not self._ended:
            port = source_port(self._socket.recv(65535))
            if port is not None:
                self._seen.add(port)

    def has(self, port: int) -> bool:
        """Whether anything from that source port arrived, now that all that was sent before has had its time.

        A datagram of the node's own, which may reach the service, is sent after it on the same wire.
        """
        sentinel = next(_sentinels)
        self._node.call(_send_sentinel, sentinel)
        wait_until(lambda: sentinel in self._seen, "the node's own datagram at the service")
        return port in self._seen


def _listen() -> socket.socket:
    listener = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    listener.bind(("eth0", ETH_P_ALL))
    return listener


def _send_sentinel(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind(("", port))
        sender.sendto(b"sentinel", (str(METADATA_IPV4), 9))


def source_port(frame: bytes) -> int | None:
    """The source port of a frame for a metadata address, None for others; the kernel takes tags off first."""
    kind, packet = frame[12:14], frame[14:]
    if kind == b"\x08\x00":
        header, target = (packet[0] & 15) * 4, packet[16:20]
    elif kind == b"\x86\xdd":
        header, target = 40, packet[24:40]
    else:
        return None
    if len(packet) < header + 2 or ip_address(target) not in (METADATA_IPV4, METADATA_IPV6):
        return None
    (port,) = struct.unpack_from("!H", packet, header)
    return int(port)
