"""What a pod's connections to the metadata addresses become."""

from __future__ import annotations

import ctypes
import socket
from collections.abc import Callable
from typing import Any

import pytest

from kiam.metadata import METADATA_IPV4, METADATA_IPV6
from kiam.verify.live import uring
from tests.integration.ebpf import ways
from tests.integration.ebpf.world import AGENT_PORT, MAPPED, TIMEOUT, World, ask
from tests.sandbox.netns import NODE_IPV4, PodNet


def _io_uring(client: socket.socket, address: tuple[str, int]) -> None:
    uring.connect(client, address, TIMEOUT)


def test_a_connect_by_io_uring_lands_on_the_agent_with_the_pods_own_address(redirected: World, pod: PodNet) -> None:
    before = redirected.redirects()
    reply = redirected.from_pod(pod, ask, str(METADATA_IPV4), 80, 0, _io_uring)
    assert (reply.who, reply.source) == ("agent", str(pod.address))
    assert redirected.redirects() == before + 1


@pytest.mark.parametrize("address", [str(METADATA_IPV4), MAPPED])
def test_getpeername_answers_with_the_address_that_was_asked_for(redirected: World, pod: PodNet, address: str) -> None:
    assert redirected.from_pod(pod, ask, address).peer == (address, 80)


def test_getpeername_of_a_direct_connection_to_the_agent_is_left_alone(redirected: World, pod: PodNet) -> None:
    reply = redirected.from_pod(pod, ask, str(NODE_IPV4), AGENT_PORT)
    assert reply.peer == (str(NODE_IPV4), AGENT_PORT)


def _reconnect() -> tuple[str, int]:
    with socket.socket() as client:
        client.connect((str(METADATA_IPV4), 80))
        # AF_UNSPEC dissolves the association, connect(2); socket.connect can't say it.
        ctypes.CDLL(None).connect(client.fileno(), bytes(16), 16)
        client.connect((str(NODE_IPV4), AGENT_PORT + 1))
        name: tuple[str, int] = client.getpeername()
        return name


def test_getpeername_forgets_the_metadata_address_when_the_socket_connects_elsewhere(
    redirected: World, pod: PodNet
) -> None:
    assert redirected.from_pod(pod, _reconnect) == (str(NODE_IPV4), AGENT_PORT + 1)


def test_ipv6_lands_on_the_agents_ipv6_address(redirected6: World, pod: PodNet) -> None:
    reply = redirected6.from_pod(pod, ask, str(METADATA_IPV6))
    assert (reply.who, reply.source, reply.peer) == ("agent", str(pod.address6), (str(METADATA_IPV6), 80))


@pytest.mark.parametrize("address", [str(METADATA_IPV4), MAPPED, str(METADATA_IPV6)])
def test_another_port_is_refused_and_counted(redirected: World, pod: PodNet, address: str) -> None:
    before = redirected.drops()["other-port"]
    assert redirected.from_pod(pod, ask, address, 81).refused
    assert redirected.drops()["other-port"] == before + 1


@pytest.mark.parametrize("address", [str(METADATA_IPV4), MAPPED, str(METADATA_IPV6)])
@pytest.mark.parametrize("send", [ways.send_datagram, ways.connect_datagram])
def test_datagrams_are_refused_and_counted(
    redirected: World, pod: PodNet, send: Callable[[str], Any], address: str
) -> None:
    before = redirected.drops()["other-protocol"]
    with pytest.raises(PermissionError):
        redirected.from_pod(pod, send, address)
    assert redirected.drops()["other-protocol"] == before + 1


def test_other_link_local_addresses_are_left_alone(redirected: World, pod: PodNet) -> None:
    # The VPC's DNS resolver and NTP; nothing answers here, but nothing may refuse either.
    assert redirected.from_pod(pod, ways.send_datagram, "169.254.169.253", 53) == 5
    assert redirected.from_pod(pod, ways.send_datagram, "169.254.169.123", 123) == 5
