"""What the kernel tells is read as pyroute2 encodes it."""

from __future__ import annotations

import socket
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl import RTM_DELLINK, RTM_DELNEIGH, RTM_NEWLINK, RTM_NEWNEIGH, RTM_NEWROUTE
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from kiam.agent.core.routes import Link, LinkChange, NeighbourChange, PortChange, RouteChange
from kiam.agent.kernel.changes import changes

MAC = "0a:58:0a:2a:00:0b"


def encoded(kind: int, family: int, index: int, state: int, *attributes: tuple[str, object]) -> bytes:
    message = ndmsg()
    message["family"] = family
    message["ifindex"] = index
    message["state"] = state
    message["attrs"] = list(attributes)
    message["header"]["type"] = kind
    message.encode()
    return bytes(message.data)


def test_bridge_entry_comes_and_goes() -> None:
    attributes = (("NDA_LLADDR", MAC), ("NDA_MASTER", 6))
    come = encoded(RTM_NEWNEIGH, socket.AF_BRIDGE, 7, 2, *attributes)
    gone = encoded(RTM_DELNEIGH, socket.AF_BRIDGE, 7, 2, *attributes)
    assert list(changes(come + gone)) == [PortChange(6, MAC, 7), PortChange(6, MAC, 0)]


def test_the_bridges_own_entries_are_no_pods() -> None:
    own = encoded(RTM_NEWNEIGH, socket.AF_BRIDGE, 7, 0x80, ("NDA_LLADDR", MAC), ("NDA_MASTER", 6))
    without_bridge = encoded(RTM_NEWNEIGH, socket.AF_BRIDGE, 7, 2, ("NDA_LLADDR", MAC))
    assert list(changes(own + without_bridge)) == []


def test_neighbour_without_a_usable_address_is_not_known() -> None:
    attributes = (("NDA_DST", "10.42.0.11"), ("NDA_LLADDR", MAC))
    stale, failed = (encoded(RTM_NEWNEIGH, socket.AF_INET, 6, state, *attributes) for state in (4, 0x20))
    assert list(changes(stale + failed)) == [
        NeighbourChange(6, "10.42.0.11", MAC),
        NeighbourChange(6, "10.42.0.11", ""),
    ]


@given(st.binary(max_size=80))
def test_truncated_bridge_entries_break_nothing(tail: bytes) -> None:
    whole = encoded(RTM_NEWNEIGH, socket.AF_BRIDGE, 7, 2, ("NDA_LLADDR", MAC), ("NDA_MASTER", 6))
    body = whole[16:28] + tail
    header = (16 + len(body)).to_bytes(4, "little") + whole[4:16]
    assert all(isinstance(change, PortChange) for change in changes(header + body))


def test_link_comes_and_goes_with_its_kind_and_bridge() -> None:
    def told(kind: int) -> bytes:
        message = ifinfmsg()
        message["index"] = 7
        message["attrs"] = [
            ("IFLA_IFNAME", "cali1"), ("IFLA_MASTER", 6), ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "veth")]}),
        ]  # fmt: skip
        message["header"]["type"] = kind
        message.encode()
        return bytes(message.data)

    link = Link(7, "veth", 6)
    assert list(changes(told(RTM_NEWLINK) + told(RTM_DELLINK))) == [LinkChange(link, False), LinkChange(link, True)]


@pytest.mark.parametrize(
    ("family", "destination", "network"),
    [
        (socket.AF_INET, "10.42.0.11/32", "10.42.0.11/32"), (socket.AF_INET, None, "0.0.0.0/0"),
        (socket.AF_INET6, "fd42::/64", "fd42::/64"), (socket.AF_INET6, None, "::/0"),
    ],
)  # fmt: skip
def test_route_is_told_by_its_network(family: int, destination: str | None, network: str) -> None:
    message = rtmsg()
    message["family"] = family
    if destination is not None:
        address, _, length = destination.partition("/")
        message["dst_len"] = int(length)
        message["attrs"] = [("RTA_DST", address)]
    message["header"]["type"] = RTM_NEWROUTE
    message.encode()
    assert list(changes(bytes(message.data))) == [RouteChange(ip_network(network))]


@given(st.binary(max_size=200), st.sampled_from([16, 17, 24, 25, 28, 29]))
def test_any_bytes_break_nothing(body: bytes, kind: int) -> None:
    header = (16 + len(body)).to_bytes(4, "little") + kind.to_bytes(2, "little") + bytes(10)
    list(changes(header + body))
