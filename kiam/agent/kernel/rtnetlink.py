"""Asking the kernel about routes, links and neighbours (rtnetlink(7))."""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_address

from kiam.agent.core.routes import Change, Route
from kiam.agent.kernel.changes import IFINFOMSG, NDA_DST, NDMSG, NEWLINK, NEWNEIGH, integer, kind_of, read_change
from kiam.netlink import NLM_F_ACK, NLM_F_CREATE, NLMSG_ERROR, Attributes, Conversation, Message, RefusedError
from kiam.routing import (
    RT_TABLE_MAIN,
    RTA_GATEWAY,
    RTA_MULTIPATH,
    RTA_OIF,
    RTA_VIA,
    RTN_LOCAL,
    RTN_UNICAST,
    default_routes,
    route_to,
)

# linux/rtnetlink.h
_GETLINK, _GETNEIGH = 18, 30
_NEWNSID, _GETNSID = 88, 90
# linux/if_link.h
_IFLA_IFNAME, _IFLA_LINK_NETNSID = 3, 37
# linux/net_namespace.h
_NETNSA_NSID, _NETNSA_FD = 1, 3
# linux/neighbour.h
_NTF_USE = 0x01


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
        for message in self._dump(_GETLINK, IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
            yield from read_change(message)
        for family in (socket.AF_UNSPEC, socket.AF_BRIDGE):
            for message in self._dump(_GETNEIGH, NDMSG.pack(family, 0, 0, 0, 0)):
                yield from read_change(message)

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
            link=integer(found.values, RTA_OIF),
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
        message = self._ask(_GETLINK, 0, IFINFOMSG.pack(socket.AF_UNSPEC, 0, index, 0, 0))
        if message is None or message.kind != NEWLINK:
            return None
        values = message.attributes(IFINFOMSG.size)
        return values.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode("utf-8", "replace"), kind_of(values)

    def namespace_behind(self, index: int) -> int | None:
        """The number, in this namespace, of the network namespace that a link's other end is in; None: it has none."""
        message = self._ask(_GETLINK, 0, IFINFOMSG.pack(socket.AF_UNSPEC, 0, index, 0, 0))
        if message is None or message.kind != NEWLINK:
            return None
        number = message.attributes(IFINFOMSG.size).get(_IFLA_LINK_NETNSID)
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
        fixed = NDMSG.pack(family, link, 0, _NTF_USE, 0)
        self._ask(NEWNEIGH, NLM_F_CREATE | NLM_F_ACK, fixed, {NDA_DST: ip_address(address).packed})

    def _dump(self, kind: int, fixed: bytes) -> Iterator[Message]:
        with suppress(RefusedError, TimeoutError):
            yield from self._kernel.dump(kind, fixed)

    def _ask(self, kind: int, flags: int, fixed: bytes, attributes: Attributes | None = None) -> Message | None:
        """Send one request; the first message of its answer, None if that is an error or an acknowledgement."""
        with suppress(RefusedError, TimeoutError):
            message = self._kernel.ask(kind, flags, fixed, attributes)
            return None if message.kind == NLMSG_ERROR else message
        return None
