"""The cgroup of a TCP socket, asked of the kernel by the connection's two ends (sock_diag(7), linux/inet_diag.h)."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys
import threading
from ipaddress import IPv4Address, IPv6Address, ip_address

from kiam.netlink import NLM_F_REQUEST, request, split

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_REQUEST = struct.Struct("=BBxxI")
"""The start of struct inet_diag_req_v2: family, protocol, states."""
_ANY_SOCKET = bytes(4) + b"\xff" * 8
"""Any interface, and INET_DIAG_NOCOOKIE."""
_ANSWER_SIZE = 72
"""Of struct inet_diag_msg; the remote port is at 6, the state at 1."""
_CGROUP_ID = 21
"""INET_DIAG_CGROUP_ID, since Linux 5.8."""
_PEERS = frozenset({1, 4, 5})
"""ESTABLISHED, FIN_WAIT1 and FIN_WAIT2 (net/tcp_states.h): in another state a socket isn't connected yet, or knows that
we have closed, and can't be the other end of a connection that has just been made."""
_CLONE_NEWNET = 0x40000000
_TIMEOUT = 0.2
_DATAGRAM = 8192

End = tuple[str, int]
"""An address and a port."""


class SocketTable:
    """The TCP sockets of one network namespace."""

    def __init__(self, netlink: socket.socket) -> None:
        self._netlink = netlink
        self._netlink.settimeout(_TIMEOUT)
        self._sequence = 0

    @classmethod
    def here(cls) -> SocketTable:
        """Of the namespace this process is in."""
        return cls(_open())

    @classmethod
    def inside(cls, namespace: int) -> SocketTable:
        """Of the network namespace that a descriptor is open on. Raises OSError; needs SYS_ADMIN."""
        made: list[socket.socket] = []
        errors: list[OSError] = []

        def enter_and_open() -> None:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(namespace, _CLONE_NEWNET):
                errors.append(OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno())))
                return
            try:
                made.append(_open())
            except OSError as error:
                errors.append(error)

        # The namespace belongs to a thread, so one that ends right after enters it; a socket stays where it was made.
        thread = threading.Thread(target=enter_and_open, name="pod-network")
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return cls(made[0])

    def close(self) -> None:
        """No more questions; an open socket would keep the namespace from going."""
        self._netlink.close()

    def cgroup_of(self, local: End, remote: End) -> int | None:
        """The identifier of the cgroup that made the socket with these ends; None: there is none, or it isn't said."""
        ours, theirs = ip_address(local[0]), ip_address(remote[0])
        if ours.version != theirs.version:
            return None
        family = socket.AF_INET if ours.version == 4 else socket.AF_INET6
        ends = struct.pack("!HH", local[1], remote[1]) + _padded(ours) + _padded(theirs)
        self._sequence += 1
        fixed = _REQUEST.pack(family, socket.IPPROTO_TCP, 0xFFFFFFFF) + ends + _ANY_SOCKET
        try:
            self._netlink.send(request(_SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, self._sequence, fixed))
            return self._answer(remote[1])
        except OSError:
            return None

    def _answer(self, remote_port: int) -> int | None:
        while True:
            for message in split(self._netlink.recv(_DATAGRAM)):
                if message.sequence != self._sequence:
                    continue
                if message.kind != _SOCK_DIAG_BY_FAMILY or message.end - message.start < _ANSWER_SIZE:
                    return None
                state = message.data[message.start + 1]
                (port,) = struct.unpack_from("!H", message.data, message.start + 6)
                # The lookup is the kernel's own for an arriving segment: without a connection it answers the listener.
                # Which attack: one who connects by a device (SO_BINDTODEVICE) may have a connection's four ends before
                # another pod's socket tries for the same, and may keep them when we have closed.
                if state not in _PEERS or port != remote_port:
                    return None
                cgroup = message.attributes(_ANSWER_SIZE).get(_CGROUP_ID)
                return None if cgroup is None else int.from_bytes(cgroup, sys.byteorder)


def _open() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)


def _padded(address: IPv4Address | IPv6Address) -> bytes:
    return address.packed.ljust(16, b"\0")
