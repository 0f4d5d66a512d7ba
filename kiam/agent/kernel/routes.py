"""What the kernel knows of the way to each pod's address, and when that stops being the way it was.

While the server is away an address may pass to another pod, and nobody tells us. The kernel knows: the new pod has
another interface. So a pod is remembered together with its interface, and forgotten as soon as that changes.
``docs/outage.md`` has the whole argument. Pure decisions; :mod:`kiam.agent.kernel.rtnetlink` brings what they are made
from.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address

POD_LINKS = frozenset({"veth", "netkit"})
"""Kinds of link whose other end is in one pod's network namespace, and which go when that namespace goes."""


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


@dataclass(frozen=True, slots=True)
class Way:
    """The way to a pod: its own interface, or a bridge, the pod's link-layer address on it, and the pod's port."""

    link: int
    lladdr: str = ""
    port: int = 0


class Neighbourhood:
    """A mirror of the kernel's links, neighbours and bridge ports, kept by netlink notifications."""

    def __init__(self) -> None:
        self.links: dict[int, Link] = {}
        self.neighbours: dict[tuple[int, str], str] = {}
        """(link, IP address) to link-layer address."""
        self.ports: dict[tuple[int, str], int] = {}
        """(bridge, link-layer address) to the port it was last seen on: the bridge's forwarding database."""

    def way_to(self, address: str, route: Route | None) -> Way | None:
        """The way to an address if it leads to exactly one pod; None: it doesn't, or that isn't known (yet).

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
            return Way(link.index) if route.prefix_length == (128 if ":" in address else 32) else None
        if link.kind != "bridge":
            return None
        lladdr = self.neighbours.get((link.index, address), "")
        port = self.links.get(self.ports.get((link.index, lladdr), 0))
        if not lladdr or port is None or port.kind not in POD_LINKS or port.master != link.index:
            return None
        return Way(link.index, lladdr, port.index)

    def still_holds(self, address: str, way: Way, route: Route | None) -> bool:
        """Whether nothing contradicts a way that was known once.

        A neighbour or a bridge's entry that has aged away contradicts nothing: another pod can't send a packet without
        bringing its own. A link that is gone, or another one, does.
        """
        if route is None or route.link != way.link or route.via_gateway or not route.is_unicast:
            return False
        if way.link not in self.links:
            return False
        if not way.port:
            return route.prefix_length == (128 if ":" in address else 32)
        port = self.links.get(way.port)
        if port is None or port.master != way.link:
            return False
        if self.neighbours.get((way.link, address), way.lladdr) != way.lladdr:
            return False
        return self.ports.get((way.link, way.lladdr), way.port) == way.port


def covers(network: IPv4Network | IPv6Network, address: str) -> bool:
    """Whether a route to a network could be the one to an address."""
    parsed = ip_address(address)
    return parsed.version == network.version and parsed in network
