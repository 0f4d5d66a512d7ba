"""rtnetlink: asking the kernel about routes, links and neighbours, and hearing of changes (rtnetlink(7))."""

from __future__ import annotations

import errno
import select
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from functools import partial
from ipaddress import ip_address, ip_network

from kiam.agent.core.routes import Change, Link, LinkChange, NeighbourChange, PortChange, Route, RouteChange
from kiam.agent.kernel.netlink import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    Attributes,
    Message,
    read_attributes,
    request,
    split,
)

# linux/netlink.h
_SOL_NETLINK = 270
_NETLINK_ADD_MEMBERSHIP = 1
# linux/rtnetlink.h
_GROUPS = (1, 3, 7, 11)  # RTNLGRP_LINK, _NEIGH, _IPV4_ROUTE, _IPV6_ROUTE
_NEWLINK, _DELLINK, _GETLINK = 16, 17, 18
_NEWROUTE, _DELROUTE, _GETROUTE = 24, 25, 26
_NEWNEIGH, _DELNEIGH, _GETNEIGH = 28, 29, 30
_NEWNSID, _GETNSID = 88, 90
_RTM_F_FIB_MATCH = 0x2000
_RTN_UNICAST, _RTN_LOCAL = 1, 2
_RT_TABLE_MAIN = 254
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_MULTIPATH, _RTA_VIA = 1, 4, 5, 9, 18
_RTMSG = struct.Struct("=BBBBBBBBI")
"""family, dst_len, src_len, tos, table, protocol, scope, type, flags."""
_NEXT_HOP = struct.Struct("=HBBi")
"""struct rtnexthop: length, flags, hops, interface."""
# linux/if_link.h
_IFLA_IFNAME, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_INFO_KIND, _IFLA_LINK_NETNSID = 3, 10, 18, 1, 37
# linux/net_namespace.h
_NETNSA_NSID, _NETNSA_FD = 1, 3
_IFINFOMSG = struct.Struct("=BxHiII")
"""family, device type, index, flags, change."""
# linux/neighbour.h
_NDA_DST, _NDA_LLADDR, _NDA_MASTER = 1, 2, 9
_NDMSG = struct.Struct("=BxxxiHBB")
"""family, link, state, flags, type."""
_NTF_USE = 0x01
_NUD_UNUSABLE = 0x01 | 0x20  # INCOMPLETE, FAILED
_NUD_PERMANENT = 0x80
_SO_RCVBUFFORCE = 33
_RECEIVE_BUFFER = 1 << 20
_DATAGRAM = 1 << 16
_TIMEOUT = 2.0
_ADDRESS_BYTES = {socket.AF_INET: 4, socket.AF_INET6: 16}


class ChangesLostError(Exception):
    """The kernel had more to tell than the socket could hold: everything must be read anew."""


def _open(groups: tuple[int, ...] = ()) -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    try:
        sock.bind((0, 0))
        for group in groups:
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
        self._sock = _open(_GROUPS)
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


class Questions:
    """A socket to ask on. Calls wait for the kernel's answer: some 10 µs for a route."""

    def __init__(self) -> None:
        self._sock = _open()
        self._sock.settimeout(_TIMEOUT)
        self._sequence = 0

    def close(self) -> None:
        """No more questions."""
        self._sock.close()

    def everything(self) -> Iterator[Change]:
        """All links, neighbours and bridge entries, as if each had just appeared."""
        for message in self._dump(_GETLINK, _IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
            yield from _change(message)
        for family in (socket.AF_UNSPEC, socket.AF_BRIDGE):
            for message in self._dump(_GETNEIGH, _NDMSG.pack(family, 0, 0, 0, 0)):
                yield from _change(message)

    def route_to(self, address: str) -> Route | None:
        """The routing table's entry for an address; None: unreachable."""
        parsed = ip_address(address)
        family = socket.AF_INET if parsed.version == 4 else socket.AF_INET6
        # Without FIB_MATCH the kernel answers with a route to this one address, whatever the entry is.
        fixed = _RTMSG.pack(family, parsed.max_prefixlen, 0, 0, 0, 0, 0, 0, _RTM_F_FIB_MATCH)
        message = self._ask(_GETROUTE, NLM_F_REQUEST, fixed, {_RTA_DST: parsed.packed})
        if message is None or message.kind != _NEWROUTE:
            return None
        _, length, _, _, _, _, _, kind, _ = _RTMSG.unpack_from(message.data, message.start)
        values = message.attributes(_RTMSG.size)
        return Route(
            link=_integer(values, _RTA_OIF),
            prefix_length=length,
            via_gateway=any(values.get(number) for number in (_RTA_GATEWAY, _RTA_VIA, _RTA_MULTIPATH)),
            is_unicast=kind == _RTN_UNICAST,
            is_local=kind == _RTN_LOCAL,
        )

    def uplinks(self) -> frozenset[int]:
        """The links that default routes of the main table go out by, by index."""
        found: set[int] = set()
        for family in (socket.AF_INET, socket.AF_INET6):
            for message in self._dump(_GETROUTE, _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)):
                if message.kind != _NEWROUTE:
                    continue
                _, length, _, _, table, _, _, kind, _ = _RTMSG.unpack_from(message.data, message.start)
                if length == 0 and table == _RT_TABLE_MAIN and kind == _RTN_UNICAST:
                    found.update(_next_hops(message.attributes(_RTMSG.size)))
        return frozenset(found)

    def link(self, index: int) -> tuple[str, str] | None:
        """The name and the kind of a link (empty for hardware); None: there is none."""
        message = self._ask(_GETLINK, NLM_F_REQUEST, _IFINFOMSG.pack(socket.AF_UNSPEC, 0, index, 0, 0))
        if message is None or message.kind != _NEWLINK:
            return None
        values = message.attributes(_IFINFOMSG.size)
        return values.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode("utf-8", "replace"), _kind_of(values)

    def namespace_behind(self, index: int) -> int | None:
        """The number, in this namespace, of the network namespace that a link's other end is in; None: it has none."""
        message = self._ask(_GETLINK, NLM_F_REQUEST, _IFINFOMSG.pack(socket.AF_UNSPEC, 0, index, 0, 0))
        if message is None or message.kind != _NEWLINK:
            return None
        number = message.attributes(_IFINFOMSG.size).get(_IFLA_LINK_NETNSID)
        return None if number is None else int.from_bytes(number, sys.byteorder, signed=True)

    def namespace_number(self, descriptor: int) -> int | None:
        """The number, in this namespace, of the network namespace that a descriptor is open on; None: it has none."""
        attributes = {_NETNSA_FD: struct.pack("=I", descriptor)}
        message = self._ask(_GETNSID, NLM_F_REQUEST, bytes(4), attributes)
        if message is None or message.kind != _NEWNSID:
            return None
        number = int.from_bytes(message.attributes(4).get(_NETNSA_NSID, b""), sys.byteorder, signed=True)
        return number if number >= 0 else None

    def resolve(self, link: int, address: str) -> None:
        """Have the kernel find out an address's link-layer address, as if it had a packet for it. Needs NET_ADMIN."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        fixed = _NDMSG.pack(family, link, 0, _NTF_USE, 0)
        self._ask(_NEWNEIGH, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_ACK, fixed, {_NDA_DST: ip_address(address).packed})

    def _dump(self, kind: int, fixed: bytes) -> Iterator[Message]:
        for messages in self._answers(kind, NLM_F_REQUEST | NLM_F_DUMP, fixed, None):
            for message in messages:
                if message.kind in (NLMSG_ERROR, NLMSG_DONE):
                    return
                yield message

    def _ask(self, kind: int, flags: int, fixed: bytes, attributes: Attributes | None = None) -> Message | None:
        """Send one request; the first message of its answer, None if that is an error or an acknowledgement."""
        for messages in self._answers(kind, flags, fixed, attributes):
            for message in messages:
                return None if message.kind in (NLMSG_ERROR, NLMSG_DONE) else message
        return None

    def _answers(self, kind: int, flags: int, fixed: bytes, attributes: Attributes | None) -> Iterator[list[Message]]:
        """Send one request; the datagrams of its answer, until nothing more comes in time."""
        self._sequence += 1
        sequence = self._sequence
        self._sock.send(request(kind, flags, sequence, fixed, attributes))
        while True:
            try:
                data = self._sock.recv(_DATAGRAM)
            except TimeoutError:
                # No answer is "not known", and what isn't known isn't believed.
                return
            messages = list(split(data))
            # An answer that came too late for an earlier question is not this one's.
            if all(message.sequence == sequence for message in messages):
                yield messages


def changes(data: bytes) -> Iterator[Change]:
    """What a datagram tells."""
    for message in split(data):
        yield from _change(message)


def _change(message: Message) -> Iterator[Change]:
    size = message.end - message.start
    change: Change | None = None
    if message.kind in (_NEWNEIGH, _DELNEIGH) and size >= _NDMSG.size:
        change = _neighbour_change(message)
    elif message.kind in (_NEWLINK, _DELLINK) and size >= _IFINFOMSG.size:
        change = _link_change(message)
    elif message.kind in (_NEWROUTE, _DELROUTE) and size >= _RTMSG.size:
        change = _route_change(message)
    if change is not None:
        yield change


def _neighbour_change(message: Message) -> NeighbourChange | PortChange | None:
    """Read an entry of a neighbour table or, in the bridge family, of a bridge's forwarding database."""
    family, link, state, _, _ = _NDMSG.unpack_from(message.data, message.start)
    gone = message.kind == _DELNEIGH
    values = message.attributes(_NDMSG.size)
    lladdr = values.get(_NDA_LLADDR, b"").hex(":")
    if family == socket.AF_BRIDGE:
        bridge = _integer(values, _NDA_MASTER)
        # The bridge's and the ports' own addresses are in the table too, as permanent entries; no pod is behind them.
        if not bridge or not lladdr or state & _NUD_PERMANENT:
            return None
        return PortChange(bridge, lladdr, 0 if gone else link)
    address = values.get(_NDA_DST, b"")
    if len(address) != _ADDRESS_BYTES.get(family):
        return None
    unusable = gone or state & _NUD_UNUSABLE
    return NeighbourChange(link, str(ip_address(address)), "" if unusable else lladdr)


def _link_change(message: Message) -> LinkChange | None:
    family, _, index, _, _ = _IFINFOMSG.unpack_from(message.data, message.start)
    # A bridge reports on its ports with messages of the bridge family; DELLINK then only means "no port any more".
    if family == socket.AF_BRIDGE:
        return None
    values = message.attributes(_IFINFOMSG.size)
    return LinkChange(Link(index, _kind_of(values), _integer(values, _IFLA_MASTER)), message.kind == _DELLINK)


def _route_change(message: Message) -> RouteChange | None:
    family, length, *_ = _RTMSG.unpack_from(message.data, message.start)
    size = _ADDRESS_BYTES.get(family)
    destination = message.attributes(_RTMSG.size).get(_RTA_DST, bytes(size or 0))
    if size is None or len(destination) != size or length > size * 8:
        return None
    return RouteChange(ip_network((destination, length), strict=False))


def _kind_of(values: Attributes) -> str:
    info = values.get(_IFLA_LINKINFO, b"")
    return read_attributes(info, 0, len(info)).get(_IFLA_INFO_KIND, b"").rstrip(b"\0").decode("ascii", "replace")


def _next_hops(values: Attributes) -> Iterator[int]:
    if _RTA_OIF in values:
        yield _integer(values, _RTA_OIF)
    hops = values.get(_RTA_MULTIPATH, b"")
    offset = 0
    while offset + _NEXT_HOP.size <= len(hops):
        length, _, _, link = _NEXT_HOP.unpack_from(hops, offset)
        yield link
        if length < _NEXT_HOP.size:
            return
        offset += (length + 3) & ~3


def _integer(values: Attributes, number: int) -> int:
    return int.from_bytes(values.get(number, b""), sys.byteorder)
