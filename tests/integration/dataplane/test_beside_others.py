"""Every dataplane beside the rules of others: thousands of kube-proxy's, and some that would take the packet first."""

from __future__ import annotations

import pytest

from kiam.dataplane.contract import Condition
from tests.integration.dataplane.conftest import Plane
from tests.integration.dataplane.kube_proxy import iptables_rules, nftables_rules
from tests.integration.dataplane.world import METADATA, World

SERVICES = 1000
TAKES_METADATA = "192.0.2.1:8080"
"""Where the greedy rules send the packet: to the real service, under a port that isn't asked for otherwise."""


def give_iptables(world: World, backend: str, number: int) -> None:
    world.node.run(f"iptables-{backend}-restore", "--noflush", stdin=iptables_rules(number))


def give_greedy(world: World, kind: str, command: str) -> None:
    """Add (-A) or delete (-D) a rule of somebody else's that takes metadata traffic of pods to the real service."""
    if kind == "nft" and command == "-D":
        world.node.run("nft", "delete", "table", "ip", "greedy")
        return
    if kind == "nft":
        text = f"""
            add table ip greedy
            add chain ip greedy c {{ type nat hook prerouting priority dstnat; policy accept; }}
            add rule ip greedy c ip daddr {METADATA} tcp dport 80 dnat to {TAKES_METADATA}
        """
        world.node.run("nft", "-f", "-", stdin=text)
        return
    match = ("-d", METADATA, "-p", "tcp", "--dport", "80")
    target = ("-j", "DNAT", "--to-destination", TAKES_METADATA)
    world.node.run(kind, "-t", "nat", command, "PREROUTING", *match, *target)


@pytest.fixture(autouse=True)
def _others_gone(world: World, plane: Plane) -> None:
    """Start from a node without rules (the plane is there first, and so is gone last)."""
    for backend in ("nft", "legacy"):
        for table in ("nat", "mangle", "filter"):
            world.node.run(f"iptables-{backend}", "-t", table, "-F", check=False)
            world.node.run(f"iptables-{backend}", "-t", table, "-X", check=False)
    world.node.run("nft", "flush", "ruleset")
    world.forget_connections()


@pytest.mark.parametrize("others", ["iptables-nft", "iptables-legacy", "nftables"])
def test_beside_thousands_of_kube_proxys_rules(plane: Plane, world: World, others: str) -> None:
    if others == "nftables":
        world.node.run("nft", "-f", "-", stdin=nftables_rules(SERVICES))
    else:
        give_iptables(world, others.removeprefix("iptables-"), SERVICES)
    before = world.state()
    plane.install()
    with world.nothing_gets_through():
        answer = world.client.do("who", METADATA)
        world.client.ask("datagram", METADATA, 80)
    assert (answer["service"], answer["source"]) == ("agent", str(world.pod.address))
    assert world.host.do("who", METADATA)["service"] == "real"
    plane.remove()
    assert world.state() == before


def test_ahead_of_a_rule_that_takes_metadata_traffic(plane: Plane, world: World) -> None:
    # Between the two rule stores of iptables, of one priority, the younger hook is asked first, whatever either holds;
    # that a rule of the other store takes the packet is for "kiam dataplane verify" to tell.
    everywhere = ("nft", "iptables-nft", "iptables-legacy")
    for kind in (plane.variant,) if plane.variant.startswith("iptables") else everywhere:
        give_greedy(world, kind, "-A")
        assert world.client.do("who", METADATA)["port"] == 8080, f"the greedy rule of {kind} has to work without us"
        plane.install()
        assert world.client.do("who", METADATA)["service"] == "agent", kind
        assert plane.inspect(plane.wanted).condition is Condition.INSTALLED
        plane.remove()
        give_greedy(world, kind, "-D")
