from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiam.tls.certificates import read_certificates
from kiam.tls.issue import Period, make_authority, make_certificate
from kiam.tls.succession import SETTLING, Action, Half, Outcome, Pair, Successor, Terms, decide, ends, succeed

HALVES = ("agent", "server")
START = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)
TERMS = Terms(renew_before=180 * DAY, validity=400 * DAY)


def made(days: int = 65) -> dict[str, Half]:
    """As conventional kiam's chart left them."""
    period = Period(START - DAY, START + days * DAY)
    authority = make_authority("kiam-ca", period)
    halves = {}
    for half in HALVES:
        issued = make_certificate(f"kiam-{half}", [f"kiam-{half}", "127.0.0.1"], period, authority.cert, authority.key)
        halves[half] = Half(Pair(issued.cert, issued.key), authority.cert)
    return halves


def accepts(one: Half, other: Half, now: datetime) -> bool:
    """Whether a half that has the first mounted lets in one that has the other."""
    certificate = read_certificates(other.pair.cert)[0]
    known = read_certificates(one.ca)
    return certificate.valid_at(now) and any(certificate.issued_by(ca) and ca.valid_at(now) for ca in known)


def introduced(halves: dict[str, Half], now: datetime = START) -> Outcome:
    outcome = succeed(halves, None, now, TERMS)
    assert outcome is not None
    assert outcome.action is Action.INTRODUCE
    return outcome


def test_a_pair_without_a_successor_is_given_one_and_stays_in_use() -> None:
    halves = made()
    outcome = introduced(halves)
    for half in HALVES:
        assert outcome.halves[half].pair == halves[half].pair
        new = read_certificates(outcome.successor.pairs[half].cert)[0]
        old = read_certificates(halves[half].pair.cert)[0]
        assert (new.names, new.subject) == (old.names, old.subject)
        assert new.not_after == START + TERMS.validity
        assert len(read_certificates(outcome.halves[half].ca)) == 2


@pytest.mark.parametrize(
    ("days", "since", "action"),
    [
        (65, SETTLING, Action.KEEP),
        (65, SETTLING + timedelta(seconds=1), Action.RENEW),
        (181, 2 * SETTLING, Action.KEEP),
    ],
)
def test_it_takes_over_when_it_is_due_and_everybody_has_been_told(days: int, since: timedelta, action: Action) -> None:
    outcome = introduced(made(days))
    assert decide(outcome.halves, outcome.successor, START + since, TERMS.renew_before) is action


def test_one_that_a_half_was_not_told_of_is_never_used() -> None:
    halves = made()
    outcome = introduced(halves)
    for half in HALVES:
        told = {**outcome.halves, half: halves[half]}
        assert decide(told, outcome.successor, START + DAY, TERMS.renew_before) is Action.INTRODUCE


@pytest.mark.parametrize("damage", ["a half's missing", "another authority's", "ended"])
def test_one_that_would_not_work_is_replaced(damage: str) -> None:
    outcome = introduced(made())
    broken: Successor = outcome.successor
    now = START + DAY
    if damage == "a half's missing":
        broken = replace(broken, pairs={"agent": broken.pairs["agent"]})
    elif damage == "another authority's":
        broken = replace(broken, pairs=introduced(made()).successor.pairs)
    else:
        period = Period(START - DAY, START + DAY / 2)
        broken = replace(broken, ca=make_authority("short", period).cert)
    assert decide(outcome.halves, broken, now, TERMS.renew_before) is Action.INTRODUCE


def test_what_has_ended_is_replaced_at_once() -> None:
    outcome = succeed(made(days=1), None, START + 2 * DAY, TERMS)
    assert outcome is not None
    assert outcome.action is Action.MAKE
    assert accepts(outcome.halves["agent"], outcome.halves["server"], START + 2 * DAY)
    assert ends(outcome.halves) == START + 2 * DAY + TERMS.validity


def test_an_authority_that_ends_before_its_certificates_counts() -> None:
    authority = make_authority("kiam-ca", Period(START - DAY, START + DAY))
    halves = {half: replace(mounted, ca=mounted.ca + authority.cert) for half, mounted in made(65).items()}
    assert ends(halves) == START + 65 * DAY


STEPS = st.lists(
    st.tuples(
        st.integers(1, 40 * 24),  # hours that pass before
        st.integers(0, 3),  # of three Secrets, so many are stored before the job is killed
        st.permutations(HALVES),  # whose kubelets are quicker
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_nobody_ever_refuses_anybody_whenever_it_runs_and_is_cut_short(steps: list[tuple[int, int, list[str]]]) -> None:
    """Provided that what is stored reaches every node within an hour, and that something runs before the end."""
    stored, successor = made(), None
    now = START
    for hours, stores, order in steps:
        now = min(now + timedelta(hours=hours), ends(stored) - timedelta(hours=1))
        mounted = dict(stored)
        outcome = succeed(stored, successor, now, TERMS)
        if outcome is not None and stores > 0:
            successor = outcome.successor
            for half in HALVES[: stores - 1]:
                stored[half] = outcome.halves[half]
        for half in order:
            for one, other in (("agent", "server"), ("server", "agent")):
                assert accepts(mounted[one], mounted[other], now)
            mounted[half] = stored[half]
        for one, other in (("agent", "server"), ("server", "agent")):
            assert accepts(mounted[one], mounted[other], now)
            assert len(read_certificates(mounted[one].ca)) <= 6
