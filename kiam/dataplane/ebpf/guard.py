"""The guard: drops what reaches the host from outside it for a metadata address.

The cgroup hooks see connect and sendmsg. Packets that come from neither (raw and packet sockets of a container with
NET_RAW, tunnels and TAP devices made in a pod, connections older than the programs) have to pass the host's network
namespace to leave the node, and that is where this rule sees them: on every interface but ``lo``, those of pods that
start later included, with no process that has to keep up with them. The host's own packets don't come in on an
interface, so they never meet it. Where another dataplane's translation is at work when it is installed, connections
that were led to the agent that way are let through to their end. It is an nftables table because it has to survive the
agent without bpffs, on kernels older than the netfilter programs of Linux 6.4.
"""

from __future__ import annotations

from dataclasses import asdict
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

from kiam.dataplane.contract import WantedState
from kiam.errors import UserError
from kiam.metadata import METADATA_IPV4, METADATA_IPV6
from kiam.netfilter import nft
from kiam.netfilter.interfaces import EVERY_INTERFACE, InterfacePattern
from kiam.netfilter.model import NO_TABLE, Action, Count, Table
from kiam.netfilter.nft_listing import parse_nft_ruleset, parse_nft_table

TABLE = "kiam_ebpf"
_FAMILY = "inet"
_TABLE = {"table": {"family": _FAMILY, "name": TABLE}}
_COUNTER = "bypass"
_REQUESTS = "requests"
_ANSWERS = "answers"
_KEEPING = "keeps-translating"
_BEFORE_ALL = -310
"""Ahead of NF_IP_PRI_RAW (-300), conntrack and every DNAT: nothing may rewrite the destination first."""
_BEHIND_CONNTRACK = -150
"""Behind conntrack (-200), which knows what has been translated, and still ahead of every DNAT (-100)."""
_DSTNAT = -100
_TRACKED = Path("/proc/sys/net/netfilter/nf_conntrack_count")
"""Connections tracked in the network namespace of the thread that reads it."""
_LOOPBACK = "lo"


def _drop(chain: str, *matches: dict[str, Any]) -> dict[str, Any]:
    return _rule(chain, *({"match": match} for match in matches), {"counter": _COUNTER}, {"drop": None})


def _pass(chain: str, key: str, interface: InterfacePattern) -> dict[str, Any]:
    match = {"op": "==", "left": {"meta": {"key": key}}, "right": interface.nft_name}
    return _rule(chain, {"match": match}, {"accept": None})


def _rule(chain: str, *expression: dict[str, Any]) -> dict[str, Any]:
    return {"rule": {"family": _FAMILY, "table": TABLE, "chain": chain, "expr": list(expression)}}


def _chain(name: str, hook: str, priority: int, kind: str = "filter") -> dict[str, Any]:
    properties = {"type": kind, "hook": hook, "prio": priority, "policy": "accept"}
    return {"chain": {"family": _FAMILY, "table": TABLE, "name": name, **properties}}


def _address(protocol: str, field: str, address: str) -> dict[str, Any]:
    return {"op": "==", "left": {"payload": {"protocol": protocol, "field": field}}, "right": address}


def _translated_to(address: IPv4Address | IPv6Address, port: int) -> dict[str, Any]:
    protocol = "ip" if address.version == 4 else "ip6"
    metadata = METADATA_IPV4 if address.version == 4 else METADATA_IPV6
    matches: tuple[dict[str, Any], ...] = (
        _address(protocol, "daddr", str(metadata)),
        {"op": "==", "left": {"meta": {"key": "l4proto"}}, "right": "tcp"},
        {"op": "in", "left": {"ct": {"key": "status"}}, "right": "dnat"},
        {"op": "==", "left": {"ct": {"key": f"{protocol} saddr", "dir": "reply"}}, "right": str(address)},
        {"op": "==", "left": {"ct": {"key": "proto-src", "dir": "reply"}}, "right": port},
    )
    return _rule(_REQUESTS, *({"match": match} for match in matches), {"accept": None})


def wanted_objects(wanted: WantedState | None = None, finishing: bool = False) -> list[dict[str, Any]]:
    """The table's contents in libnftables' JSON (libnftables-json(5)).

    ``finishing``: let connections that another dataplane has translated to the agent go on, and keep the translation at
    work though nobody else's nat chain may be left. Only where connections are tracked anyway: it takes conntrack.
    """
    forward_from = None if wanted is None else wanted.forward_from
    agents = [] if wanted is None else [one for one in (wanted.host_address, wanted.host_address6) if one is not None]
    requests = _chain(_REQUESTS, "prerouting", _BEHIND_CONNTRACK if finishing else _BEFORE_ALL)
    from_outside = {"op": "!=", "left": {"meta": {"key": "iif"}}, "right": _LOOPBACK}
    addresses = (("ip", str(METADATA_IPV4)), ("ip6", str(METADATA_IPV6)))
    return [
        {"counter": {"family": _FAMILY, "table": TABLE, "name": _COUNTER}},
        requests,
        _chain(_ANSWERS, "forward", _BEFORE_ALL),
        *([_chain(_KEEPING, "prerouting", _DSTNAT, "nat")] if finishing else []),
        *(_translated_to(address, wanted.port) for address in agents if finishing and wanted is not None),
        *([_pass(_REQUESTS, "iifname", forward_from)] if forward_from else []),
        *(_drop(_REQUESTS, from_outside, _address(protocol, "daddr", address)) for protocol, address in addresses),
        *([_pass(_ANSWERS, "oifname", forward_from)] if forward_from else []),
        *([_pass(_ANSWERS, "iifname", forward_from)] if forward_from else []),
        # A request may have left by a route of its own, past this namespace; its answer is not to get in.
        *(_drop(_ANSWERS, _address(protocol, "saddr", address)) for protocol, address in addresses),
        # What a packet socket had come in on lo, and what was let through as translated and then wasn't.
        *(_drop(_ANSWERS, _address(protocol, "daddr", address)) for protocol, address in addresses),
    ]


def _change(commands: list[dict[str, Any]]) -> None:
    answer = nft.run(commands)
    if answer.status:
        raise UserError(f"nftables refused the guard of the eBPF dataplane: {answer.complaint}")


def _listed() -> Table | None:
    return parse_nft_table(nft.list_table(_FAMILY, TABLE))


def _has_to_hold(wanted: WantedState | None, finishing: bool) -> Table:
    """The same as a listing of it would be read."""
    return parse_nft_ruleset({"nftables": [_TABLE, *wanted_objects(wanted, finishing)]})[0]


def _are_connections_tracked() -> bool:
    try:
        return int(_TRACKED.read_text()) > 0
    except OSError:
        return False  # the kernel has no conntrack


class Guard:
    """The table in this thread's network namespace."""

    def __init__(self, wanted: WantedState | None = None) -> None:
        """Only installing and comparing go by the wanted state."""
        self._wanted = wanted

    def is_present(self) -> bool:
        """Whether there is a table of ours, right or wrong."""
        return _listed() is not None

    def is_right(self) -> bool:
        """Whether the table holds exactly what it has to."""
        return self._is_right(_listed())

    def _is_right(self, listed: Table | None) -> bool:
        possible = (_has_to_hold(self._wanted, finishing) for finishing in (False, True))
        return any(one == listed and one.counters.keys() == listed.counters.keys() for one in possible)

    def forwards_from(self) -> InterfacePattern | None:
        """The interfaces the table lets metadata traffic through for."""
        passing = (rule.interface for rule in (_listed() or NO_TABLE).rules(_REQUESTS) if rule.action is Action.ACCEPT)
        return next((interface for interface in passing if interface not in {None, EVERY_INTERFACE}), None)

    def install(self) -> None:
        """Make the table what it has to be, in one transaction; its counter goes on where it was. Raises UserError."""
        listed = _listed()
        if self._is_right(listed):
            return
        commands: list[dict[str, Any]] = [{"add": _TABLE}, {"delete": _TABLE}, {"add": _TABLE}]
        count = (listed or NO_TABLE).counters.get(_COUNTER, Count())
        for wanted in wanted_objects(self._wanted, finishing=_are_connections_tracked()):
            if "counter" in wanted:
                wanted = {"counter": {**wanted["counter"], **asdict(count)}}
            commands.append({"add": wanted})
        _change(commands)

    def remove(self) -> None:
        """Delete the table if there is one."""
        if self.is_present():
            _change([{"delete": _TABLE}])

    def dropped(self) -> int:
        """Packets dropped since the table was made."""
        return (_listed() or NO_TABLE).counters.get(_COUNTER, Count()).packets
