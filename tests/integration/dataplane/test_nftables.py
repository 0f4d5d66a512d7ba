"""What only nftables has: counters with names, a table that is exchanged in one transaction."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from kiam.dataplane.contract import Condition
from kiam.netfilter.interfaces import InterfacePattern
from tests.integration.dataplane.conftest import Plane
from tests.integration.dataplane.world import METADATA, OTHER_AGENT_PORT, World


@pytest.fixture
def nftables(world: World) -> Iterator[Plane]:
    made = Plane("nftables", world)
    world.forget_connections()
    yield made
    made.remove()


def handles(world: World) -> list[int]:
    listing = json.loads(world.node.run("nft", "-j", "-a", "list", "table", "inet", "kiam").stdout)
    return [next(iter(entry.values()))["handle"] for entry in listing["nftables"] if "metainfo" not in entry]


def test_nothing_is_written_where_all_is_well(nftables: Plane, world: World) -> None:
    nftables.install()
    before = handles(world)
    nftables.install()
    assert handles(world) == before


def test_counts_survive_an_upgrade(nftables: Plane, world: World) -> None:
    nftables.install()
    world.client.do("who", METADATA)
    world.client.ask("try_connect", METADATA, 81)
    before = nftables.counters()
    nftables.install(nftables.but(port=OTHER_AGENT_PORT))
    assert nftables.counters() == before
    world.client.do("who", METADATA)
    assert nftables.counters().redirects == before.redirects + 1


@pytest.mark.parametrize(
    "damage",
    [
        "flush chain inet kiam pods-redirect",
        "flush chain inet kiam pods-guard",
        "add rule inet kiam pods-guard accept",
        "insert rule inet kiam pods-redirect accept",
        "flush chain inet kiam answers-guard; delete chain inet kiam answers-guard",
        "add chain inet kiam of-an-older-version",
        "flush table inet kiam",
        "delete table inet kiam; add table inet kiam",
        "flush chain inet kiam pods-redirect; delete chain inet kiam pods-redirect; "
        "add chain inet kiam pods-redirect { type nat hook prerouting priority 0; }",
    ],
)
def test_a_damaged_table_is_seen_and_mended(nftables: Plane, world: World, damage: str) -> None:
    nftables.install()
    whole = nftables.inspect().found
    world.node.run("nft", damage)
    inspection = nftables.inspect(nftables.wanted)
    assert inspection.condition is Condition.DIFFERENT
    assert inspection.problems
    nftables.install()
    assert sorted(nftables.inspect().found) == sorted(whole)
    with world.nothing_gets_through():
        assert world.client.do("who", METADATA)["service"] == "agent"


@pytest.mark.parametrize("pattern", ["!eth0", "+", "!calix+", "cali+"])
def test_every_kind_of_pattern(nftables: Plane, world: World, pattern: str) -> None:
    nftables.install(nftables.but(interface=InterfacePattern.parse(pattern)))
    with world.nothing_gets_through():
        assert world.client.do("who", METADATA)["service"] == "agent"
    assert world.host.do("who", METADATA)["service"] == "real"
