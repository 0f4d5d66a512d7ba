"""Packets that no connect announced, and the host's own."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from kiam.metadata import METADATA_IPV4
from tests.integration.ebpf import ways
from tests.integration.ebpf.world import TIMEOUT, World, ask
from tests.sandbox.netns import NODE_IPV4, PodNet
from tests.sandbox.process import wait_until

Send = Callable[[str], int]
SENDERS = [ways.send_raw_packet, ways.send_packet_socket, ways.send_fragment]


def assert_dropped(world: World, pod: PodNet, send: Send, source: str) -> None:
    """The packet is sent without an error, counted, and never leaves the node."""
    bypassed, beyond = world.drops()["bypass"], world.packets_beyond_node()
    assert world.from_pod(pod, send, source) > 0
    wait_until(lambda: world.drops()["bypass"] == bypassed + 1, "the guard to count the packet")
    assert world.packets_beyond_node() == beyond


@pytest.mark.parametrize("send", SENDERS)
def test_raw_and_packet_sockets_are_dropped_on_the_host(redirected: World, pod: PodNet, send: Send) -> None:
    assert_dropped(redirected, pod, send, str(pod.address))


@pytest.mark.parametrize("send", SENDERS)
def test_a_packet_that_claims_the_hosts_address_is_dropped_all_the_same(
    redirected: World, pod: PodNet, send: Send
) -> None:
    assert_dropped(redirected, pod, send, str(NODE_IPV4))


def test_icmp_is_dropped_on_the_host(redirected: World, pod: PodNet) -> None:
    assert_dropped(redirected, pod, lambda _: ways.send_raw_icmp(), "")


def test_ipv6_packets_are_dropped_on_the_host(redirected: World, pod: PodNet) -> None:
    assert_dropped(redirected, pod, ways.send_packet_socket6, str(pod.address6))


def send_from_metadata_address(to: str) -> int:
    # The real service's address as the source: an answer to a request that left by another way.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind((str(METADATA_IPV4), 0))
        return sender.sendto(b"credentials", (to, 9))


def test_answers_of_the_real_service_to_a_pod_are_dropped(redirected: World, pod: PodNet) -> None:
    bypassed = redirected.drops()["bypass"]
    redirected.net.aws.call(send_from_metadata_address, str(pod.address))
    wait_until(lambda: redirected.drops()["bypass"] == bypassed + 1, "the guard to count the answer")


def test_a_pod_that_comes_after_the_install_is_guarded_and_redirected(redirected: World) -> None:
    late = redirected.add_pod("late")
    assert redirected.from_pod(late, ask).who == "agent"
    assert_dropped(redirected, late, ways.send_packet_socket, str(late.address))


def test_without_the_dataplane_the_same_packets_do_leave_the_node(clean: World, pod: PodNet) -> None:
    """What proves that the tests above could fail."""
    beyond = clean.packets_beyond_node()
    for send in SENDERS:
        clean.from_pod(pod, send, str(pod.address))
    wait_until(lambda: clean.packets_beyond_node() == beyond + len(SENDERS), "the packets to leave the node")
    assert clean.from_pod(pod, ask).who == "real"


def _host_uses_everything() -> list[object]:
    mine = ask()
    with socket.create_connection((str(METADATA_IPV4), 80), timeout=TIMEOUT) as client:
        peer = client.getpeername()
    return [mine.who, peer, ask(port=81).who, ways.send_datagram(str(METADATA_IPV4)), ways.send_raw_icmp()]


def test_the_hosts_own_processes_are_left_alone(redirected: World) -> None:
    before = redirected.redirects(), redirected.drops()
    expected = ["real", (str(METADATA_IPV4), 80), "real", 5, len(ways.ICMP_ECHO)]
    assert redirected.from_host(_host_uses_everything) == expected
    assert (redirected.redirects(), redirected.drops()) == before
