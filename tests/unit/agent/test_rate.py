"""How often each client may have something done."""

from __future__ import annotations

from kiam.agent.http.rate import RequestRate


def test_burst_and_then_the_rate() -> None:
    rate = RequestRate(per_second=2, burst=3)
    assert [rate.admit("a", 10.0) for _ in range(5)] == [True, True, True, False, False]
    assert [rate.admit("a", 10.5) for _ in range(2)] == [True, False]
    assert [rate.admit("a", 20.0) for _ in range(4)] == [True, True, True, False]


def test_clients_are_counted_apart() -> None:
    rate = RequestRate(per_second=1, burst=1)
    assert rate.admit("a", 0.0)
    assert not rate.admit("a", 0.5)
    assert rate.admit("b", 0.5)


def test_quiet_clients_are_forgotten_and_busy_ones_are_not() -> None:
    rate = RequestRate(per_second=1, burst=1)
    for number in range(5000):
        assert rate.admit(str(number), 0.0)
    assert not rate.admit("0", 0.5)
    assert rate.admit("last", 2.0)
    assert len(rate._whole_at) == 1
