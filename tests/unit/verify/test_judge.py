"""What attempts and the host's evidence are taken to mean; above all, what must never pass."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiam.verify.live.attempts import Attempt, Outcome
from kiam.verify.live.judge import BYPASSES, Evidence, judge_bypass, judge_host, judge_proof
from kiam.verify.results import Status
from tests.unit.verify.listings import FIXES

KEY = (6, "0badcafe")
OURS = FIXES.with_dataplane("nftables")
NOTHING = Evidence(frozenset(), frozenset(), control=True, control6=True)


def tried(route: str, outcome: Outcome, *, sent: bool = True, port: int = 40000) -> Attempt:
    return Attempt(route, outcome, "detail", "198.18.0.1", port, (KEY,) if sent else ())


def landed(route: str) -> Evidence:
    return replace(NOTHING, landed=frozenset({route}))


LEFT = replace(NOTHING, left_node=frozenset({KEY}))


def proof(attempt: Attempt, evidence: Evidence, answer: str = "nonce") -> Status:
    return judge_proof(attempt, evidence, answer, "nonce", FIXES).status


def test_a_connection_the_host_has_at_the_agent_and_the_nonce_are_the_proof() -> None:
    assert proof(tried("tcp", Outcome.CONNECTED), landed("tcp")) is Status.PASS


def test_what_stands_in_for_an_agent_is_not_called_one() -> None:
    attempt, evidence = tried("tcp", Outcome.CONNECTED), landed("tcp")
    for stands_in in (False, True):
        found = judge_proof(attempt, evidence, "nonce", "nonce", FIXES, stands_in=stands_in)
        assert found.status is Status.PASS
        assert ("a kiam agent answered it" in found.seen) is not stands_in


def test_the_nonce_alone_is_no_proof() -> None:
    assert proof(tried("tcp", Outcome.CONNECTED), NOTHING) is Status.FAIL


def test_the_place_without_the_nonce_is_a_warning() -> None:
    assert proof(tried("tcp", Outcome.CONNECTED), landed("tcp"), answer="HTTP/1.1 404") is Status.WARN


def test_a_syn_that_left_the_node_fails_whatever_else_was_seen() -> None:
    evidence = replace(landed("tcp"), left_node=frozenset({KEY}))
    assert proof(tried("tcp", Outcome.CONNECTED), evidence) is Status.FAIL


@pytest.mark.parametrize("outcome", [Outcome.REFUSED, Outcome.SILENCE, Outcome.BLOCKED, Outcome.UNSUPPORTED])
def test_no_connection_is_a_failure(outcome: Outcome) -> None:
    assert proof(tried("tcp", outcome), NOTHING) is Status.FAIL


@pytest.mark.parametrize("route", BYPASSES)
@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome is not Outcome.UNSUPPORTED])
def test_a_route_whose_packet_left_the_node_never_passes(route: str, outcome: Outcome) -> None:
    assert judge_bypass(route, tried(route, outcome), LEFT, OURS).status is Status.FAIL
    by_hand = judge_bypass(route, tried(route, outcome), LEFT, FIXES).status
    assert by_hand is (Status.FAIL if BYPASSES[route].credentials else Status.WARN)


@pytest.mark.parametrize("route", ["udp", "icmp"])
def test_an_answer_where_none_may_come_never_passes(route: str) -> None:
    assert judge_bypass(route, tried(route, Outcome.ANSWERED), NOTHING, OURS).status is Status.FAIL


@pytest.mark.parametrize("route", BYPASSES)
def test_a_connection_that_is_not_the_agents_never_passes(route: str) -> None:
    assert judge_bypass(route, tried(route, Outcome.CONNECTED), NOTHING, OURS).status is Status.FAIL


@pytest.mark.parametrize("route", BYPASSES)
@pytest.mark.parametrize("outcome", [Outcome.REFUSED, Outcome.SILENCE, Outcome.BLOCKED])
def test_a_route_that_leads_nowhere_passes(route: str, outcome: Outcome) -> None:
    assert judge_bypass(route, tried(route, outcome), NOTHING, OURS).status is Status.PASS


@pytest.mark.parametrize("route", BYPASSES)
def test_silence_proves_nothing_where_the_hosts_own_packets_get_nowhere_either(route: str) -> None:
    blind = replace(NOTHING, control=False, control6=False)
    line = judge_bypass(route, tried(route, Outcome.SILENCE), blind, OURS)
    assert line.status is Status.SKIP
    assert "route get" in line.fix_text


@pytest.mark.parametrize("route", BYPASSES)
def test_what_the_kernel_cannot_do_is_skipped_with_a_reason(route: str) -> None:
    line = judge_bypass(route, tried(route, Outcome.UNSUPPORTED), NOTHING, OURS)
    assert line.status is Status.SKIP
    assert "detail" in line.seen


def test_ipv6_that_is_off_at_the_service_is_a_warning_for_a_rule_made_by_hand_only() -> None:
    off = replace(LEFT, served6=False)
    assert judge_bypass("tcp6", tried("tcp6", Outcome.SILENCE), off, FIXES).status is Status.WARN
    assert judge_bypass("tcp6", tried("tcp6", Outcome.SILENCE), off, OURS).status is Status.FAIL


def test_the_host_passes_only_if_its_packet_left_and_did_not_come_to_the_agent() -> None:
    assert judge_host(tried("tcp", Outcome.CONNECTED), LEFT, FIXES.install()).status is Status.PASS
    assert judge_host(tried("tcp", Outcome.SILENCE), LEFT, FIXES.install()).status is Status.PASS
    redirected = replace(LEFT, landed=frozenset({"tcp"}))
    assert judge_host(tried("tcp", Outcome.CONNECTED), redirected, FIXES.install()).status is Status.FAIL
    assert judge_host(tried("tcp", Outcome.CONNECTED), NOTHING, FIXES.install()).status is Status.FAIL
    assert judge_host(tried("tcp", Outcome.BLOCKED), NOTHING, FIXES.install()).status is Status.FAIL
    assert judge_host(tried("tcp", Outcome.REFUSED), NOTHING, FIXES.install()).status is Status.WARN


@settings(deadline=None)
@given(
    st.sampled_from(sorted(BYPASSES)),
    st.sampled_from(list(Outcome)),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_nothing_passes_that_reached_or_was_answered_by_another(
    route: str, outcome: Outcome, sent: bool, left: bool, at_agent: bool, control: bool
) -> None:
    evidence = Evidence(
        frozenset({KEY}) if left else frozenset(), frozenset({route}) if at_agent else frozenset(), control, control
    )
    line = judge_bypass(route, tried(route, outcome, sent=sent), evidence, OURS)
    if line.status is Status.PASS:
        assert not (sent and left)
        assert outcome is not Outcome.CONNECTED or at_agent
