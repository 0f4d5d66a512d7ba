"""Changing dataplanes on a node that serves: no request is lost, none gets through, and one dataplane is left."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial

import pytest

from kiam.dataplane import handover
from kiam.dataplane.contract import Condition, WantedState
from kiam.dataplane.registry import DATAPLANES, load_dataplane
from kiam.netfilter.interfaces import InterfacePattern, IptablesBackend
from tests.integration.dataplane.world import AGENT_PORT, METADATA, World
from tests.sandbox.netns import NODE_IPV4
from tests.sandbox.process import wait_until

BACKENDS = {"iptables-legacy": IptablesBackend.LEGACY, "iptables-nft": IptablesBackend.NFT}
CHANGES = ("nftables", "iptables-legacy", "ebpf", "nftables", "iptables-nft", "ebpf", "iptables-legacy", "nftables")
"""Every change from one to another."""


@pytest.fixture(autouse=True)
def _only_this_runs_programs(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("KIAM_EBPF_CGROUP", str(world.cgroups.root))
    world.forget_connections()
    yield
    for name in DATAPLANES:
        world.node.call(load_dataplane(name).remove)


def wanted_state(variant: str) -> WantedState:
    backend = BACKENDS.get(variant, IptablesBackend.AUTO)
    return WantedState(NODE_IPV4, AGENT_PORT, InterfacePattern.parse("cali+"), iptables_backend=backend)


def change_to(world: World, variant: str) -> handover.Others:
    return world.node.call(handover.install, variant.partition("-")[0], wanted_state(variant))


def installed(world: World) -> list[str]:
    found = {name: world.node.call(load_dataplane(name).inspect).condition for name in DATAPLANES}
    return [name for name, condition in found.items() if condition is not Condition.ABSENT]


def answered_beyond(world: World, goal: int) -> bool:
    return bool(sum(world.client.do("load_so_far").values()) > goal)


def test_no_request_is_lost_and_none_gets_through_while_dataplanes_change(world: World) -> None:
    change_to(world, CHANGES[0])
    kept: list[str] = []
    with world.nothing_gets_through():
        world.client.do("start_load", METADATA, 80, 4)
        for number, variant in enumerate(CHANGES[1:], 1):
            world.client.do("open_connection", f"kept{number}", METADATA, 80)
            kept.append(f"kept{number}")
            goal = sum(world.client.do("load_so_far").values()) + 30
            others = change_to(world, variant)
            assert others.removed == (CHANGES[number - 1].partition("-")[0],)
            assert (others.stuck, others.unknown) == ({}, {})
            assert installed(world) == [variant.partition("-")[0]]
            wait_until(partial(answered_beyond, world, goal), "more connections")
            # Connections that began under earlier dataplanes go on.
            assert [world.client.do("ask", name)["service"] for name in kept] == ["agent"] * len(kept), variant
        answered = world.client.do("stop_load")
        for name in kept:
            world.client.do("close", name)
    assert set(answered) == {"agent"}


def test_the_others_can_be_kept(world: World) -> None:
    change_to(world, "iptables-nft")
    world.node.call(handover.install, "nftables", wanted_state("nftables"), True)
    assert installed(world) == ["iptables", "nftables"]


def test_without_rights_the_guard_still_tells_that_ebpf_is_there(world: World) -> None:
    change_to(world, "ebpf")
    powerless = ("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin")
    status = world.node.run(
        *powerless, sys.executable, "-m", "kiam", "dataplane", "status", "--dataplane=ebpf", check=False
    )
    assert status.returncode == 1
    assert "only the guard can be seen" in " ".join(status.stdout.replace("│", " ").split())
