"""What our table in a listing was installed for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address

from kiam.dataplane.cgroups import GONE, cgroup_of_id, find_cgroup2_root
from kiam.dataplane.contract import HostNetwork, WantedState
from kiam.dataplane.nftables.rules import Json, ListedChain
from kiam.netfilter.interfaces import EVERY_INTERFACE, InterfacePattern

_CGROUP = re.compile(r"cgroup (?P<id>\d+) level (?P<level>\d+)")


def read_back(listed: Mapping[str, ListedChain]) -> WantedState | None:
    """The wanted state behind the table's chains; None where no redirect is in them."""
    host: tuple[IPv4Address, int, InterfacePattern] | None = None
    host6: IPv6Address | None = None
    for expressions, _ in listed["pods-redirect"].rules if "pods-redirect" in listed else ():
        translation = _find(expressions, "dnat")
        match translation:
            case {"family": "ip", "addr": str(address), "port": int(port)}:
                host = IPv4Address(address), port, _interface(expressions)
            case {"family": "ip6", "addr": str(address)}:
                host6 = IPv6Address(address)
    if host is None:
        return None
    return WantedState(
        host_address=host[0],
        port=host[1],
        interface=host[2],
        host_address6=host6,
        host_network=_host_network(listed),
        agent_cgroup=_agent_cgroup(listed),
        forward_from=_forward_from(listed),
    )


def _find(expressions: Iterable[Json], kind: str) -> Json | None:
    return next((expression[kind] for expression in expressions if kind in expression), None)


def _interface(expressions: Sequence[Json]) -> InterfacePattern:
    for expression in expressions:
        match expression:
            case {"match": {"op": operator, "left": {"meta": {"key": "iifname"}}, "right": str(name)}}:
                return InterfacePattern(name.removesuffix("*"), name.endswith("*"), operator == "!=")
    return EVERY_INTERFACE


def _forward_from(listed: Mapping[str, ListedChain]) -> InterfacePattern | None:
    rules = listed["pods-guard"].rules if "pods-guard" in listed else ()
    # An older version of ours let lo pass there.
    passing = (_interface(expressions) for expressions, _ in rules if {"return": None} in expressions)
    return next((interface for interface in passing if interface.name != "lo"), None)


def _host_network(listed: Mapping[str, ListedChain]) -> HostNetwork:
    if "host-pods-redirect" in listed:
        return HostNetwork.REDIRECT
    return HostNetwork.DENY if "host-pods-guard" in listed else HostNetwork.IGNORE


def _agent_cgroup(listed: Mapping[str, ListedChain]) -> str | None:
    """By its number, which the rule's comment repeats: how a path is listed depends on who asks."""
    guard = listed.get("host-pods-guard")
    for expressions, comment in guard.rules if guard is not None else ():
        found = _CGROUP.fullmatch(comment or "")
        if found is not None and any("return" in expression for expression in expressions):
            alive = cgroup_of_id(find_cgroup2_root(), int(found["id"]), int(found["level"]))
            return GONE if alive is None else alive.name
    return None
