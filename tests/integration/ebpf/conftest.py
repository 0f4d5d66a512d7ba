"""One world a module, without the dataplane; tests put it in as they need it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from kiam.dataplane.contract import Condition, WantedState
from tests.integration.ebpf.world import World, wanted_state
from tests.sandbox.netns import PodNet


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    if os.geteuid() != 0:
        pytest.skip("loading eBPF programs and making namespaces needs root")
    with World() as world:
        yield world


@pytest.fixture(scope="module")
def pod(world: World) -> PodNet:
    return world.add_pod("first")


@pytest.fixture
def clean(world: World) -> Iterator[World]:
    """The world without the dataplane, before and after."""
    world.remove()
    yield world
    world.remove()


def make_so(world: World, wanted: WantedState) -> None:
    # The install finds out for itself too, but in a process of its own, which costs a hundred tests some time.
    if world.inspect(wanted).condition is not Condition.INSTALLED:
        world.install(wanted)


@pytest.fixture
def redirected(world: World) -> World:
    """The world with the dataplane for IPv4 as a node has it."""
    make_so(world, wanted_state())
    return world


@pytest.fixture
def redirected6(world: World) -> World:
    """As redirected, where the agent has an IPv6 address too."""
    make_so(world, wanted_state(ipv6=True))
    return world
