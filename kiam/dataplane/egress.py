"""A guard on egress for pods on the host network: drops frames that no IP stack made for instance metadata.

A packet socket (capability NET_RAW) hands its frames to the device, past every rule of the IP hooks and every cgroup
hook. nftables' egress hook (Linux 5.16) sees them, also those that go past the queueing discipline
(PACKET_QDISC_BYPASS), which tc's egress hook doesn't. What tells them apart: a packet that went through the host's IP
stack has a route attached, so ``meta rtclassid`` has a value whatever it is; a packet socket's frame has none. Not by a
mark: NET_RAW may set those.

Which attack: a pod on the host network, under ``deny`` or ``redirect``, that speaks TCP through a packet socket. What
remains is AF_XDP, whose frames no hook sees.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from kiam.dataplane.contract import HostNetwork, WantedState
from kiam.errors import UserError
from kiam.metadata import METADATA_IPV4, METADATA_IPV6
from kiam.netfilter import nft
from kiam.netfilter.model import NO_TABLE, Count, Table
from kiam.netfilter.nft import Json
from kiam.netfilter.nft_listing import parse_nft_table
from kiam.netlink import Conversation, RefusedError
from kiam.routing import default_routes, route_to

log = logging.getLogger(__name__)

FAMILY = "netdev"
COUNTER = "host-network"
_IPV4_TYPE, _IPV6_TYPE = 0x0800, 0x86DD
_ETHERNET = 14
_TAG = 4
_ANY_ROUTE = 0
_LOOPBACK_INDEX = 1


@dataclass(frozen=True, slots=True)
class Device:
    """A network device."""

    index: int
    name: str


def find_uplinks() -> list[Device]:
    """The devices of every default route in any table, and of the routes to the metadata addresses. Raises OSError."""
    indexes: set[int] = set()
    with Conversation(socket.NETLINK_ROUTE) as kernel:
        for route in default_routes(kernel):
            indexes.update(route.links())
        for address in (METADATA_IPV4, METADATA_IPV6):
            with suppress(RefusedError):  # no route to it at all
                if (route_to_it := route_to(kernel, address)) is not None:
                    indexes.update(route_to_it.links())
    names = dict(socket.if_nameindex())
    return [Device(index, names[index]) for index in sorted(indexes) if index != _LOOPBACK_INDEX and index in names]


@dataclass(frozen=True, slots=True)
class _Field:
    """Some bits behind a base: ``nh`` (where the kernel takes the IP header to be) or ``ll`` (the frame's start)."""

    base: str
    offset: int
    length: int
    """Both in bits."""
    value: int

    @property
    def match(self) -> Json:
        payload = {"base": self.base, "offset": self.offset, "len": self.length}
        return {"match": {"op": "==", "left": {"payload": payload}, "right": self.value}}


def _positions() -> Iterator[tuple[str, int]]:
    # The kernel takes the frame's start for the IP header in a packet socket's ring, and the sender's word for the
    # protocol, so neither is believed: the header is looked for wherever a receiver would, with up to two VLAN tags.
    yield "nh", 0
    for base in ("nh", "ll"):
        for tags in range(3):
            yield base, _ETHERNET + tags * _TAG


def _fields(base: str, start: int, ipv6: bool) -> Iterator[_Field]:
    bits = start * 8
    if start:
        yield _Field(base, bits - 16, 16, _IPV6_TYPE if ipv6 else _IPV4_TYPE)
    else:
        yield _Field(base, 0, 4, 6 if ipv6 else 4)
    if not ipv6:
        yield _Field(base, bits + 128, 32, int(METADATA_IPV4))
        return
    address = int(METADATA_IPV6)
    # In parts, as JSON's numbers are of 64 bits.
    yield _Field(base, bits + 192, 32, address >> 96)
    yield _Field(base, bits + 224, 64, (address >> 32) & (1 << 64) - 1)
    yield _Field(base, bits + 288, 32, address & 0xFFFFFFFF)


class EgressGuard:
    """A dataplane's own table with a chain on each uplink of this thread's network namespace."""

    def __init__(self, table: str) -> None:
        """``table``: its name, of family netdev; each dataplane has one of its own."""
        self._table = table
        self._key: Json = {"family": FAMILY, "table": table}

    def install(self, wanted: WantedState) -> None:
        """Guard the uplinks, or take the guard away where pods on the host network are left alone.

        A kernel without the hook is no error: it is logged, and docs/security.md says what remains.
        """
        if wanted.host_network is HostNetwork.IGNORE:
            self.remove()
            return
        uplinks = find_uplinks()
        if not self._problems(uplinks):
            return
        answer = nft.run(self._commands(uplinks))
        if answer.status:
            log.warning(
                "this kernel has no egress hook for nftables (Linux 5.16 has): a pod on the host network with NET_RAW "
                "can reach instance metadata through a packet socket (%s)",
                answer.complaint,
            )

    def remove(self) -> None:
        """Delete the table if there is one. Raises UserError."""
        if not self.is_present():
            return
        table = {"table": {"family": FAMILY, "name": self._table}}
        # Adding first makes the deletion of a table that has gone meanwhile succeed.
        answer = nft.run([{"add": table}, {"delete": table}])
        if answer.status:
            raise UserError(f"nftables refused to delete the table {FAMILY} {self._table}: {answer.complaint}")

    def is_present(self) -> bool:
        """Whether there is a table of ours; not where there is no nft."""
        with suppress(UserError):
            return self._listed() is not None
        return False

    def problems(self, wanted: WantedState) -> list[str]:
        """What differs from the wanted state, one line each. Nothing is missed on a kernel without the hook."""
        if wanted.host_network is HostNetwork.IGNORE:
            return [f"the table {FAMILY} {self._table} is there for nothing"] if self.is_present() else []
        uplinks = find_uplinks()
        problems = self._problems(uplinks)
        if problems and nft.run(self._commands(uplinks), check_only=True).status:
            return []
        return problems

    def dropped(self) -> int:
        """Packets dropped since the table was made."""
        with suppress(UserError):
            return (self._listed() or NO_TABLE).counters.get(COUNTER, Count()).packets
        return 0

    def _problems(self, uplinks: list[Device]) -> list[str]:
        table = self._listed() or NO_TABLE
        found = {chain.name: [rule.comment for rule in chain.rules] for chain in table.chains.values()}
        expected = {_chain_name(uplink): self._comments(uplink) for uplink in uplinks}
        problems = [
            f"packet sockets are not guarded against on {uplink.name}"
            for uplink in uplinks
            if found.get(_chain_name(uplink)) != expected[_chain_name(uplink)]
        ]
        return problems + [
            f"the chain {name} of {FAMILY} {self._table} is for nothing" for name in found if name not in expected
        ]

    def _listed(self) -> Table | None:
        return parse_nft_table(nft.list_table(FAMILY, self._table))

    def _comments(self, uplink: Device) -> list[str]:
        return [rule.get("comment", "") for rule in self._rules(uplink)]

    def _commands(self, uplinks: list[Device]) -> list[Json]:
        table: Json = {"table": {"family": FAMILY, "name": self._table}}
        commands: list[Json] = [{"add": table}, {"delete": table}, {"add": table}]
        commands.append({"add": {"counter": {**self._key, "name": COUNTER}}})
        for uplink in uplinks:
            hook = {"type": "filter", "hook": "egress", "dev": uplink.name, "prio": 0, "policy": "accept"}
            commands.append({"add": {"chain": {**self._key, "name": _chain_name(uplink), **hook}}})
            commands += [{"add": {"rule": rule}} for rule in self._rules(uplink)]
        return commands

    def _rules(self, uplink: Device) -> list[Json]:
        key: Json = {**self._key, "chain": _chain_name(uplink)}
        routed = {"match": {"op": ">=", "left": {"meta": {"key": "rtclassid"}}, "right": _ANY_ROUTE}}
        # With the device's name, which nft's JSON leaves out of what it lists of the chain.
        rules: list[Json] = [{**key, "expr": [routed, {"accept": None}], "comment": uplink.name}]
        for base, start in _positions():
            for ipv6 in (False, True):
                matches = [field.match for field in _fields(base, start, ipv6)]
                rules.append({**key, "expr": [*matches, {"counter": COUNTER}, {"drop": None}]})
        return rules


def _chain_name(device: Device) -> str:
    # An interface's name may hold what a chain's can't.
    return f"uplink-{device.index}"
