"""The world and the dataplanes; every test of :mod:`.test_every_dataplane` runs once for each of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

from kiam.dataplane.contract import Condition, Counters, Dataplane, HostNetwork, Inspection, WantedState
from kiam.dataplane.registry import load_dataplane
from kiam.netfilter.interfaces import InterfacePattern, IptablesBackend
from tests.integration.dataplane.world import AGENT_PORT, World
from tests.sandbox.cgroups import NodeCgroup
from tests.sandbox.netns import NODE_IPV4

PLANES = {
    "iptables-nft": ("iptables", IptablesBackend.NFT),
    "iptables-legacy": ("iptables", IptablesBackend.LEGACY),
    "nftables": ("nftables", IptablesBackend.AUTO),
    "ebpf": ("ebpf", IptablesBackend.AUTO),
}


class Plane:
    """One dataplane, working on the world's node as a program on that node would."""

    def __init__(self, variant: str, world: World) -> None:
        self.variant = variant
        self.world = world
        name, backend = PLANES[variant]
        self.dataplane: Dataplane = load_dataplane(name)
        pattern = InterfacePattern.parse("cali+")
        self.wanted = WantedState(NODE_IPV4, AGENT_PORT, pattern, iptables_backend=backend)

    def but(self, **changes: Any) -> WantedState:
        """The usual wanted state with changes."""
        return dataclasses.replace(self.wanted, **changes)

    def install(self, wanted: WantedState | None = None) -> WantedState:
        """Install, and check that the dataplane itself finds nothing amiss."""
        wanted = wanted or self.wanted
        self.world.node.call(self.dataplane.install, wanted)
        inspection = self.inspect(wanted)
        assert inspection.condition is Condition.INSTALLED, inspection
        return wanted

    def remove(self) -> None:
        """Take it out."""
        self.world.node.call(self.dataplane.remove)

    def inspect(self, wanted: WantedState | None = None) -> Inspection:
        """What it finds in the node's kernel."""
        return self.world.node.call(self.dataplane.inspect, wanted)

    def counters(self) -> Counters:
        """What it has counted."""
        return self.world.node.call(self.dataplane.counters)

    def dropped(self) -> int:
        """All drops together."""
        return sum((self.counters().drops or {}).values())

    def for_host_pods(self, what: HostNetwork) -> WantedState:
        """A wanted state in which the world's own "agent pod" is let through."""
        mount = next(parent for parent in self.world.cgroups.root.parents if parent.stat().st_ino == 1)
        agent = self.world.agent_pod.relative_to(mount)
        return self.but(host_network=what, agent_cgroup=str(agent))


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """One world a module; tests leave it as they found it."""
    with NodeCgroup() as cgroups, World(cgroups) as made:
        yield made


@pytest.fixture(scope="module")
def bridged(world: World) -> Iterator[World]:
    """Another node, with kubenet's bridge. In the same cgroups: the eBPF programs go to one place."""
    with World(world.cgroups, "bridge") as made:
        yield made


@pytest.fixture(params=list(PLANES))
def plane(request: pytest.FixtureRequest, world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plane]:
    """Each dataplane, taken out again afterwards."""
    # The eBPF programs go to this run's own cgroup, not to the machine's root, where other tests are.
    monkeypatch.setenv("KIAM_EBPF_CGROUP", str(world.cgroups.root))
    made = Plane(request.param, world)
    world.forget_connections()
    try:
        yield made
    finally:
        made.remove()
