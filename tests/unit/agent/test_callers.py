"""Who is a pod of this node, or the node itself, by the kernel's route to it."""

from __future__ import annotations

import pytest

from kiam.agent.core.routes import Route
from kiam.agent.kernel.callers import is_ours
from kiam.netfilter.interfaces import InterfacePattern

HOST = Route(link=7, prefix_length=32, via_gateway=False, is_unicast=True)
SUBNET = Route(link=7, prefix_length=24, via_gateway=False, is_unicast=True)
GATEWAY = Route(link=7, prefix_length=24, via_gateway=True, is_unicast=True)
LOCAL = Route(link=7, prefix_length=32, via_gateway=False, is_unicast=False, is_local=True)
BLACKHOLE = Route(link=0, prefix_length=8, via_gateway=False, is_unicast=False)


@pytest.mark.parametrize(
    ("what", "route", "link", "uplinks", "pattern", "expected"),
    [
        ("the node itself", LOCAL, ("eth0", ""), {7}, "cali+", True),
        ("Calico, AWS VPC CNI", HOST, ("eni1234", "veth"), {2}, "!eth0", True),
        ("docker0, kubenet", SUBNET, ("docker0", "bridge"), {2}, "docker0", True),
        ("a pattern that names another", HOST, ("lxc1", "veth"), {2}, "cali+", True),
        ("Cilium", GATEWAY, ("cilium_host", "veth"), {2}, "lxc+", True),
        ("a card given to pods", SUBNET, ("ens6", ""), {2}, "ens6", True),
        ("the next machine of the subnet", SUBNET, ("eth0", ""), {7}, "!eth1", False),
        ("another subnet", GATEWAY, ("eth0", ""), {7}, "cali+", False),
        ("a machine at a second card", SUBNET, ("eth1", ""), {2}, "!eth0", False),
        ("a machine at a second card, any name", SUBNET, ("eth1", ""), {2}, "+", False),
        ("the next machine, if the card is named", SUBNET, ("eth0", ""), {7}, "eth0", False),
        ("a pod elsewhere, flannel", GATEWAY, ("flannel.1", "vxlan"), {2}, "!eth0", False),
        ("a pod elsewhere, Calico", GATEWAY, ("tunl0", "ipip"), {2}, "+", False),
        ("a pod elsewhere, by a bridge's gateway", GATEWAY, ("br0", "bridge"), {2}, "docker0", False),
        ("a node that is a container itself", SUBNET, ("eth0", "veth"), {7}, "cali+", False),
        ("a bridge to the world", SUBNET, ("br0", "bridge"), {7}, "docker0", False),
        ("nowhere", BLACKHOLE, ("lo", ""), {2}, "+", False),
        ("no route", None, None, {2}, "+", False),
        ("a link that has gone", HOST, None, {2}, "+", False),
    ],
)
def test_by_route(
    what: str, route: Route | None, link: tuple[str, str] | None, uplinks: set[int], pattern: str, expected: bool
) -> None:
    assert is_ours(route, link, frozenset(uplinks), InterfacePattern.parse(pattern)) is expected, what
