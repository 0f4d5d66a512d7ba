"""Nothing that the node forwards reaches instance metadata, whichever way it comes in, and no answer comes back."""

from __future__ import annotations

from functools import partial

import pytest

from kiam.errors import UserError
from kiam.netfilter.interfaces import InterfacePattern
from tests.integration.dataplane.conftest import Plane
from tests.integration.dataplane.tunnels import MAC, TUNNELS, Tunnel, tunnel_end
from tests.integration.dataplane.world import METADATA, METADATA6, Client, World
from tests.sandbox.netns import CALICO_MAC, NODE_IPV4, NODE_IPV6
from tests.sandbox.process import wait_until

NOBODYS = InterfacePattern.parse("eni+")
"""A pattern that fits no pod of the world."""


def reached_more(world: World, before: int) -> bool:
    return world.reached() > before


def dropped_or_reached(plane: Plane, dropped: int, before: int) -> bool:
    return plane.dropped() > dropped or plane.world.reached() > before


def send_through(world: World, tunnel: Tunnel, inner: int) -> None:
    pod = world.pod
    source, address = (str(pod.address), METADATA) if inner == 4 else (str(pod.address6), METADATA6)
    endpoint = str(NODE_IPV6 if tunnel.outer == 6 else NODE_IPV4)
    mac = CALICO_MAC if tunnel.kind == "vlan" else MAC
    world.client.do("tunnelled", tunnel.kind, endpoint, mac, source, address)


def test_nothing_comes_out_of_a_tunnel_for_instance_metadata(plane: Plane, world: World) -> None:
    for tunnel in TUNNELS:
        for inner in tunnel.inner:
            with tunnel_end(world, tunnel):
                before = world.reached()
                send_through(world, tunnel, inner)
                wait_until(partial(reached_more, world, before), f"IPv{inner} through {tunnel.name} without us")
    plane.install()
    world.forget_connections()
    got_through = []
    for tunnel in TUNNELS:
        for inner in tunnel.inner:
            with tunnel_end(world, tunnel):
                before, dropped = world.reached(), plane.dropped()
                send_through(world, tunnel, inner)
                decided = partial(dropped_or_reached, plane, dropped, before)
                wait_until(decided, f"IPv{inner} through {tunnel.name} at the drop")
                if reached_more(world, before):
                    got_through.append((tunnel.name, inner))
    assert got_through == []


def test_a_priority_tag_makes_no_difference(plane: Plane, world: World) -> None:
    frame = partial(world.client.do, "tunnelled", "vlan 0", "", CALICO_MAC)
    before = world.reached()
    frame(str(world.pod.address), METADATA)
    wait_until(partial(reached_more, world, before), "a frame of VLAN 0 without us")
    plane.install()
    world.forget_connections()
    # The redirect takes an IPv4 SYN to the agent; what it doesn't take is dropped.
    with world.nothing_gets_through():
        frame(str(world.pod.address), METADATA)
        dropped = plane.dropped()
        frame(str(world.pod.address6), METADATA6)
        wait_until(lambda: plane.dropped() > dropped, "the drop of a frame of VLAN 0")


def test_a_pattern_that_fits_no_pod_means_refused_and_never_the_nodes_role(plane: Plane, world: World) -> None:
    plane.install(plane.but(interface=NOBODYS))
    with world.nothing_gets_through():
        for address in (METADATA, METADATA6):
            answer = world.client.ask("who", address)
            # The eBPF dataplane doesn't go by the pattern.
            assert "error" in answer or answer["value"]["service"] == "agent", answer
        world.client.ask("datagram", METADATA, 80)
    assert plane.dropped() > 0
    assert world.host.do("who", METADATA)["service"] == "real"


def test_answers_come_back_on_no_interface(plane: Plane, world: World) -> None:
    with world.second_interface():
        wait_until(lambda: "value" in world.client.ask("who", METADATA), "the second way, which works without us")
        plane.install(plane.but(interface=NOBODYS))
        world.forget_connections()
        answer = world.client.ask("who", METADATA)
        assert answer.get("error") == "ETIMEDOUT" or answer["value"]["service"] == "agent", answer


def raw_packet(client: Client, source: object, address: str) -> None:
    client.do("packet_socket_segment", str(source), address, 80, "syn", "eth0", CALICO_MAC)


def test_an_allowed_interface_is_forwarded_and_no_other(plane: Plane, world: World) -> None:
    machine = world.net.add_pod("machine")
    client = world.client_in(machine.netns, world.cgroups.system)
    try:
        allowed = InterfacePattern.parse(machine.interface)
        # Inverted, so that the pattern of pods fits the machine's interface too: it isn't redirected either.
        plane.install(plane.but(interface=InterfacePattern.parse("!eth0"), forward_from=allowed))
        for source, address in ((machine.address, METADATA), (machine.address6, METADATA6)):
            before = world.reached()
            raw_packet(client, source, address)
            wait_until(partial(reached_more, world, before), f"the machine's packet at {address}")
            world.forget_connections()
        with world.nothing_gets_through():
            raw_packet(world.client, world.pod.address, METADATA)
            raw_packet(world.client, world.pod.address6, METADATA6)
            assert world.client.do("who", METADATA)["service"] == "agent"
        if plane.variant != "ebpf":  # which redirects whatever connects in a network namespace of its own
            assert client.do("who", METADATA)["service"] == "real"
    finally:
        client.close()
        world.net.remove_pod("machine")


def test_forwarding_for_pods_interfaces_is_refused(plane: Plane, world: World) -> None:
    before = world.state()
    with pytest.raises(UserError, match=r"allow:cali\+ names interfaces of pods"):
        plane.install(plane.but(forward_from=InterfacePattern.parse("cali+")))
    assert world.state() == before
