"""Session tokens: who may use them, for how long, and who gets and needs one."""

from __future__ import annotations

import string
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from kiam.agent.core.failures import Forbidden, Unauthorized, Unparsable
from kiam.agent.core.identities import KnownPod
from kiam.agent.http.messages import Request, Response, target_of
from kiam.agent.http.token_desk import TokenDesk
from kiam.agent.http.tokens import UNBOUND_SECONDS, SessionTokens
from kiam.agent.metrics import AgentMetrics
from kiam.agent.settings import TokenMode
from tests.integration.agent.test_limits import Held

NOW = 1_800_000_000.0
ADDRESSES = st.ip_addresses().map(str)
UIDS = st.uuids().map(str)
KEY = b"-----BEGIN PRIVATE KEY-----"


def tokens(key: bytes = KEY, node: str = "10.0.0.1") -> SessionTokens:
    return SessionTokens(lambda: key, node)


@given(ADDRESSES, UIDS, st.integers(1, 21600), st.floats(0, 0.999))
def test_token_is_good_for_its_life_and_no_longer(address: str, uid: str, ttl: int, part: float) -> None:
    token = tokens().issue(str(ttl), address, uid, NOW)
    assert tokens().accepts(token, address, uid, NOW + ttl * part)
    assert not tokens().accepts(token, address, uid, NOW + ttl)


@given(ADDRESSES, ADDRESSES, UIDS, UIDS)
def test_token_is_worth_nothing_to_another_pod(address: str, other: str, uid: str, later: str) -> None:
    token = tokens().issue("60", address, uid, NOW)
    assert tokens().accepts(token, other, uid, NOW) is (other == address)
    assert tokens().accepts(token, address, later, NOW) is (later == uid)
    # Who is there isn't known just now, but it is the same address.
    assert tokens().accepts(token, address, "", NOW)


@given(ADDRESSES, UIDS)
def test_token_from_before_the_pod_was_known_is_good_for_a_minute_then(address: str, uid: str) -> None:
    token = tokens().issue("21600", address, "", NOW)
    assert tokens().accepts(token, address, uid, NOW + UNBOUND_SECONDS - 1)
    assert not tokens().accepts(token, address, uid, NOW + UNBOUND_SECONDS)
    # A conventional server never says who is there.
    assert tokens().accepts(token, address, "", NOW + 21599)


@given(st.integers(0, 55), st.sampled_from(string.ascii_letters + string.digits + "-_+/=!é"))
@example(54, "V")
def test_changed_token_is_refused(place: int, character: str) -> None:
    token = tokens().issue("60", "10.0.0.2", "uid", NOW)
    changed = token[:place] + character + token[place + 1 :]
    assert tokens().accepts(changed, "10.0.0.2", "uid", NOW) is (changed == token)


@given(st.text(max_size=80))
def test_anything_else_is_refused(token: str) -> None:
    assert not tokens().accepts(token, "10.0.0.2", "uid", NOW)


def test_token_is_another_nodes_business() -> None:
    token = tokens().issue("60", "10.0.0.2", "uid", NOW)
    assert not tokens(node="10.0.0.9").accepts(token, "10.0.0.2", "uid", NOW)
    assert not tokens(key=b"another").accepts(token, "10.0.0.2", "uid", NOW)


def test_token_outlives_a_restart_and_one_change_of_the_key() -> None:
    key = [b"first"]
    issuer = SessionTokens(lambda: key[0], "node")
    token = issuer.issue("60", "10.0.0.2", "uid", NOW)
    assert SessionTokens(lambda: b"first", "node").accepts(token, "10.0.0.2", "uid", NOW)
    key[0] = b"second"
    assert issuer.accepts(token, "10.0.0.2", "uid", NOW)
    key[0] = b"third"
    assert not issuer.accepts(token, "10.0.0.2", "uid", NOW)


@pytest.mark.parametrize("ttl", ["", "0", "-1", "21601", "999999", "1.5", "60s", "+60", "٣", "0x10"])
def test_life_out_of_range_is_refused(ttl: str) -> None:
    with pytest.raises(Unparsable):
        tokens().issue(ttl, "10.0.0.2", "uid", NOW)


class Pods(Held):
    """Pods by address."""

    def __init__(self, **modes: str) -> None:
        super().__init__()
        self.modes = modes

    def known_pod(self, address: str, uid: str | None = None) -> KnownPod | None:
        mode = self.modes.get(address)
        return None if mode is None else KnownPod(f"uid-{address}", "ns", address, "role", mode)


def desk(
    mode: TokenMode, pods: Pods | None = None, is_ours: Callable[[str], bool] = lambda _: True
) -> tuple[TokenDesk, CollectorRegistry]:
    registry = CollectorRegistry()
    return TokenDesk(pods or Pods(), tokens(), mode, is_ours, AgentMetrics(registry)), registry


TTL = ("x-aws-ec2-metadata-token-ttl-seconds", "60")


def put(client: str = "a", *fields: tuple[str, str]) -> Request:
    return Request("PUT", "/latest/api/token", fields or (TTL,), client, None)


TOKEN_TARGET = target_of("/latest/api/token")


def issue(of: TokenDesk, client: str = "a") -> str:
    answer = of.issue(put(client))
    assert isinstance(answer, Response)
    assert answer.status == 200
    return answer.body.decode()


def check(of: TokenDesk, client: str, token: str | None, uid: str | None = None) -> None:
    of.check(of._identities.known_pod(client, uid), client, token, uid)


def test_optional_tokens_are_checked_where_they_are_sent() -> None:
    made, _ = desk(TokenMode.OPTIONAL)
    check(made, "a", None)
    check(made, "a", "")
    check(made, "a", issue(made))
    for wrong in ("x", issue(made, "b")):
        with pytest.raises(Unauthorized):
            check(made, "a", wrong)


def test_required_tokens_are_demanded() -> None:
    made, _ = desk(TokenMode.REQUIRED)
    check(made, "a", issue(made))
    for missing in (None, ""):
        with pytest.raises(Unauthorized):
            check(made, "a", missing)


def test_passed_on_tokens_are_not_ours_to_check() -> None:
    made, _ = desk(TokenMode.PASSED_ON)
    check(made, "a", "whatever")
    assert not made.issues(put(), TOKEN_TARGET)
    assert not made.replaces(put(), TOKEN_TARGET)


@pytest.mark.parametrize(
    ("annotation", "serves_without"),
    [("required", False), ("optional", True), ("passed-on", True), ("requierd", False)],
)
@pytest.mark.parametrize("mode", TokenMode)
def test_annotation_overrides_the_flag_and_a_misspelt_one_is_strict(
    mode: TokenMode, annotation: str, serves_without: bool
) -> None:
    made, _ = desk(mode, Pods(a=annotation))
    if serves_without:
        check(made, "a", None)
    else:
        with pytest.raises(Unauthorized):
            check(made, "a", None)
    assert made.issues(put(), TOKEN_TARGET) is (annotation != "passed-on")


class Scheduled(Pods):
    """A pod that the kernel knows, and the server's word on its address comes later."""

    is_reported = False

    def known_pod(self, address: str, uid: str | None = None) -> KnownPod | None:
        return KnownPod("u1", "ns", "a", "role", "required") if uid == "u1" or self.is_reported else None


def test_token_of_a_pod_known_by_the_kernels_word_is_its_own_before_and_after_its_address_is_known() -> None:
    pods = Scheduled()
    made, _ = desk(TokenMode.OPTIONAL, pods, is_ours=lambda _: False)
    token = made.issue(replace(put(), uid="u1")).body.decode()
    with pytest.raises(Unauthorized):
        check(made, "a", None, "u1")
    check(made, "a", token, "u1")
    # Before its address is known, whoever else asks there isn't served by it.
    with pytest.raises(Unauthorized):
        check(made, "a", token, "u2")
    pods.is_reported = True
    check(made, "a", token, "u1")
    check(made, "a", token)
    with pytest.raises(Unauthorized):
        check(made, "a", token, "u2")


def test_token_got_before_the_server_knew_the_pod_outlives_the_time_of_the_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pods = Pods()
    made, _ = desk(TokenMode.OPTIONAL, pods)
    token = made.issue(replace(put("a", ("x-aws-ec2-metadata-token-ttl-seconds", "600")), uid="uid-a")).body.decode()
    pods.modes["a"] = ""
    later = time.time() + UNBOUND_SECONDS + 1
    monkeypatch.setattr("kiam.agent.http.token_desk.time", lambda: later)
    check(made, "a", token, "uid-a")
    check(made, "a", token)


def test_two_tokens_are_one_too_many() -> None:
    made, _ = desk(TokenMode.OPTIONAL)
    good = issue(made)
    two = (("x-aws-ec2-metadata-token", good), ("x-aws-ec2-metadata-token", "x"))
    with pytest.raises(Unauthorized):
        made.check_request(Request("GET", "/", two, "a", None))


def test_other_hosts_get_no_token_and_are_counted() -> None:
    made, registry = desk(TokenMode.OPTIONAL, is_ours=lambda address: address == "a")
    issue(made, "a")
    with pytest.raises(Forbidden):
        made.issue(put("stranger"))
    assert registry.get_sample_value("kiam_agent_foreign_requests_total") == 1


@pytest.mark.parametrize("name", ["x-forwarded-for", "forwarded"])
def test_reverse_proxies_get_no_token(name: str) -> None:
    for mode in (TokenMode.OPTIONAL, TokenMode.REQUIRED):
        with pytest.raises(Forbidden):
            desk(mode)[0].issue(put("a", TTL, (name, "10.0.0.1")))
    with pytest.raises(Forbidden):
        desk(TokenMode.PASSED_ON)[0].replaces(put("a", TTL, (name, "10.0.0.1")), TOKEN_TARGET)


def test_life_is_given_once() -> None:
    for fields in ((("host", "x"),), (TTL, TTL)):
        with pytest.raises(Unparsable):
            desk(TokenMode.OPTIONAL)[0].issue(put("a", *fields))
