"""What the kernel knows of the route to each pod's address, and when that stops being the route it was.

While the server is away an address may pass to another pod, and nobody tells us. The kernel knows: the new pod has
another interface. So a pod is remembered together with its interface, and forgotten as soon as that changes.
``docs/outage.md`` has the whole argument. Pure decisions; :mod:`kiam.agent.kernel.watcher` brings what they are made
from.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address

POD_LINKS = frozenset({"veth", "netkit"})
"""Kinds of link whose other end is in one pod's network namespace, and which go when that namespace goes."""
ALWAYS = float("-inf")
"""Since when a link exists that was there before anybody watched."""


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface (rtnetlink(7), ifinfomsg)."""

    index: int
    """Unique as long as the machine runs: the kernel counts up."""
    kind: str
    """IFLA_INFO_KIND; empty for hardware."""
    master: int
    """Index of the bridge it is a port of; 0: none."""


@dataclass(frozen=True, slots=True)
class Route:
    """The routing table's entry for an address."""

    link: int
    prefix_length: int
    via_gateway: bool
    is_unicast: bool
    is_local: bool = False
    """The address is the node's own."""


@dataclass(frozen=True, slots=True)
class PodRoute:
    """The route to one pod: its own interface, or a bridge, the pod's link-layer address on it, and the pod's port."""

    link: int
    lladdr: str = ""
    port: int = 0

    @property
    def pod_link(self) -> int:
        """The index of the pod's own interface."""
        return self.port or self.link


@dataclass(frozen=True, slots=True)
class LinkChange:
    """A link appeared, changed or (``gone``) disappeared."""

    link: Link
    gone: bool


@dataclass(frozen=True, slots=True)
class NeighbourChange:
    """The link-layer address of an IP address; empty: not known any more."""

    link: int
    address: str
    lladdr: str


@dataclass(frozen=True, slots=True)
class PortChange:
    """The port on which a bridge saw a link-layer address; 0: aged away."""

    bridge: int
    lladdr: str
    port: int


@dataclass(frozen=True, slots=True)
class RouteChange:
    """Some route to a network changed."""

    network: IPv4Network | IPv6Network


Change = LinkChange | NeighbourChange | PortChange | RouteChange


class Neighbourhood:
    """A mirror of the kernel's links, neighbours and bridge ports, kept by netlink notifications."""

    def __init__(self) -> None:
        self.links: dict[int, Link] = {}
        self.since: dict[int, float] = {}
        """When each link was first seen."""
        self.neighbours: dict[tuple[int, str], str] = {}
        """(link, IP address) to link-layer address."""
        self.ports: dict[tuple[int, str], int] = {}
        """(bridge, link-layer address) to the port it was last seen on: the bridge's forwarding database."""

    def note(self, change: Change, now: float) -> None:
        """Take a change in."""
        if isinstance(change, LinkChange):
            if change.gone:
                self._remove_link(change.link.index)
            else:
                self.links[change.link.index] = change.link
                self.since.setdefault(change.link.index, now)
        elif isinstance(change, NeighbourChange):
            if change.lladdr:
                self.neighbours[change.link, change.address] = change.lladdr
            else:
                self.neighbours.pop((change.link, change.address), None)
        elif isinstance(change, PortChange):
            if change.port:
                self.ports[change.bridge, change.lladdr] = change.port
            else:
                self.ports.pop((change.bridge, change.lladdr), None)

    def replace(self, everything: Iterable[Change], now: float) -> None:
        """Start anew from a complete listing; a link that is known keeps its age."""
        seen_before, self.since = self.since, {}
        self.links.clear()
        self.neighbours.clear()
        self.ports.clear()
        for change in everything:
            since = seen_before.get(change.link.index, now) if isinstance(change, LinkChange) else now
            self.note(change, since)

    def _remove_link(self, index: int) -> None:
        self.links.pop(index, None)
        self.since.pop(index, None)
        for table in (self.neighbours, self.ports):
            for key in [key for key in table if key[0] == index]:
                del table[key]

    def pod_route(self, address: str, route: Route | None) -> PodRoute | None:
        """The route to an address if it leads to exactly one pod; None: it doesn't, or that isn't known (yet).

        - veth-route CNIs (Calico, AWS VPC CNI): a host route to an interface of the pod's own.
        - bridge CNIs (kubenet, kube-router): through a bridge, whose forwarding database knows the pod's port.
        """
        if route is None or route.via_gateway or not route.is_unicast:
            return None
        link = self.links.get(route.link)
        if link is None:
            return None
        if link.kind in POD_LINKS and not link.master:
            # A network behind one interface could be several pods; a host route can't.
            return PodRoute(link.index) if _is_host_route(address, route) else None
        if link.kind != "bridge":
            return None
        lladdr = self.neighbours.get((link.index, address), "")
        port = self.links.get(self.ports.get((link.index, lladdr), 0))
        if not lladdr or port is None or port.kind not in POD_LINKS or port.master != link.index:
            return None
        return PodRoute(link.index, lladdr, port.index)

    def still_holds(self, address: str, known: PodRoute, route: Route | None) -> bool:
        """Whether nothing contradicts a route that was known once.

        A neighbour or a bridge's entry that has aged away contradicts nothing: another pod can't send a packet without
        bringing its own. A link that is gone, or another one, does.
        """
        if route is None or route.link != known.link or route.via_gateway or not route.is_unicast:
            return False
        if known.link not in self.links:
            return False
        if not known.port:
            return _is_host_route(address, route)
        port = self.links.get(known.port)
        if port is None or port.master != known.link:
            return False
        if self.neighbours.get((known.link, address), known.lladdr) != known.lladdr:
            return False
        return self.ports.get((known.link, known.lladdr), known.port) == known.port

    def may_complete(self, change: Change, address: str) -> bool:
        """Whether a change, once noted, may be what was missing to know the route to an address."""
        if isinstance(change, NeighbourChange):
            return change.address == address
        if isinstance(change, PortChange):
            return self.neighbours.get((change.bridge, address)) == change.lladdr
        if isinstance(change, RouteChange):
            return covers(change.network, address)
        return True


def concerns(change: Change, address: str, known: PodRoute) -> bool:
    """Whether a change may have to do with a known route to an address."""
    if isinstance(change, LinkChange):
        return change.link.index in (known.link, known.port)
    if isinstance(change, NeighbourChange):
        return change.address == address
    if isinstance(change, PortChange):
        return bool(known.port) and change.lladdr == known.lladdr and change.bridge == known.link
    return covers(change.network, address)


def covers(network: IPv4Network | IPv6Network, address: str) -> bool:
    """Whether a route to a network could be the one to an address."""
    parsed = ip_address(address)
    return parsed.version == network.version and parsed in network


def _is_host_route(address: str, route: Route) -> bool:
    return route.prefix_length == (128 if ":" in address else 32)
