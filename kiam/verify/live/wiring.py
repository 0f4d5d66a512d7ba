"""Wires a throwaway namespace to the node as the node's pods are wired, and nothing else."""

from __future__ import annotations

import contextlib
import errno
import secrets
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from kiam.errors import UserError
from kiam.netfilter.interfaces import InterfacePattern
from kiam.verify.checks.interfaces import Interface
from kiam.verify.live.inside import INNER, NUD_PERMANENT
from kiam.verify.live.probe import Probe

BENCHMARKING = IPv4Address("198.18.0.0")
"""198.18.0.0/15 is set aside for tests of network devices and not routed (RFC 2544, RFC 6890), so no pods have it."""
UNIQUE_LOCAL = IPv6Address("fd6b:6961:6d00::")
"""A prefix of unique local addresses (RFC 4193)."""
IFNAMSIZ = 15
ATTEMPTS = 8
LINK_SCOPE = 253
"""RT_SCOPE_LINK, linux/rtnetlink.h."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How the namespace will be connected."""

    host_name: str
    """The veth's end on the host."""
    bridge: str | None
    """The bridge it is put on; None: it is routed by itself."""


class CannotWireError(UserError):
    """No interface can be made that the pattern matches; the message says why."""


def plan(pattern: InterfacePattern, interfaces: Sequence[Interface]) -> Plan:
    """Choose a name the pattern matches, or the bridge it names. Raises CannotWireError."""
    by_name = {interface.name: interface for interface in interfaces}
    if not pattern.wildcard and not pattern.inverted:
        named = by_name.get(pattern.name)
        if named is None:
            raise CannotWireError(f"no interface {pattern.name} exists, so nothing can be wired to it")
        if not named.is_bridge:
            raise CannotWireError(f"{pattern.name} is no bridge, so no second pod can be wired to it")
        return Plan(_name("kiamv"), named.name)
    bridge = next((i.name for i in interfaces if i.is_bridge and i.ports and pattern.matches(i.name)), None)
    single = any(i.looks_like_pod and not i.is_bridge and pattern.matches(i.name) for i in interfaces)
    if bridge is not None and not single:
        return Plan(_name("kiamv"), bridge)
    if pattern.inverted:
        prefix = _prefix_of_pods(interfaces)
        return Plan(_matching(pattern, prefix), None)
    return Plan(_name(pattern.name), None)


def _prefix_of_pods(interfaces: Sequence[Interface]) -> str:
    for interface in interfaces:
        if interface.looks_like_pod and not interface.is_bridge:
            letters = interface.name.rstrip("0123456789abcdef")
            return letters[:8] or "kiamv"
    return "kiamv"


def _matching(pattern: InterfacePattern, prefix: str) -> str:
    for candidate in (prefix, "kiamv", "vkiam"):
        name = _name(candidate)
        if pattern.matches(name):
            return name
    raise CannotWireError(f"{pattern} matches no name this command could use")


def _name(prefix: str) -> str:
    room = IFNAMSIZ - len(prefix)
    if room < 2:
        raise CannotWireError(f"the prefix {prefix} leaves no room for a name of its own")
    return prefix + secrets.token_hex(8)[: min(room, 8)]


@dataclass(frozen=True, slots=True)
class Wired:
    """A namespace that has been connected."""

    host_name: str
    bridge: str | None
    address: IPv4Address
    address6: IPv6Address | None


@contextlib.contextmanager
def wired(plan: Plan, pod: Probe, address: IPv4Address | None = None) -> Iterator[Wired]:
    """Connect the pod's namespace, and disconnect it at the end: deleting one end of a veth pair deletes both, with the
    routes through it; the entries on a bridge are taken out by themselves. Raises UserError.
    """
    with contextlib.ExitStack() as undo:
        host = undo.enter_context(IPRoute(groups=0))
        try:
            connected = _connect(plan, pod, address, host, undo)
        except NetlinkError as error:
            raise UserError(f"can't wire a namespace to the node: {error}") from error
        yield connected


def _connect(plan: Plan, pod: Probe, address: IPv4Address | None, host: Any, undo: contextlib.ExitStack) -> Wired:
    pod_mac = _random_mac()
    with Path(pod.namespace).open("rb") as handle:
        peer = {"ifname": INNER, "net_ns_fd": handle.fileno(), "address": pod_mac}
        host.link("add", ifname=plan.host_name, kind="veth", peer=peer)
    undo.callback(_quietly, host.link, "del", ifname=plan.host_name)
    veth = via = host.link_lookup(ifname=plan.host_name)[0]
    if plan.bridge is not None:
        via = host.link_lookup(ifname=plan.bridge)[0]
        host.link("set", index=veth, master=via)
    ipv6 = _ipv6_enabled(plan.bridge or plan.host_name)
    host.link("set", index=veth, state="up")
    next_hop = str(host.get_links(via)[0].get("address"))
    chosen = _route_to_pod(host, via, pod_mac, address, undo)
    chosen6 = _route_to_pod6(host, via, pod_mac, undo) if ipv6 else None
    pod.configure(str(chosen), str(chosen6 or ""), next_hop)
    return Wired(plan.host_name, plan.bridge, chosen, chosen6)


def _random_mac() -> str:
    # Locally administered, unicast (IEEE 802: the two lowest bits of the first byte are 1 and 0).
    return "02:" + ":".join(f"{byte:02x}" for byte in secrets.token_bytes(5))


def _ipv6_enabled(interface: str) -> bool:
    try:
        return Path("/proc/sys/net/ipv6/conf", interface, "disable_ipv6").read_text().strip() == "0"
    except OSError:
        return False


def _route_to_pod(
    host: Any, via: int, pod_mac: str, address: IPv4Address | None, undo: contextlib.ExitStack
) -> IPv4Address:
    for _ in range(ATTEMPTS):
        chosen = address or BENCHMARKING + secrets.randbelow(2**17 - 2) + 1
        try:
            # "add" refuses an address somebody else has a route to.
            host.route("add", dst=f"{chosen}/32", oif=via, scope=LINK_SCOPE)
        except NetlinkError as error:
            if error.code == errno.EEXIST and address is None:
                continue
            raise
        undo.callback(_quietly, host.route, "del", dst=f"{chosen}/32", oif=via, scope=LINK_SCOPE)
        host.neigh("replace", dst=str(chosen), lladdr=pod_mac, ifindex=via, state=NUD_PERMANENT)
        undo.callback(_quietly, host.neigh, "del", dst=str(chosen), ifindex=via)
        return chosen
    raise UserError("198.18.0.0/15 is in use on this node: give the probe another address with --pod-address")


def _route_to_pod6(host: Any, via: int, pod_mac: str, undo: contextlib.ExitStack) -> IPv6Address:
    chosen = UNIQUE_LOCAL + secrets.randbits(64)
    host.route("add", dst=f"{chosen}/128", oif=via, family=socket.AF_INET6)
    undo.callback(_quietly, host.route, "del", dst=f"{chosen}/128", oif=via, family=socket.AF_INET6)
    host.neigh("replace", dst=str(chosen), lladdr=pod_mac, ifindex=via, state=NUD_PERMANENT, family=socket.AF_INET6)
    undo.callback(_quietly, host.neigh, "del", dst=str(chosen), ifindex=via, family=socket.AF_INET6)
    return chosen


def _quietly(operation: Any, *arguments: Any, **keywords: Any) -> None:
    # Gone already: with the namespace went the veth, and with the veth its routes and neighbours.
    with contextlib.suppress(NetlinkError):
        operation(*arguments, **keywords)
