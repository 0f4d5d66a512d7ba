"""rtnetlink: asking the kernel about routes, links and neighbours, and hearing of changes (rtnetlink(7))."""

from __future__ import annotations

import errno
import select
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from ipaddress import ip_address, ip_network

from kiam.agent.core.routes import Change, Link, LinkChange, NeighbourChange, PortChange, Route, RouteChange
from kiam.netlink import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLMSG_ERROR,
    Attributes,
    Conversation,
    Message,
    RefusedError,
    read_attributes,
    split,
)
from kiam.routing import (
    NEWROUTE,
    RT_TABLE_MAIN,
    RTA_DST,
    RTA_GATEWAY,
    RTA_MULTIPATH,
    RTA_OIF,
    RTA_VIA,
    RTMSG,
    RTN_LOCAL,
    RTN_UNICAST,
    default_routes,
    route_to,
)

# linux/netlink.h
_SOL_NETLINK = 270
_NETLINK_ADD_MEMBERSHIP = 1
# linux/rtnetlink.h
_GROUPS = (1, 3, 7, 11)  # RTNLGRP_LINK, _NEIGH, _IPV4_ROUTE, _IPV6_ROUTE
_NEWLINK, _DELLINK, _GETLINK = 16, 17, 18
_DELROUTE = 25
_NEWNEIGH, _DELNEIGH, _GETNEIGH = 28, 29, 30
_NEWNSID, _GETNSID = 88, 90
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


class Questions:
    """A socket to ask on. Calls wait for the kernel's answer: some 10 µs for a route.

    No answer is "not known", and what isn't known isn't believed.
    """

    def __init__(self) -> None:
        self._kernel = Conversation(socket.NETLINK_ROUTE)

    def close(self) -> None:
        """No more questions."""
        self._kernel.close()

    def everything(self) -> Iterator[Change]:
        """All links, neighbours and bridge entries, as if each had just appeared."""
        for message in self._dump(_GETLINK, _IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
            yield from _change(message)
        for family in (socket.AF_UNSPEC, socket.AF_BRIDGE):
            for message in self._dump(_GETNEIGH, _NDMSG.pack(family, 0, 0, 0, 0)):
                yield from _change(message)

    def route_to(self, address: str) -> Route | None:
        """The routing table's entry for an address; None: unreachable."""
        try:
            # The entry: otherwise the kernel answers with a route to this one address, whatever the entry is.
            found = route_to(self._kernel, ip_address(address), entry=True)
        except (RefusedError, TimeoutError):
            return None
        if found is None:
            return None
        return Route(
            link=_integer(found.values, RTA_OIF),
            prefix_length=found.prefix_length,
            via_gateway=any(found.values.get(number) for number in (RTA_GATEWAY, RTA_VIA, RTA_MULTIPATH)),
            is_unicast=found.kind == RTN_UNICAST,
            is_local=found.kind == RTN_LOCAL,
        )

    def uplinks(self) -> frozenset[int]:
        """The links that default routes of the main table go out by, by index."""
        found: set[int] = set()
        with suppress(RefusedError, TimeoutError):
            for route in default_routes(self._kernel):
                if route.table == RT_TABLE_MAIN and route.kind == RTN_UNICAST:
                    found.update(route.links())
        return frozenset(found)

    def link(self, index: int) -> tuple[str, str] | None:
        """The name and the kind of a link (empty for hardware); None: there is none."""
        message = self._ask(_GETLINK, 0, _IFINFOMSG.pack(socket.AF_UNSPEC, 0, index, 0, 0))
        if message is None or message.kind != _NEWLINK:
            return None
        values = message.attributes(_IFINFOMSG.size)
        return values.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode("utf-8", "replace"), _kind_of(values)

    def namespace_behind(self, index: int) -> int | None:
        """The number, in this namespace, of the network namespace that a link's other end is in; None: it has none."""
        message = self._ask(_GETLINK, 0, _IFINFOMSG.pack(socket.AF_UNSPEC, 0, index, 0, 0))
        if message is None or message.kind != _NEWLINK:
            return None
        number = message.attributes(_IFINFOMSG.size).get(_IFLA_LINK_NETNSID)
        return None if number is None else int.from_bytes(number, sys.byteorder, signed=True)

    def namespace_number(self, descriptor: int) -> int | None:
        """The number, in this namespace, of the network namespace that a descriptor is open on; None: it has none."""
        attributes = {_NETNSA_FD: struct.pack("=I", descriptor)}
        message = self._ask(_GETNSID, 0, bytes(4), attributes)
        if message is None or message.kind != _NEWNSID:
            return None
        number = int.from_bytes(message.attributes(4).get(_NETNSA_NSID, b""), sys.byteorder, signed=True)
        return number if number >= 0 else None

    def resolve(self, link: int, address: str) -> None:
        """Have the kernel find out an address's link-layer address, as if it had a packet for it. Needs NET_ADMIN."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        fixed = _NDMSG.pack(family, link, 0, _NTF_USE, 0)
        self._ask(_NEWNEIGH, NLM_F_CREATE | NLM_F_ACK, fixed, {_NDA_DST: ip_address(address).packed})

    def _dump(self, kind: int, fixed: bytes) -> Iterator[Message]:
        with suppress(RefusedError, TimeoutError):
            yield from self._kernel.dump(kind, fixed)

    def _ask(self, kind: int, flags: int, fixed: bytes, attributes: Attributes | None = None) -> Message | None:
        """Send one request; the first message of its answer, None if that is an error or an acknowledgement."""
        with suppress(RefusedError, TimeoutError):
            message = self._kernel.ask(kind, flags, fixed, attributes)
            return None if message.kind == NLMSG_ERROR else message
        return None


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
    elif message.kind in (NEWROUTE, _DELROUTE) and size >= RTMSG.size:
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
    family, length, *_ = RTMSG.unpack_from(message.data, message.start)
    size = _ADDRESS_BYTES.get(family)
    destination = message.attributes(RTMSG.size).get(RTA_DST, bytes(size or 0))
    if size is None or len(destination) != size or length > size * 8:
        return None
    return RouteChange(ip_network((destination, length), strict=False))


def _kind_of(values: Attributes) -> str:
    info = values.get(_IFLA_LINKINFO, b"")
    return read_attributes(info, 0, len(info)).get(_IFLA_INFO_KIND, b"").rstrip(b"\0").decode("ascii", "replace")


def _integer(values: Attributes, number: int) -> int:
    return int.from_bytes(values.get(number, b""), sys.byteorder)
