"""Bounds on connections and handshakes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kiam.server.grpc.admission import Admission, Bounds, Stage

SMALL = Bounds(
    handshakes=8,
    handshakes_of_strangers=6,
    handshakes_of_address=3,
    handshakes_of_known_address=5,
    strangers_per_second=2,
    strangers_at_once=4,
    connections=6,
    connections_of_address=4,
    connections_in_any_case=1,
    known_per_second=1,
    known_at_once=6,
    known=3,
)
ADDRESSES = ("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "2001:db8::1")


def test_share_is_kept_for_addresses_that_were_authenticated() -> None:
    admission = Admission(SMALL)
    admission.authenticated("10.0.0.9")
    strangers = [admission.begins(f"10.0.1.{n}") for n in range(20)]
    assert strangers.count(True) == SMALL.handshakes_of_strangers
    assert admission.begins("10.0.0.9") is False
    assert admission.begins("10.0.1.99") is None


def test_one_address_gets_only_its_own_share() -> None:
    admission = Admission(SMALL)
    assert [admission.begins("10.0.0.1") for _ in range(5)] == [True, True, True, None, None]
    assert admission.begins("10.0.0.2") is True
    assert admission.refused == 2


def test_handshakes_are_limited_in_time_for_strangers_together_and_for_each_known_address() -> None:
    admission = Admission(SMALL)
    for address in ("10.0.0.8", "10.0.0.9"):
        admission.authenticated(address)
    assert [admission.may_shake_hands("10.0.0.1", 0.0) for _ in range(6)] == [True] * 4 + [False] * 2
    assert admission.may_shake_hands("10.0.0.1", 0.5)
    assert not admission.may_shake_hands("10.0.0.1", 0.5)
    assert [admission.may_shake_hands("10.0.0.9", 0.0) for _ in range(8)] == [True] * 6 + [False] * 2
    # Being authenticated once more earns nothing.
    admission.authenticated("10.0.0.9")
    assert not admission.may_shake_hands("10.0.0.9", 0.0)
    assert admission.may_shake_hands("10.0.0.9", 1.0)
    assert admission.may_shake_hands("10.0.0.8", 0.0)


def test_few_addresses_that_hold_all_they_get_leave_some_for_others() -> None:
    bounds = Bounds()
    admission = Admission(bounds)
    greedy = [f"10.0.0.{number}" for number in range(6)]
    for address in greedy:
        admission.authenticated(address)
    for address in greedy * bounds.connections_of_address:
        admission.begins(address)
        admission.joins(address)
    assert admission.begins("10.0.1.1") is True
    for number in range(100):
        assert admission.joins(f"10.0.1.{number}")


def test_agents_behind_one_address_get_half_of_the_handshakes() -> None:
    admission = Admission(Bounds())
    admission.authenticated("10.0.0.1")
    while admission.begins("10.0.0.1") is not None:
        pass
    assert admission.count(Stage.HANDSHAKE, "10.0.0.1") == Bounds().handshakes_of_known_address == 512


def test_oldest_authenticated_address_is_forgotten_first() -> None:
    admission = Admission(SMALL)
    for number in range(4):
        admission.authenticated(f"10.0.0.{number}")
    assert admission.begins("10.0.0.0") is True
    assert admission.begins("10.0.0.3") is False


@given(times=st.lists(st.floats(min_value=0, max_value=100, allow_nan=False), max_size=200))
def test_no_order_of_arrival_gets_more_handshakes_than_rate_and_burst_allow(times: list[float]) -> None:
    admission = Admission(SMALL)
    granted = [now for now in sorted(times) if admission.may_shake_hands("10.0.0.1", now)]
    for start in granted:
        within = [now for now in granted if start <= now <= start + 1]
        assert len(within) <= SMALL.strangers_at_once + SMALL.strangers_per_second + 1e-6


class Life(RuleBasedStateMachine):
    """Connections come, shake hands or don't, join and go, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.admission = Admission(SMALL)
        self.shaking: list[tuple[str, bool]] = []
        self.joined: list[str] = []

    @rule(address=st.sampled_from(ADDRESSES))
    def comes(self, address: str) -> None:
        stranger = self.admission.begins(address)
        if stranger is not None:
            self.shaking.append((address, stranger))

    @precondition(lambda self: self.shaking)
    @rule(data=st.data(), good=st.booleans())
    def ends(self, data: st.DataObject, good: bool) -> None:
        address, stranger = self.shaking.pop(data.draw(st.integers(0, len(self.shaking) - 1)))
        if good:
            self.admission.authenticated(address)
        self.admission.ended(address, stranger)
        if good and self.admission.joins(address):
            self.joined.append(address)

    @precondition(lambda self: self.joined)
    @rule(data=st.data())
    def leaves(self, data: st.DataObject) -> None:
        self.admission.leaves(self.joined.pop(data.draw(st.integers(0, len(self.joined) - 1))))

    @invariant()
    def bounds_hold_and_counts_are_true(self) -> None:
        assert self.admission.count(Stage.HANDSHAKE) == len(self.shaking) <= SMALL.handshakes
        assert self.admission.count(Stage.JOINED) == len(self.joined) <= SMALL.connections
        assert sum(stranger for _, stranger in self.shaking) <= SMALL.handshakes_of_strangers
        for address in ADDRESSES:
            assert self.joined.count(address) <= SMALL.connections_of_address


TestLife = Life.TestCase


@pytest.mark.parametrize("field", ["handshakes", "connections", "handshakes_of_address"])
def test_defaults_leave_room_for_a_thousand_nodes(field: str) -> None:
    assert getattr(Bounds(), field) >= {"handshakes": 1000, "connections": 1000, "handshakes_of_address": 1}[field]
