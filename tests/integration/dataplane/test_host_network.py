"""Pods on the host network, told from the host's own processes by their cgroup."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from kiam.dataplane.cgroups import CGROUP_VARIABLE
from kiam.dataplane.contract import HostNetwork
from kiam.errors import UserError
from tests.integration.dataplane.conftest import Plane
from tests.integration.dataplane.world import METADATA, METADATA6, Client, World
from tests.sandbox.netns import NODE_IPV4

QUALITIES = ("burstable", "besteffort", "")


@pytest.fixture(scope="module")
def host_pods(world: World) -> Iterator[dict[str, Client]]:
    """A pod of each quality-of-service class on the node's own network."""
    clients = {
        quality: world.client_in(world.node, world.cgroups.pod(f"00000000-0000-4000-8000-0000000000b{number}", quality))
        for number, quality in enumerate(QUALITIES)
    }
    yield clients
    for client in clients.values():
        client.close()


@pytest.fixture(scope="module")
def agent_client(world: World) -> Client:
    """A process in the agent's pod."""
    return world.client_in(world.node, world.agent_pod)


def test_by_default_they_are_left_alone(plane: Plane, host_pods: dict[str, Client]) -> None:
    plane.install()
    for quality, client in host_pods.items():
        assert client.do("who", METADATA)["service"] == "real", quality


def test_denied_pods_reach_nothing_and_the_host_everything(
    plane: Plane, world: World, host_pods: dict[str, Client], agent_client: Client
) -> None:
    plane.install(plane.for_host_pods(HostNetwork.DENY))
    before = world.reached("node")
    for quality, client in host_pods.items():
        for address in (METADATA, METADATA6):
            assert "error" in client.ask("try_connect", address, 80), (quality, address)
            assert "error" in client.ask("try_connect", address, 81), (quality, address)
            client.ask("datagram", address, 80)
    assert world.reached("node") == before
    assert (plane.counters().drops or {})["host-network"] >= len(QUALITIES) * 4
    for client in (world.host, agent_client):
        assert client.do("who", METADATA)["service"] == "real"
        assert client.do("who", METADATA6)["service"] == "real"
    assert world.client.do("who", METADATA)["service"] == "agent"


def test_redirected_pods_land_on_the_agent_and_the_host_on_the_real_service(
    plane: Plane, world: World, host_pods: dict[str, Client], agent_client: Client
) -> None:
    plane.install(plane.for_host_pods(HostNetwork.REDIRECT))
    before = world.reached("node")
    for quality, client in host_pods.items():
        assert client.do("who", METADATA)["service"] == "agent", quality
        assert "error" in client.ask("try_connect", METADATA, 81), quality
        assert "error" in client.ask("try_connect", METADATA6, 80), quality
        client.ask("datagram", METADATA, 80)
    assert world.reached("node") == before
    assert plane.counters().redirects == len(QUALITIES)
    for client in (world.host, agent_client):
        assert client.do("who", METADATA)["service"] == "real"


def test_going_back_to_ignore_lets_them_through_again(plane: Plane, world: World, host_pods: dict[str, Client]) -> None:
    before = world.state()
    plane.install(plane.for_host_pods(HostNetwork.DENY))
    plane.install()
    assert host_pods["burstable"].do("who", METADATA)["service"] == "real"
    plane.remove()
    assert world.state() == before


def test_an_agent_cgroup_that_is_not_there_is_refused(plane: Plane) -> None:
    with pytest.raises(UserError, match="no cgroup 'kubepods/no-such'"):
        plane.install(plane.but(host_network=HostNetwork.DENY, agent_cgroup="kubepods/no-such"))


@pytest.mark.parametrize("kind", ["iptables", "nftables"])
def test_an_init_container_lets_its_own_pod_through_though_it_has_a_cgroup_namespace_of_its_own(
    world: World, host_pods: dict[str, Client], agent_client: Client, kind: str
) -> None:
    # As in a container on a cgroup2 node: its own cgroup is "/" to it, and the host's tree is mounted from the host.
    container = world.agent_pod / "container"
    container.mkdir(exist_ok=True)
    kiam = ("env", f"{CGROUP_VARIABLE}={world.cgroups.root}", sys.executable, "-m", "kiam", "dataplane")
    flags = (f"--host={NODE_IPV4}", "--port=8181", "--host-interface=cali+", "--host-network=deny")
    try:
        install = ("unshare", "--cgroup", *kiam, "install", f"--dataplane={kind}", *flags)
        world.node.run(*install, cgroup=container)
        assert "error" in host_pods["burstable"].ask("try_connect", METADATA, 80)
        assert agent_client.do("who", METADATA)["service"] == "real"
        again = world.node.run("unshare", "--cgroup", *kiam, "status", f"--dataplane={kind}", *flags, cgroup=container)
        assert "installed" in again.stdout
    finally:
        world.node.run(*kiam, "remove", f"--dataplane={kind}")
