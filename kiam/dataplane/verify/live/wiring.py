"""Wires a throwaway namespace to the node the way the node's pods are wired, and nothing else."""

from __future__ import annotations

import contextlib
import errno
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from kiam.dataplane import InterfacePattern
from kiam.dataplane.verify.interfaces import Interface
from kiam.errors import UserError

BENCHMARKING = IPv4Address("198.18.0.0")
"""198.18.0.0/15 is set aside for tests of network devices and not routed (RFC 2544, RFC 6890), so no pods have it."""
UNIQUE_LOCAL = IPv6Address("fd6b:6961:6d00::")
"""A prefix of unique local addresses (RFC 4193)."""
GATEWAY = "169.254.1.1"
GATEWAY6 = "fe80::1"
IFNAMSIZ = 15
ATTEMPTS = 8
IFA_F_NODAD = 2
NUD_PERMANENT = 0x80


@dataclass(frozen=True, slots=True)
class Plan:
    """How the namespace will be connected."""

    host_name: str
    """The veth's end on the host."""
    bridge: str | None
    """The bridge it is put on; None: it is routed by itself."""


class CannotWireError(UserError):
    """There is no way to make an interface the pattern matches; the message says why."""


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
def wired(plan: Plan, namespace: str, address: IPv4Address | None = None) -> Iterator[Wired]:
    """Connect the namespace, and disconnect it at the end: deleting one end of a veth pair deletes both, with the
    routes through it; the two entries on a bridge are taken out by themselves. Raises UserError.
    """
    with contextlib.ExitStack() as undo:
        host = undo.enter_context(IPRoute(groups=0))
        pod = undo.enter_context(IPRoute(groups=0, netns=namespace))
        try:
            yield _connect(plan, namespace, address, host, pod, undo)
        except NetlinkError as error:
            raise UserError(f"can't wire a namespace to the node: {error}") from error


def _connect(
    plan: Plan, namespace: str, address: IPv4Address | None, host: Any, pod: Any, undo: contextlib.ExitStack
) -> Wired:
    with Path(namespace).open("rb") as handle:
        host.link("add", ifname=plan.host_name, kind="veth", peer={"ifname": "eth0", "net_ns_fd": handle.fileno()})
    undo.callback(_delete_link, host, plan.host_name)
    veth = host.link_lookup(ifname=plan.host_name)[0]
    inner = pod.link_lookup(ifname="eth0")[0]
    pod.link("set", index=pod.link_lookup(ifname="lo")[0], state="up")
    via = veth
    if plan.bridge is not None:
        via = host.link_lookup(ifname=plan.bridge)[0]
        host.link("set", index=veth, master=via)
    ipv6 = Path("/proc/thread-self/net/if_inet6").exists() and _ipv6_enabled(plan.bridge or plan.host_name)
    host.link("set", index=veth, state="up")
    pod.link("set", index=inner, state="up")
    next_hop = _mac(host, via)
    pod_mac = _mac(pod, inner)
    chosen = _route_to_pod(host, via, pod_mac, address, undo)
    # Neighbours are written down rather than asked for: no ARP, no proxy ARP, no address on the host's end.
    pod.addr("add", index=inner, address=str(chosen), prefixlen=32)
    pod.neigh("add", dst=GATEWAY, lladdr=next_hop, ifindex=inner, state=NUD_PERMANENT)
    pod.route("add", dst=f"{GATEWAY}/32", oif=inner, scope=253)
    pod.route("add", dst="default", gateway=GATEWAY, oif=inner)
    chosen6 = _connect6(host, pod, via, inner, next_hop, pod_mac, undo) if ipv6 else None
    return Wired(plan.host_name, plan.bridge, chosen, chosen6)


def _ipv6_enabled(interface: str) -> bool:
    try:
        return Path("/proc/sys/net/ipv6/conf", interface, "disable_ipv6").read_text().strip() == "0"
    except OSError:
        return False


def _mac(netlink: Any, index: int) -> str:
    return str(netlink.get_links(index)[0].get("address"))


def _route_to_pod(
    host: Any, via: int, pod_mac: str, address: IPv4Address | None, undo: contextlib.ExitStack
) -> IPv4Address:
    for _ in range(ATTEMPTS):
        chosen = address or BENCHMARKING + secrets.randbelow(2**17 - 2) + 1
        try:
            # "add" refuses an address somebody else has a route to.
            host.route("add", dst=f"{chosen}/32", oif=via, scope=253)
        except NetlinkError as error:
            if error.code == errno.EEXIST and address is None:
                continue
            raise
        undo.callback(_quietly, host.route, "del", dst=f"{chosen}/32", oif=via, scope=253)
        host.neigh("replace", dst=str(chosen), lladdr=pod_mac, ifindex=via, state=NUD_PERMANENT)
        undo.callback(_quietly, host.neigh, "del", dst=str(chosen), ifindex=via)
        return chosen
    raise UserError("198.18.0.0/15 is in use on this node: give the probe another address with --pod-address")


def _connect6(
    host: Any, pod: Any, via: int, inner: int, next_hop: str, pod_mac: str, undo: contextlib.ExitStack
) -> IPv6Address:
    chosen = UNIQUE_LOCAL + secrets.randbits(64)
    host.route("add", dst=f"{chosen}/128", oif=via, family=10)
    undo.callback(_quietly, host.route, "del", dst=f"{chosen}/128", oif=via, family=10)
    host.neigh("replace", dst=str(chosen), lladdr=pod_mac, ifindex=via, state=NUD_PERMANENT, family=10)
    undo.callback(_quietly, host.neigh, "del", dst=str(chosen), ifindex=via, family=10)
    # Without duplicate address detection, which would keep the address from being used for a second or two.
    pod.addr("add", index=inner, address=str(chosen), prefixlen=128, family=10, flags=IFA_F_NODAD)
    pod.neigh("add", dst=GATEWAY6, lladdr=next_hop, ifindex=inner, state=NUD_PERMANENT, family=10)
    pod.route("add", dst="default", gateway=GATEWAY6, oif=inner, family=10)
    return chosen


def _delete_link(host: Any, name: str) -> None:
    _quietly(host.link, "del", ifname=name)


def _quietly(operation: Any, *arguments: Any, **keywords: Any) -> None:
    # Gone already: with the namespace went the veth, and with the veth its routes and neighbours.
    with contextlib.suppress(NetlinkError):
        operation(*arguments, **keywords)
