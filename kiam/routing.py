"""rtnetlink's route messages, as the agent and the dataplanes ask them (rtnetlink(7), linux/rtnetlink.h)."""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from kiam.netlink import Attributes, Conversation, Message

NEWROUTE, GETROUTE = 24, 26
RTM_F_FIB_MATCH = 0x2000
RTN_UNICAST, RTN_LOCAL = 1, 2
RT_TABLE_MAIN = 254
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_MULTIPATH, RTA_VIA = 1, 4, 5, 9, 18
RTMSG = struct.Struct("=BBBBBBBBI")
"""struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags."""
_NEXT_HOP = struct.Struct("=HBBi")
"""struct rtnexthop: length, flags, hops, interface."""


@dataclass(frozen=True, slots=True)
class RouteEntry:
    """An entry of a routing table."""

    prefix_length: int
    table: int
    """Of those above 255, only that they are no other: RT_TABLE_COMPAT."""
    kind: int
    """RTN_UNICAST and so on."""
    values: Attributes

    def links(self) -> Iterator[int]:
        """The interfaces it leads to, by index."""
        if RTA_OIF in self.values:
            yield int.from_bytes(self.values[RTA_OIF], sys.byteorder)
        hops = self.values.get(RTA_MULTIPATH, b"")
        offset = 0
        while offset + _NEXT_HOP.size <= len(hops):
            length, _, _, link = _NEXT_HOP.unpack_from(hops, offset)
            yield link
            if length < _NEXT_HOP.size:
                return
            offset += (length + 3) & ~3


def read_route(message: Message) -> RouteEntry | None:
    """The entry that an answer tells of; None: it tells of something else."""
    if message.kind != NEWROUTE:
        return None
    _, length, _, _, table, _, _, kind, _ = RTMSG.unpack_from(message.data, message.start)
    return RouteEntry(length, table, kind, message.attributes(RTMSG.size))


def default_routes(conversation: Conversation) -> Iterator[RouteEntry]:
    """Every default route of any table, over IPv4 and IPv6. Raises OSError."""
    for family in (socket.AF_INET, socket.AF_INET6):
        for message in conversation.dump(GETROUTE, RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)):
            route = read_route(message)
            if route is not None and route.prefix_length == 0:
                yield route


def route_to(
    conversation: Conversation, address: IPv4Address | IPv6Address, *, entry: bool = False
) -> RouteEntry | None:
    """The way to an address: the table's ``entry``, or that one address's own. Raises OSError: there is none."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    flags = RTM_F_FIB_MATCH if entry else 0
    fixed = RTMSG.pack(family, address.max_prefixlen, 0, 0, 0, 0, 0, 0, flags)
    return read_route(conversation.ask(GETROUTE, 0, fixed, {RTA_DST: address.packed}))
