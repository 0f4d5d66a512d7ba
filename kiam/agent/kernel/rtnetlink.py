"""rtnetlink: asking the kernel about routes, links and neighbours, and hearing of changes (rtnetlink(7)).

The messages are encoded and decoded by pyroute2; its sockets need an event loop of their own kind, so these are plain.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

from pyroute2.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR
from pyroute2.netlink.rtnl import (
    RTM_DELLINK,
    RTM_DELNEIGH,
    RTM_DELROUTE,
    RTM_GETLINK,
    RTM_GETNEIGH,
    RTM_GETROUTE,
    RTM_NEWLINK,
    RTM_NEWNEIGH,
    RTM_NEWROUTE,
)
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.marshal import MarshalRtnl
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from kiam.agent.core.routes import Change, Link, LinkChange, NeighbourChange, PortChange, Route, RouteChange

# linux/netlink.h and linux/rtnetlink.h
_SOL_NETLINK = 270
_NETLINK_ADD_MEMBERSHIP = 1
_GROUPS = (1, 3, 7, 11)  # RTNLGRP_LINK, _NEIGH, _IPV4_ROUTE, _IPV6_ROUTE
_RTM_F_FIB_MATCH = 0x2000
_RTN_UNICAST = 1
# linux/neighbour.h
_NTF_USE = 0x01
_NUD_UNUSABLE = 0x01 | 0x20  # INCOMPLETE, FAILED
_NUD_PERMANENT = 0x80
_SO_RCVBUFFORCE = 33
_RECEIVE_BUFFER = 1 << 20
_DATAGRAM = 1 << 16
_TIMEOUT = 2.0


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
        self._marshal = MarshalRtnl()
        self._sock = _open(_GROUPS)
        self._sock.setblocking(False)

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
            yield from _changes(self._marshal, data)


class Questions:
    """A socket to ask on. Calls wait for the kernel's answer: some 50 µs for a route."""

    def __init__(self) -> None:
        self._marshal = MarshalRtnl()
        self._sock = _open()
        self._sock.settimeout(_TIMEOUT)
        self._sequence = 0

    def close(self) -> None:
        """No more questions."""
        self._sock.close()

    def everything(self) -> Iterator[Change]:
        """All links, neighbours and bridge entries, as if each had just appeared."""
        links = ifinfmsg()
        yield from self._dump(links, RTM_GETLINK)
        for family in (socket.AF_UNSPEC, socket.AF_BRIDGE):
            neighbours = ndmsg()
            neighbours["family"] = family
            yield from self._dump(neighbours, RTM_GETNEIGH)

    def route_to(self, address: str) -> Route | None:
        """The routing table's entry for an address; None: unreachable."""
        parsed = ip_address(address)
        request = rtmsg()
        request["family"] = socket.AF_INET if parsed.version == 4 else socket.AF_INET6
        request["dst_len"] = parsed.max_prefixlen
        # Without it the kernel answers with a route to this one address, whatever the entry is.
        request["flags"] = _RTM_F_FIB_MATCH
        request["attrs"] = [("RTA_DST", address)]
        message = self._ask(request, RTM_GETROUTE, NLM_F_REQUEST)
        if message is None or message["header"]["type"] != RTM_NEWROUTE:
            return None
        return Route(
            link=message.get_attr("RTA_OIF") or 0,
            prefix_length=message["dst_len"],
            via_gateway=any(message.get_attr(name) for name in ("RTA_GATEWAY", "RTA_VIA", "RTA_MULTIPATH")),
            is_unicast=message["type"] == _RTN_UNICAST,
        )

    def resolve(self, link: int, address: str) -> None:
        """Have the kernel find out an address's link-layer address, as if it had a packet for it. Needs NET_ADMIN."""
        request = ndmsg()
        request["family"] = socket.AF_INET6 if ":" in address else socket.AF_INET
        request["ifindex"] = link
        request["flags"] = _NTF_USE
        request["attrs"] = [("NDA_DST", address)]
        self._ask(request, RTM_NEWNEIGH, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_ACK)

    def _dump(self, request: Any, kind: int) -> Iterator[Change]:
        for data in self._answers(request, kind, NLM_F_REQUEST | NLM_F_DUMP):
            yield from _changes(self._marshal, data)
            if any(header.kind in (NLMSG_ERROR, NLMSG_DONE) for _, header in _split(data)):
                return

    def _ask(self, request: Any, kind: int, flags: int) -> Any:
        """Send one request; the first message of its answer, None if that is an error or an acknowledgement."""
        for data in self._answers(request, kind, flags):
            for message in self._marshal.parse(data):
                return None if message["header"]["type"] in (NLMSG_ERROR, NLMSG_DONE) else message
        return None

    def _answers(self, request: Any, kind: int, flags: int) -> Iterator[bytes]:
        """Send one request; the datagrams of its answer, until nothing more comes in time."""
        self._sequence += 1
        sequence = self._sequence
        request["header"]["type"] = kind
        request["header"]["flags"] = flags
        request["header"]["sequence_number"] = sequence
        request.encode()
        self._sock.send(request.data)
        while True:
            try:
                data = self._sock.recv(_DATAGRAM)
            except TimeoutError:
                # No answer is "not known", and what isn't known isn't believed.
                return
            # An answer that came too late for an earlier question is not this one's.
            if all(header.sequence == sequence for _, header in _split(data)):
                yield data


@dataclass(frozen=True, slots=True)
class _Header:
    length: int
    kind: int
    sequence: int


_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr (linux/netlink.h)
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # struct ndmsg (linux/neighbour.h): family, link, state, flags, type
_ATTRIBUTE = struct.Struct("=HH")  # struct rtattr
_NDA_DST = 1
_NDA_LLADDR = 2
_NDA_MASTER = 9
_ADDRESS_BYTES = {socket.AF_INET: 4, socket.AF_INET6: 16}


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def _split(data: bytes) -> Iterator[tuple[int, _Header]]:
    """The messages of a datagram: where each starts, and its header."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, _, sequence, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        yield offset, _Header(length, kind, sequence)
        offset += _aligned(length)


def _changes(marshal: MarshalRtnl, data: bytes) -> Iterator[Change]:
    for offset, header in _split(data):
        start = offset + _HEADER.size
        if header.kind in (RTM_NEWNEIGH, RTM_DELNEIGH):
            # A pod that may send raw packets makes as many of these as it makes up source addresses. They are read by
            # hand, which costs a fraction of pyroute2's decoding, so that it can't keep the agent busy.
            gone = header.kind == RTM_DELNEIGH
            change: Change | None = _neighbour_change(data, start, offset + header.length, gone)
        else:
            (message,) = marshal.parse(data[offset : offset + header.length])
            change = _change(message)
        if change is not None:
            yield change


def _neighbour_change(data: bytes, start: int, end: int, gone: bool) -> NeighbourChange | PortChange | None:
    """Read an entry of a neighbour table or, in the bridge family, of a bridge's forwarding database."""
    if end - start < _NEIGHBOUR.size:
        return None
    family, link, state, _, _ = _NEIGHBOUR.unpack_from(data, start)
    values: dict[int, bytes] = {}
    offset = start + _NEIGHBOUR.size
    while offset + _ATTRIBUTE.size <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            return None
        values[kind] = data[offset + _ATTRIBUTE.size : min(offset + length, end)]
        offset += _aligned(length)
    lladdr = values.get(_NDA_LLADDR, b"").hex(":")
    if family == socket.AF_BRIDGE:
        bridge = int.from_bytes(values.get(_NDA_MASTER, b""), sys.byteorder)
        # The bridge's and the ports' own addresses are in the table too, as permanent entries; no pod is behind them.
        if not bridge or not lladdr or state & _NUD_PERMANENT:
            return None
        return PortChange(bridge, lladdr, 0 if gone else link)
    address = values.get(_NDA_DST, b"")
    if len(address) != _ADDRESS_BYTES.get(family):
        return None
    unusable = gone or state & _NUD_UNUSABLE
    return NeighbourChange(link, str(ip_address(address)), "" if unusable else lladdr)


def _change(message: Any) -> Change | None:
    kind = message["header"]["type"]
    if kind in (RTM_NEWLINK, RTM_DELLINK):
        return _link_change(message, gone=kind == RTM_DELLINK)
    if kind in (RTM_NEWROUTE, RTM_DELROUTE):
        any_address = "::" if message["family"] == socket.AF_INET6 else "0.0.0.0"  # noqa: S104  # the default route's network
        if message["family"] not in (socket.AF_INET, socket.AF_INET6):
            return None
        destination = message.get_attr("RTA_DST") or any_address
        return RouteChange(ip_network(f"{destination}/{message['dst_len']}", strict=False))
    return None


def _link_change(message: Any, gone: bool) -> LinkChange | None:
    # A bridge reports on its ports with messages of the bridge family; DELLINK then only means "no port any more".
    if message["family"] == socket.AF_BRIDGE:
        return None
    info = message.get_attr("IFLA_LINKINFO")
    kind = (info.get_attr("IFLA_INFO_KIND") if info else None) or ""
    return LinkChange(Link(message["index"], kind, message.get_attr("IFLA_MASTER") or 0), gone)
