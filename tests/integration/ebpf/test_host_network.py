"""Pods on the host network, told from the host by cgroup."""

from __future__ import annotations

import errno
import multiprocessing
import socket
import threading
import uuid
from pathlib import Path
from typing import Any

import pytest

from kiam.dataplane.contract import HostNetwork
from kiam.metadata import METADATA_IPV4
from tests.integration.ebpf import ways
from tests.integration.ebpf.world import TIMEOUT, World, ask, wanted_state
from tests.sandbox.netns import NODE_IPV4
from tests.sandbox.process import wait_until


@pytest.fixture
def denied(world: World) -> World:
    world.install(wanted_state(host_network=HostNetwork.DENY))
    return world


@pytest.fixture
def agent_cgroup(world: World) -> Path:
    return world.cgroup.pod(str(uuid.uuid4()))


def test_getpeername_answers_with_the_address_that_was_asked_for(world: World) -> None:
    world.install(wanted_state(host_network=HostNetwork.REDIRECT))
    reply = world.from_host_network_pod(ask)
    assert (reply.who, reply.source, reply.peer) == ("agent", str(NODE_IPV4), (str(METADATA_IPV4), 80))


@pytest.mark.parametrize("mode", [HostNetwork.DENY, HostNetwork.REDIRECT])
def test_raw_sockets_of_the_host_and_of_the_agents_own_pod_are_left_alone(
    world: World, agent_cgroup: Path, mode: HostNetwork
) -> None:
    world.install(wanted_state(host_network=mode, agent_cgroup=agent_cgroup))
    assert world.from_host(ways.send_raw_icmp) == len(ways.ICMP_ECHO)
    assert world.from_host_network_pod(ways.send_raw_icmp, cgroup=agent_cgroup) == len(ways.ICMP_ECHO)


@pytest.mark.parametrize("mode", [HostNetwork.DENY, HostNetwork.REDIRECT])
def test_their_raw_sockets_are_refused_and_counted(world: World, mode: HostNetwork) -> None:
    world.install(wanted_state(host_network=mode))
    before = world.drops()["bypass"]
    with pytest.raises(PermissionError):
        world.from_host_network_pod(ways.send_raw_icmp)
    assert world.drops()["bypass"] == before + 1


def _connect_wait_and_send(connected: Any, go_on: Any) -> None:
    with socket.create_connection((str(METADATA_IPV4), 80), timeout=TIMEOUT) as client:
        assert client.recv(100).startswith(b"real")
        connected.set()
        assert go_on.wait(30)
        client.sendall(b"GET /latest/meta-data/iam/security-credentials/\r\n\r\n")


def test_their_older_connections_reach_the_real_service_no_more(clean: World) -> None:
    forking = multiprocessing.get_context("fork")
    connected, go_on = forking.Event(), forking.Event()
    received = len(clean.real.received)
    old = threading.Thread(target=clean.from_host_network_pod, args=(_connect_wait_and_send, connected, go_on))
    old.start()
    try:
        assert connected.wait(30)
        clean.install(wanted_state(host_network=HostNetwork.DENY))
    finally:
        go_on.set()
        old.join()
    wait_until(lambda: clean.drops()["bypass"] > 0, "the request to be counted")
    assert len(clean.real.received) == received


def test_an_agent_that_installs_finds_its_own_pod_and_a_later_install_from_elsewhere_keeps_it(
    clean: World, agent_cgroup: Path
) -> None:
    wanted = wanted_state(host_network=HostNetwork.DENY)
    clean.from_host_network_pod(clean.dataplane.install, wanted, cgroup=agent_cgroup)
    assert clean.from_host_network_pod(ask, cgroup=agent_cgroup).who == "real"
    clean.install(wanted)
    clean.install(wanted_state(host_network=HostNetwork.DENY, port=8182))
    assert clean.from_host_network_pod(ask, cgroup=agent_cgroup).who == "real"
    assert clean.from_host_network_pod(ask).refused


def test_the_next_agent_pod_takes_the_place_of_the_last_one(clean: World, agent_cgroup: Path) -> None:
    wanted = wanted_state(host_network=HostNetwork.DENY)
    clean.from_host_network_pod(clean.dataplane.install, wanted, cgroup=agent_cgroup)
    successor = clean.cgroup.pod(str(uuid.uuid4()))
    clean.from_host_network_pod(clean.dataplane.install, wanted, cgroup=successor)
    assert clean.from_host_network_pod(ask, cgroup=successor).who == "real"
    assert clean.from_host_network_pod(ask, cgroup=agent_cgroup).error == errno.EPERM


def test_going_back_to_ignore_takes_the_egress_program_off(denied: World) -> None:
    assert any("kiam_egress" in line for line in denied.inspect(None).found)
    denied.install(wanted_state())
    assert not any("kiam_egress" in line for line in denied.inspect(None).found)
    assert denied.from_host_network_pod(ask).who == "real"
