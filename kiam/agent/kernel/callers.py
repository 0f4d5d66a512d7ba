"""Who is at the other end of a connection: a pod of this node, the node itself, or another host.

Decided by the kernel's route to the address, so that it works with a server that names no pods too. What leaves by the
route to the rest of the world is another host; what is behind a link that only pods have, or one that
``--host-interface`` names, is a pod. With CNIs that stretch one bridge over all nodes (Weave), pods of other nodes
can't be told from this one's.
"""

from __future__ import annotations

import contextlib

from kiam.agent.core.routes import POD_LINKS, Route
from kiam.agent.kernel.rtnetlink import Questions
from kiam.netfilter.interfaces import InterfacePattern

_POD_KINDS = POD_LINKS | {"bridge", "ipvlan", "macvlan", "openvswitch", "tun"}
_TUNNEL_KINDS = frozenset(
    {"erspan", "geneve", "gre", "gretap", "ip6gre", "ip6tnl", "ipip", "sit", "vxlan", "wireguard"}
)
"""Between nodes: who comes out of them is a pod elsewhere."""


def is_ours(
    route: Route | None, link: tuple[str, str] | None, uplinks: frozenset[int], interface: InterfacePattern
) -> bool:
    """Whether an address is a pod's of this node, or the node's own, by the route to it and that route's link."""
    if route is None or link is None:
        return False
    if route.is_local:
        return True
    name, kind = link
    if not route.is_unicast or route.link in uplinks or kind in _TUNNEL_KINDS:
        return False
    # Cilium's pods are behind a gateway on one end of a veth pair; other gateways lead off the node.
    if route.via_gateway and kind not in POD_LINKS:
        return False
    # A pattern that only says what isn't a pod's names nothing.
    is_named = not interface.inverted and bool(interface.name) and interface.matches(name)
    return kind in _POD_KINDS or is_named


class Callers:
    """Asks the kernel, anew each time: routes change, and no credentials wait for this."""

    def __init__(self, interface: InterfacePattern) -> None:
        """``interface``: those that pods come in on (``--host-interface``)."""
        self._interface = interface
        self._questions = Questions()

    def close(self) -> None:
        """No more questions."""
        self._questions.close()

    def is_ours(self, address: str) -> bool:
        """Whether an address is a pod's of this node, or the node's own. What can't be found out isn't."""
        with contextlib.suppress(OSError, ValueError):
            route = self._questions.route_to(address)
            link = self._questions.link(route.link) if route is not None else None
            return is_ours(route, link, self._questions.uplinks(), self._interface)
        return False
