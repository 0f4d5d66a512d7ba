"""The kernel's news of links, neighbours and routes: hearing it, and taking its messages apart (rtnetlink(7))."""

from __future__ import annotations

import errno
import select
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from functools import partial
from ipaddress import ip_address, ip_network

from kiam.agent.core.routes import Change, Link, LinkChange, NeighbourChange, PortChange, RouteChange
from kiam.netlink import Attributes, Message, read_attributes, split
from kiam.routing import NEWROUTE, RTA_DST, RTMSG

# linux/netlink.h
_SOL_NETLINK = 270
_NETLINK_ADD_MEMBERSHIP = 1
# linux/rtnetlink.h
_GROUPS = (1, 3, 7, 11)  # RTNLGRP_LINK, _NEIGH, _IPV4_ROUTE, _IPV6_ROUTE
NEWLINK, DELLINK = 16, 17
_DELROUTE = 25
NEWNEIGH, _DELNEIGH = 28, 29
# linux/if_link.h
_IFLA_MASTER, _IFLA_LINKINFO, _IFLA_INFO_KIND = 10, 18, 1
IFINFOMSG = struct.Struct("=BxHiII")
"""family, device type, index, flags, change."""
# linux/neighbour.h
NDA_DST, _NDA_LLADDR, _NDA_MASTER = 1, 2, 9
NDMSG = struct.Struct("=BxxxiHBB")
"""family, link, state, flags, type."""
_NUD_UNUSABLE = 0x01 | 0x20  # INCOMPLETE, FAILED
_NUD_PERMANENT = 0x80
_SO_RCVBUFFORCE = 33
_RECEIVE_BUFFER = 1 << 20
_DATAGRAM = 1 << 16
_ADDRESS_BYTES = {socket.AF_INET: 4, socket.AF_INET6: 16}


class ChangesLostError(Exception):
    """The kernel had more to tell than the socket could hold: everything must be read anew."""


def _open() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    try:
        sock.bind((0, 0))
        for group in _GROUPS:
            sock.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
    except OSError:
        sock.close()
        raise
    return sock


class Changes:
    """A socket on which the kernel tells of changes. What is already told can be read without waiting."""

    def __init__(self) -> None:
        self._sock = _open()
        self._sock.setblocking(False)
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        self.has_news: Callable[[], object] = partial(poll.poll, 0)
        """Something that is true if :meth:`read` has something to read. Asked before each answer: at half of a vain
        read's cost, and no method of ours in between."""

    def fileno(self) -> int:
        """For the event loop's reader."""
        return self._sock.fileno()

    def close(self) -> None:
        """Stop listening."""
        self._sock.close()

    def read(self) -> Iterator[Change]:
        """Everything told so far. Raises ChangesLostError when some of it is lost."""
        while True:
            try:
                data = self._sock.recv(_DATAGRAM)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    raise ChangesLostError from error
                raise
            yield from changes(data)


def changes(data: bytes) -> Iterator[Change]:
    """What a datagram tells."""
    for message in split(data):
        yield from read_change(message)


def read_change(message: Message) -> Iterator[Change]:
    """What a message tells of a link, a neighbour or a route; nothing if it is about something else."""
    size = message.end - message.start
    change: Change | None = None
    if message.kind in (NEWNEIGH, _DELNEIGH) and size >= NDMSG.size:
        change = _neighbour_change(message)
    elif message.kind in (NEWLINK, DELLINK) and size >= IFINFOMSG.size:
        change = _link_change(message)
    elif message.kind in (NEWROUTE, _DELROUTE) and size >= RTMSG.size:
        change = _route_change(message)
    if change is not None:
        yield change


def _neighbour_change(message: Message) -> NeighbourChange | PortChange | None:
    """Read an entry of a neighbour table or, in the bridge family, of a bridge's forwarding database."""
    family, link, state, _, _ = NDMSG.unpack_from(message.data, message.start)
    gone = message.kind == _DELNEIGH
    values = message.attributes(NDMSG.size)
    lladdr = values.get(_NDA_LLADDR, b"").hex(":")
    if family == socket.AF_BRIDGE:
        bridge = integer(values, _NDA_MASTER)
        # The bridge's and the ports' own addresses are in the table too, as permanent entries; no pod is behind them.
        if not bridge or not lladdr or state & _NUD_PERMANENT:
            return None
        return PortChange(bridge, lladdr, 0 if gone else link)
    address = values.get(NDA_DST, b"")
    if len(address) != _ADDRESS_BYTES.get(family):
        return None
    unusable = gone or state & _NUD_UNUSABLE
    return NeighbourChange(link, str(ip_address(address)), "" if unusable else lladdr)


def _link_change(message: Message) -> LinkChange | None:
    family, _, index, _, _ = IFINFOMSG.unpack_from(message.data, message.start)
    # A bridge reports on its ports with messages of the bridge family; DELLINK then only means "no port any more".
    if family == socket.AF_BRIDGE:
        return None
    values = message.attributes(IFINFOMSG.size)
    return LinkChange(Link(index, kind_of(values), integer(values, _IFLA_MASTER)), message.kind == DELLINK)


def _route_change(message: Message) -> RouteChange | None:
    family, length, *_ = RTMSG.unpack_from(message.data, message.start)
    size = _ADDRESS_BYTES.get(family)
    destination = message.attributes(RTMSG.size).get(RTA_DST, bytes(size or 0))
    if size is None or len(destination) != size or length > size * 8:
        return None
    return RouteChange(ip_network((destination, length), strict=False))


def kind_of(values: Attributes) -> str:
    """A link's kind, by its attributes; empty for hardware."""
    info = values.get(_IFLA_LINKINFO, b"")
    return read_attributes(info, 0, len(info)).get(_IFLA_INFO_KIND, b"").rstrip(b"\0").decode("ascii", "replace")


def integer(values: Attributes, number: int) -> int:
    """An attribute that is a number; 0: it isn't there."""
    return int.from_bytes(values.get(number, b""), sys.byteorder)
