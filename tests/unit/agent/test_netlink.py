"""Reading bridge entries by hand gives what pyroute2's decoding gives."""

from __future__ import annotations

import socket

from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl import RTM_DELNEIGH, RTM_NEWNEIGH
from pyroute2.netlink.rtnl.marshal import MarshalRtnl
from pyroute2.netlink.rtnl.ndmsg import ndmsg

from kiam.agent.core.routes import NeighbourChange, PortChange
from kiam.agent.kernel.rtnetlink import _changes

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
    assert list(_changes(MarshalRtnl(), come + gone)) == [PortChange(6, MAC, 7), PortChange(6, MAC, 0)]


def test_the_bridges_own_entries_are_no_pods() -> None:
    own = encoded(RTM_NEWNEIGH, socket.AF_BRIDGE, 7, 0x80, ("NDA_LLADDR", MAC), ("NDA_MASTER", 6))
    without_bridge = encoded(RTM_NEWNEIGH, socket.AF_BRIDGE, 7, 2, ("NDA_LLADDR", MAC))
    assert list(_changes(MarshalRtnl(), own + without_bridge)) == []


def test_neighbour_without_a_usable_address_is_not_known() -> None:
    attributes = (("NDA_DST", "10.42.0.11"), ("NDA_LLADDR", MAC))
    stale, failed = (encoded(RTM_NEWNEIGH, socket.AF_INET, 6, state, *attributes) for state in (4, 0x20))
    assert list(_changes(MarshalRtnl(), stale + failed)) == [
        NeighbourChange(6, "10.42.0.11", MAC),
        NeighbourChange(6, "10.42.0.11", ""),
    ]


@given(st.binary(max_size=80))
def test_truncated_bridge_entries_break_nothing(tail: bytes) -> None:
    whole = encoded(RTM_NEWNEIGH, socket.AF_BRIDGE, 7, 2, ("NDA_LLADDR", MAC), ("NDA_MASTER", 6))
    body = whole[16:28] + tail
    header = (16 + len(body)).to_bytes(4, "little") + whole[4:16]
    assert all(isinstance(change, PortChange) for change in _changes(MarshalRtnl(), header + body))
