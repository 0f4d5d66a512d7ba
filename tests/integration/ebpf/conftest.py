"""One world a module, without the dataplane; tests put it in as they need it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

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


@pytest.fixture
def redirected(world: World) -> World:
    """The world with the dataplane for IPv4 as a node has it; installing again where it already is costs little."""
    world.install(wanted_state())
    return world


@pytest.fixture
def redirected6(world: World) -> World:
    """As redirected, where the agent has an IPv6 address too."""
    world.install(wanted_state(ipv6=True))
    return world
