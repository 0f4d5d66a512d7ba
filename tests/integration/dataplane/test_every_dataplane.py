"""What every dataplane has to do, told by packets: the same tests for iptables (both backends), nftables and eBPF."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from kiam.dataplane.contract import Condition
from kiam.errors import UserError
from kiam.netfilter.interfaces import InterfacePattern
from tests.integration.dataplane.conftest import Plane
from tests.integration.dataplane.world import (
    AGENT_PORT,
    MAPPED,
    METADATA,
    METADATA6,
    OTHER_AGENT_PORT,
    Client,
    World,
)
from tests.sandbox.netns import CALICO_MAC, NODE_IPV4, NODE_IPV6
from tests.sandbox.process import wait_until


def test_without_a_dataplane_a_pod_gets_the_real_service(world: World) -> None:
    # What every other test shows the absence of.
    assert world.client.do("who", METADATA)["service"] == "real"
    assert world.client.do("who", METADATA6)["service"] == "real"


def test_a_pods_connection_lands_on_the_agent_with_the_pods_own_address(plane: Plane, world: World) -> None:
    plane.install()
    with world.nothing_gets_through():
        answer = world.client.do("who", METADATA)
    assert answer["service"] == "agent"
    assert answer["source"] == str(world.pod.address)
    assert answer["peer_seen"] == METADATA
    assert plane.counters().redirects == 1


def test_a_kept_connection_stays_on_the_agent(plane: Plane, world: World) -> None:
    plane.install()
    world.client.do("open_connection", "kept", METADATA, 80)
    assert [world.client.do("ask", "kept")["service"] for _ in range(20)] == ["agent"] * 20
    world.client.do("close", "kept")
    assert plane.counters().redirects == 1


def test_200_connections_at_once_all_land_on_the_agent(plane: Plane, world: World) -> None:
    plane.install()
    with world.nothing_gets_through():
        assert world.client.do("many", METADATA, 80, 200) == {"agent": 200}
    assert plane.counters().redirects == 200


def test_the_hosts_own_connections_reach_the_real_service(plane: Plane, world: World) -> None:
    plane.install()
    for address in (METADATA, METADATA6, MAPPED):
        assert world.host.do("who", address)["service"] == "real", address
    assert world.host.do("who", METADATA, 81)["service"] == "real"
    before = world.reached("node")
    world.host.do("datagram", METADATA, 123)
    wait_until(lambda: world.reached("node") > before, "the host's datagram at the real service")
    assert plane.counters().redirects == 0
    assert plane.dropped() == 0


def test_other_addresses_and_the_agents_own_are_left_alone(plane: Plane, world: World) -> None:
    plane.install()
    assert world.client.do("who", "192.0.2.1")["service"] == "real"
    assert world.client.do("who", str(NODE_IPV4), AGENT_PORT)["service"] == "agent"
    assert plane.counters().redirects == 0


WAYS_ROUND: dict[str, Callable[[Client, World], object]] = {
    "another TCP port": lambda client, world: client.ask("try_connect", METADATA, 81),
    "another TCP port, v4-mapped": lambda client, world: client.ask("try_connect", MAPPED, 81),
    "another TCP port over IPv6": lambda client, world: client.ask("try_connect", METADATA6, 81),
    "UDP": lambda client, world: client.ask("datagram", METADATA, 80),
    "connected UDP": lambda client, world: client.ask("datagram_connected", METADATA, 80),
    "UDP, v4-mapped": lambda client, world: client.ask("datagram", MAPPED, 80),
    "UDP over IPv6": lambda client, world: client.ask("datagram", METADATA6, 80),
    "ICMP": lambda client, world: client.ask("ping", METADATA),
    "ICMPv6": lambda client, world: client.ask("ping", METADATA6),
    "fragments": lambda client, world: client.ask("fragments", str(world.pod.address), METADATA),
    "a raw socket's SYN": lambda client, world: client.ask("raw_segment", str(world.pod.address), METADATA, 80, "syn"),
    "a raw socket's ACK": lambda client, world: client.ask("raw_segment", str(world.pod.address), METADATA, 80, "ack"),
    "flags conntrack calls invalid": lambda client, world: client.ask(
        "raw_segment", str(world.pod.address), METADATA, 80, "syn+fin+rst"
    ),
    "a wrong checksum": lambda client, world: client.ask(
        "raw_segment", str(world.pod.address), METADATA, 80, "syn", False
    ),
    "a raw socket over IPv6": lambda client, world: client.ask(
        "raw_segment", str(world.pod.address6), METADATA6, 80, "syn"
    ),
    "a packet socket": lambda client, world: client.ask(
        "packet_socket_segment", str(world.pod.address), METADATA, 80, "syn", "eth0", CALICO_MAC
    ),
    "a packet socket with an invalid segment": lambda client, world: client.ask(
        "packet_socket_segment", str(world.pod.address), METADATA, 80, "rst", "eth0", CALICO_MAC
    ),
    "a packet socket over IPv6": lambda client, world: client.ask(
        "packet_socket_segment", str(world.pod.address6), METADATA6, 80, "syn", "eth0", CALICO_MAC
    ),
}


def test_no_way_round_reaches_the_real_service(plane: Plane, world: World) -> None:
    for way, go in WAYS_ROUND.items():
        before = world.reached()
        go(world.client, world)
        wait_until(partial(reached_more, world, before), f"{way} at the real service before the install")

    plane.install()
    world.forget_connections()
    got_through = []
    for way, go in WAYS_ROUND.items():
        before = world.reached()
        go(world.client, world)
        if reached_more(world, before):
            got_through.append(way)
    assert got_through == []


def reached_more(world: World, before: int) -> bool:
    return world.reached() > before


def test_what_the_real_service_answers_reaches_no_pod_whatever_way_the_request_went(plane: Plane, world: World) -> None:
    with world.second_interface():
        wait_until(lambda: "value" in world.client.ask("who", METADATA), "the second way, which works without us")
        plane.install()
        world.forget_connections()
        answer = world.client.ask("who", METADATA)
        assert answer.get("error") == "ETIMEDOUT" or answer["value"]["service"] == "agent"


@pytest.mark.parametrize("pattern", ["!eth0", "+"])
def test_wide_patterns_catch_pods_and_leave_the_host_alone(plane: Plane, world: World, pattern: str) -> None:
    plane.install(plane.but(interface=InterfacePattern.parse(pattern)))
    with world.nothing_gets_through():
        assert world.client.do("who", METADATA)["service"] == "agent"
        world.client.ask("datagram", METADATA, 80)
    assert world.host.do("who", METADATA)["service"] == "real"


def test_what_is_dropped_is_counted_by_reason(plane: Plane, world: World) -> None:
    plane.install()
    # Not always 0: a last packet of the test before may still be on its way.
    before = plane.counters().drops or {}
    world.client.ask("try_connect", METADATA, 81)
    world.client.ask("datagram", METADATA, 80)
    world.client.ask("who", METADATA6)
    drops = plane.counters().drops or {}
    for reason in ("other-port", "other-protocol", "ipv6"):
        assert drops[reason] > before.get(reason, 0), reason
    assert plane.counters().redirects == 0


def test_a_v4_mapped_address_lands_on_the_agent(plane: Plane, world: World) -> None:
    plane.install()
    with world.nothing_gets_through():
        answer = world.client.do("who", MAPPED)
    assert answer["service"] == "agent"
    assert answer["source"] == str(world.pod.address)


@pytest.mark.parametrize("kind", ["fastopen", "mptcp"])
@pytest.mark.parametrize("address", [METADATA, MAPPED])
def test_fast_open_and_mptcp_land_on_the_agent(plane: Plane, world: World, kind: str, address: str) -> None:
    if kind == "mptcp" and "error" in world.client.ask("make_mptcp_socket"):
        pytest.skip("this kernel has no MPTCP")
    world.client.do("sysctl", "ipv4/tcp_fastopen", "3")
    plane.install()
    with world.nothing_gets_through():
        assert world.client.do("who", address, 80, kind)["service"] == "agent"
        # Fast Open has the server's cookie by now, and sends data in the first packet.
        assert world.client.do("who", address, 80, kind)["service"] == "agent"


def test_ipv6_is_refused_where_the_agent_has_no_ipv6_address(plane: Plane, world: World) -> None:
    plane.install()
    with world.nothing_gets_through():
        assert world.client.ask("who", METADATA6)["error"] in ("ECONNREFUSED", "EPERM")


def test_ipv6_lands_on_the_agent_where_it_has_an_ipv6_address(plane: Plane, world: World) -> None:
    plane.install(plane.but(host_address6=NODE_IPV6, port=OTHER_AGENT_PORT))
    with world.nothing_gets_through():
        answer = world.client.do("who", METADATA6)
        assert world.client.do("who", METADATA)["service"] == "agent"
        world.client.ask("datagram", METADATA6, 80)
    assert answer["service"] == "agent"
    assert answer["source"] == str(world.pod.address6)


def test_a_connection_older_than_the_install_gets_nothing_more(plane: Plane, world: World) -> None:
    assert world.client.do("open_connection", "old", METADATA, 80)["service"] == "real"
    assert world.client.do("open_connection", "old6", METADATA6, 80)["service"] == "real"
    plane.install()
    with world.nothing_gets_through():
        assert "error" in world.client.ask("ask", "old")
        assert "error" in world.client.ask("ask", "old6")
    assert plane.dropped() > 0
    world.client.do("close", "old")
    world.client.do("close", "old6")


def test_installing_again_changes_nothing(plane: Plane, world: World) -> None:
    plane.install()
    world.client.do("who", METADATA)
    before = plane.inspect().found
    redirects = plane.counters().redirects
    plane.install()
    assert plane.counters().redirects == redirects
    assert [line for line in plane.inspect().found if "packets" not in line] == [
        line for line in before if "packets" not in line
    ]


def test_inspection_tells_absent_installed_and_different(plane: Plane) -> None:
    assert plane.inspect(plane.wanted).condition is Condition.ABSENT
    assert plane.inspect().condition is Condition.ABSENT
    plane.install()
    assert plane.inspect().condition is Condition.INSTALLED
    other = plane.inspect(plane.but(port=OTHER_AGENT_PORT))
    assert other.condition is Condition.DIFFERENT
    assert other.problems


def answered_so_far(world: World) -> int:
    return sum(world.client.do("load_so_far").values())


def answered_beyond(world: World, goal: int) -> bool:
    return answered_so_far(world) > goal


def test_an_older_version_is_replaced_under_load_without_a_moment_without_redirect(plane: Plane, world: World) -> None:
    plane.install()
    with world.nothing_gets_through():
        world.client.do("start_load", METADATA, 80, 4)
        for number in range(6):
            goal = answered_so_far(world) + 20
            wait_until(partial(answered_beyond, world, goal), "more connections")
            plane.install(plane.but(port=(OTHER_AGENT_PORT, AGENT_PORT)[number % 2]))
        answered = world.client.do("stop_load")
    assert set(answered) == {"agent"}


def test_with_no_agent_pods_are_refused(plane: Plane, world: World) -> None:
    plane.install()
    world.client.do("open_connection", "kept", METADATA, 80)
    world.agent.stop()
    try:
        with world.nothing_gets_through():
            assert world.client.ask("who", METADATA) == {"error": "ECONNREFUSED"}
            assert "error" in world.client.ask("ask", "kept")
    finally:
        world.agent.start()
        world.client.do("close", "kept")


def test_an_address_that_is_not_the_nodes_is_refused_before_anything_is_written(plane: Plane, world: World) -> None:
    before = world.state()
    with pytest.raises(UserError, match="not an address of this node"):
        plane.install(plane.but(host_address=world.pod.address))
    assert plane.inspect().condition is Condition.ABSENT
    assert world.state() == before


def test_removal_leaves_the_machine_as_it_was(plane: Plane, world: World) -> None:
    before = world.state()
    plane.install()
    assert world.state() != before
    plane.install(plane.but(port=OTHER_AGENT_PORT, host_address6=NODE_IPV6))
    plane.remove()
    assert world.state() == before
    plane.remove()
    assert world.state() == before
    assert world.client.do("who", METADATA)["service"] == "real"


def test_pods_on_a_bridge_land_on_the_agent(plane: Plane, bridged: World) -> None:
    on_bridge = Plane(plane.variant, bridged)
    before = bridged.state()
    try:
        on_bridge.install(on_bridge.but(interface=InterfacePattern.parse("cbr0")))
        with bridged.nothing_gets_through():
            answer = bridged.client.do("who", METADATA)
            bridged.client.ask("datagram", METADATA, 80)
            bridged.client.ask("try_connect", METADATA6, 80)
        assert (answer["service"], answer["source"]) == ("agent", str(bridged.pod.address))
        assert bridged.host.do("who", METADATA)["service"] == "real"
    finally:
        on_bridge.remove()
    assert bridged.state() == before
