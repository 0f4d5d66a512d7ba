"""Which route leads to exactly one pod, and what contradicts it."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from kiam.agent.core.routes import Link, Neighbourhood, PodRoute, Route, covers

POD = "10.42.0.11"
CALI, CBR0, PORT, OTHER_PORT, ETH0 = 5, 6, 7, 8, 2
MAC = "0a:58:0a:2a:00:0b"


@pytest.fixture
def near() -> Neighbourhood:
    near = Neighbourhood()
    for link in (
        Link(ETH0, "", 0),
        Link(CALI, "veth", 0),
        Link(CBR0, "bridge", 0),
        Link(PORT, "veth", CBR0),
        Link(OTHER_PORT, "veth", CBR0),
    ):
        near.links[link.index] = link
    near.neighbours[CBR0, POD] = MAC
    near.ports[CBR0, MAC] = PORT
    return near


def route(link: int, prefix_length: int = 32, via_gateway: bool = False, is_unicast: bool = True) -> Route:
    return Route(link, prefix_length, via_gateway, is_unicast)


def test_host_route_to_a_veth_is_one_pod(near: Neighbourhood) -> None:
    assert near.pod_route(POD, route(CALI)) == PodRoute(CALI)
    assert near.pod_route("fd42::b", route(CALI, 128)) == PodRoute(CALI)


def test_bridge_port_is_one_pod(near: Neighbourhood) -> None:
    assert near.pod_route(POD, route(CBR0, 24)) == PodRoute(CBR0, MAC, PORT)


@pytest.mark.parametrize(
    "found",
    [
        None,
        route(CALI, 24),
        route(CALI, via_gateway=True),
        route(CALI, is_unicast=False),
        route(ETH0),
        route(PORT),
        route(99),
    ],
)
def test_route_that_may_lead_to_several_is_none(near: Neighbourhood, found: Route | None) -> None:
    assert near.pod_route(POD, found) is None


def test_bridge_without_neighbour_or_port_is_not_known_yet(near: Neighbourhood) -> None:
    del near.ports[CBR0, MAC]
    assert near.pod_route(POD, route(CBR0, 24)) is None
    near.neighbours.clear()
    assert near.pod_route(POD, route(CBR0, 24)) is None


def test_port_that_is_no_pods_is_not_believed(near: Neighbourhood) -> None:
    near.ports[CBR0, MAC] = ETH0
    assert near.pod_route(POD, route(CBR0, 24)) is None


def test_aged_entries_contradict_nothing(near: Neighbourhood) -> None:
    near.neighbours.clear()
    near.ports.clear()
    assert near.still_holds(POD, PodRoute(CBR0, MAC, PORT), route(CBR0, 24))


def test_other_port_other_neighbour_and_lost_links_contradict(near: Neighbourhood) -> None:
    known = PodRoute(CBR0, MAC, PORT)
    assert near.still_holds(POD, known, route(CBR0, 24))
    assert not near.still_holds(POD, known, None)
    assert not near.still_holds(POD, known, route(CALI))
    near.ports[CBR0, MAC] = OTHER_PORT
    assert not near.still_holds(POD, known, route(CBR0, 24))
    near.ports[CBR0, MAC] = PORT
    near.neighbours[CBR0, POD] = "0a:58:0a:2a:00:0c"
    assert not near.still_holds(POD, known, route(CBR0, 24))
    near.neighbours[CBR0, POD] = MAC
    del near.links[PORT]
    assert not near.still_holds(POD, known, route(CBR0, 24))


def test_host_route_that_becomes_a_network_contradicts(near: Neighbourhood) -> None:
    assert near.still_holds(POD, PodRoute(CALI), route(CALI))
    assert not near.still_holds(POD, PodRoute(CALI), route(CALI, 24))
    del near.links[CALI]
    assert not near.still_holds(POD, PodRoute(CALI), route(CALI))


def test_covers() -> None:
    assert covers(ip_network("0.0.0.0/0"), POD)
    assert covers(ip_network("10.42.0.11/32"), POD)
    assert not covers(ip_network("10.42.1.0/24"), POD)
    assert not covers(ip_network("::/0"), POD)
