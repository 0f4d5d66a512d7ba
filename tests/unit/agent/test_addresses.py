"""Single steps in an address's life that random ones seldom reach."""

from __future__ import annotations

from ipaddress import ip_network

from kiam.agent.core.addresses import Addresses
from kiam.agent.core.routes import Link, LinkChange, NeighbourChange, PortChange, Route, RouteChange

A = "10.0.0.1"
BRIDGE, PORT, OTHER_PORT = 6, 7, 8
MAC = "0a:58:0a:2a:00:0b"


def host_route(link: int) -> Route:
    return Route(link, 32, via_gateway=False, is_unicast=True)


def known(link: int = 17, at: float = 100.0) -> Addresses:
    """u1 has A, as of ``at``, behind an interface that was there before."""
    addresses = Addresses()
    addresses.kernel_is([LinkChange(Link(link, "veth", 0), gone=False)], 0.0, is_first=True)
    addresses.assign(A, "u1", at)
    look(addresses, host_route(link), at)
    assert addresses.is_bound(A)
    return addresses


def look(addresses: Addresses, route: Route | None, now: float, is_informed: bool = True) -> None:
    """Answer every look-up with the same route."""
    while (address := addresses.next_look_up()) is not None:
        addresses.route_is(address, route, now, is_informed=is_informed)


def lose_link(addresses: Addresses, now: float, link: int = 17) -> None:
    addresses.kernel_changed(LinkChange(Link(link, "veth", 0), gone=True), now)
    look(addresses, None, now)


def test_word_from_before_kubelet_can_have_reported_confirms_nothing() -> None:
    addresses = known()
    lose_link(addresses, 200.0)
    assert addresses.ask_at(last_asked=0.0) == 201.0
    addresses.confirm(asked_at=201.5, age=1.4)
    assert addresses.is_suspect(A)
    assert addresses.ask_at(last_asked=201.5) == 202.5
    addresses.confirm(asked_at=202.5, age=1.4)
    assert not addresses.is_suspect(A)


def test_unary_answer_must_be_newer_than_the_interface() -> None:
    addresses = known()
    addresses.kernel_changed(LinkChange(Link(18, "veth", 0), gone=False), 300.0)
    behind = host_route(18)
    assert not addresses.vouches("10.0.0.9", behind, asked_at=310.0, age=9.5)
    assert addresses.vouches("10.0.0.9", behind, asked_at=310.0, age=5.0)
    # A server that doesn't say how old its knowledge is.
    assert addresses.vouches("10.0.0.9", behind, asked_at=300.1, age=None)
    lose_link(addresses, 400.0)
    assert not addresses.vouches(A, behind, asked_at=400.5, age=None)
    assert addresses.vouches(A, behind, asked_at=401.0, age=None)


def test_more_news_of_the_same_pod_confirms_nothing() -> None:
    addresses = known()
    lose_link(addresses, 200.0)
    addresses.assign(A, "u1", 200.5)
    assert addresses.is_suspect(A)
    addresses.assign(A, "u2", 200.5)
    assert not addresses.is_suspect(A)


def test_withdrawal_does_not_wash_an_address_clean() -> None:
    addresses = known()
    lose_link(addresses, 200.0)
    addresses.release(A, 200.1)
    assert not addresses.is_suspect(A)
    # By a replica that hasn't heard of the pod's end.
    addresses.assign(A, "u1", 200.2)
    assert addresses.is_suspect(A)


def test_suspicions_are_not_remembered_for_ever() -> None:
    addresses = known()
    lose_link(addresses, 200.0)
    addresses.release(A, 200.1)
    addresses.assign("10.0.0.2", "u2", 250.0)
    addresses.release("10.0.0.2", 261.0)
    assert not addresses._known


def test_pushed_pod_behind_a_younger_interface_is_suspect() -> None:
    addresses = Addresses()
    addresses.kernel_is([], 0.0, is_first=True)
    addresses.kernel_changed(LinkChange(Link(17, "veth", 0), gone=False), 150.0)
    addresses.assign(A, "u1", 149.0)
    look(addresses, host_route(17), 151.0)
    assert addresses.is_suspect(A)
    assert addresses.take_dropped() == 1


def test_route_put_back_to_the_same_interface_is_the_same_pod() -> None:
    addresses = known()
    for route in (None, host_route(17)):
        addresses.kernel_changed(RouteChange(ip_network(A)), 200.0)
        look(addresses, route, 200.0, is_informed=False)
    assert addresses.is_bound(A)
    assert not addresses.is_suspect(A)


def bridge() -> Addresses:
    addresses = Addresses()
    links = (Link(BRIDGE, "bridge", 0), Link(PORT, "veth", BRIDGE), Link(OTHER_PORT, "veth", BRIDGE))
    addresses.kernel_is([LinkChange(link, gone=False) for link in links], 0.0, is_first=True)
    return addresses


BEHIND_BRIDGE = Route(BRIDGE, 24, via_gateway=False, is_unicast=True)


def test_pod_on_a_bridge_is_resolved_and_bound_when_it_answers() -> None:
    addresses = bridge()
    addresses.assign(A, "u1", 100.0)
    look(addresses, BEHIND_BRIDGE, 100.0)
    assert addresses.take_resolutions() == [(BRIDGE, A)]
    addresses.kernel_changed(PortChange(BRIDGE, MAC, PORT), 100.1)
    addresses.kernel_changed(NeighbourChange(BRIDGE, A, MAC), 100.1)
    look(addresses, BEHIND_BRIDGE, 100.1)
    assert addresses.is_bound(A)
    assert addresses.take_resolutions() == []


def test_nothing_is_bound_while_the_server_is_away() -> None:
    addresses = bridge()
    addresses.assign(A, "u1", 100.0)
    look(addresses, BEHIND_BRIDGE, 100.0)
    addresses.kernel_changed(PortChange(BRIDGE, MAC, OTHER_PORT), 200.0)
    addresses.kernel_changed(NeighbourChange(BRIDGE, A, MAC), 200.0)
    look(addresses, BEHIND_BRIDGE, 200.0, is_informed=False)
    assert not addresses.is_bound(A)


def test_bridge_port_that_comes_back_is_not_believed_without_the_server() -> None:
    """A pod that forges address and link-layer address, and lets go of them while its request waits."""
    addresses = bridge()
    addresses.kernel_changed(PortChange(BRIDGE, MAC, PORT), 1.0)
    addresses.kernel_changed(NeighbourChange(BRIDGE, A, MAC), 1.0)
    addresses.assign(A, "u1", 100.0)
    look(addresses, BEHIND_BRIDGE, 100.0)
    assert addresses.is_bound(A)
    for port in (OTHER_PORT, PORT):
        addresses.kernel_changed(PortChange(BRIDGE, MAC, port), 200.0)
        look(addresses, BEHIND_BRIDGE, 200.0)
    assert addresses.is_suspect(A)
    addresses.confirm(asked_at=201.0, age=0.0)
    look(addresses, BEHIND_BRIDGE, 201.0)
    assert addresses.is_bound(A)
