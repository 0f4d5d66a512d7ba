"""Request targets: one spelling each, and no way round the filter."""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiam.agent.core.failures import Unparsable
from kiam.agent.http.paths import (
    Target,
    gives_node_credentials,
    is_token_path,
    normalise_address,
    parse_target,
    query_value,
)
from kiam.agent.http.proxy import RouteFilter
from kiam.errors import UserError

BASE = "/latest/meta-data/iam/security-credentials"
EVERYTHING = RouteFilter(".*")


@pytest.mark.parametrize(
    ("raw", "target"),
    [
        ("/", Target("/", "")),
        ("/ping", Target("/ping", "")),
        ("/ping?x=y", Target("/ping", "x=y")),
        ("/latest/meta-data/", Target("/latest/meta-data/", "")),
        ("/latest/meta-data/tags/instance/Na%6De", Target("/latest/meta-data/tags/instance/Name", "")),
        (BASE, Target(BASE, "", True)),
        (BASE + "/", Target(BASE + "/", "", True, "")),
        (BASE + "/app", Target(BASE + "/app", "", True, "app")),
        (BASE + "/team/app", Target(BASE + "/team/app", "", True, "team/app")),
        (BASE + "//team/app", Target(BASE + "//team/app", "", True, "/team/app")),
        (BASE + "/team%2Fapp", Target(BASE + "/team/app", "", True, "team/app")),
        (BASE + "/arn:aws:iam::1:x?a", Target(BASE + "/arn:aws:iam::1:x", "a", True, "arn:aws:iam::1:x")),
        ("/1.0" + BASE[7:] + "/x", Target("/1.0" + BASE[7:] + "/x", "", True, "x")),
        ("/latest/meta-data/iam/%73ecurity-credentials/x", Target(BASE + "/x", "", True, "x")),
        ("/latest/meta-data/iam/security-credentials-x", Target("/latest/meta-data/iam/security-credentials-x", "")),
        ("/a/b/meta-data/iam/security-credentials/x", Target("/a/b/meta-data/iam/security-credentials/x", "")),
    ],
)  # fmt: skip
def test_target_is_taken_apart(raw: str, target: Target) -> None:
    assert parse_target(raw) == target


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "*",
        "latest",
        "http://169.254.169.254/latest/meta-data/",
        "//169.254.169.254/latest",
        "/a//b",
        "/a/./b",
        "/a/../b",
        "/a/%2e%2e/b",
        "/a/%2E./b",
        "/a%2Fb",
        "/a%2fb",
        "/a%5Cb",
        "/a\\b",
        "/a;b",
        "/a%3Bb",
        "/a%00b",
        "/a%0Ab",
        "/a%7Fb",
        "/a\x01b",
        "/a b",
        "/a#b",
        "/a%23b",
        "/a%3Fb",
        "/a%25b",
        "/a%252e%252e/b",
        "/a%",
        "/a%1",
        "/a%zz",
        "/é",
        "/%C3%A9",
        "/%FF",
        "/a?b#c",
        "/a?b c",
        "/a?é",
        BASE + "/../app",
        BASE + "/a/%2e%2e/app",
        BASE + "/a%00",
        BASE + "/a;b",
        BASE + "/a%25b",
        BASE + "/a%20b",
        BASE + "/a%0d%0ab",
        BASE + "/" + "a" * 1025,
        BASE + "%2Fapp",
        "/latest/meta-data/iam%2Fsecurity-credentials/app",
    ],
)
def test_ambiguous_target_is_refused(raw: str) -> None:
    with pytest.raises(Unparsable):
        parse_target(raw)


@given(st.text(max_size=60))
def test_parse_never_breaks(raw: str) -> None:
    try:
        target = parse_target(raw)
    except Unparsable:
        return
    assert target.path.startswith("/")


@given(st.lists(st.sampled_from([
    "/", "latest", "meta-data", "iam", "security-credentials", "Security-Credentials", "%73ecurity-credentials",
    "identity-credentials", "ec2", "..", ".", "%2e", "%2f", "%5c", ";", "\\", "//", "%00", "?", "#", "node-role", "%25",
]), max_size=14))  # fmt: skip
def test_what_is_passed_on_is_canonical_and_gives_no_node_credentials(pieces: list[str]) -> None:
    raw = "/" + "".join(pieces)
    try:
        target = parse_target(raw)
    except Unparsable:
        return
    if target.is_credentials or not EVERYTHING.allows("GET", target.path):
        return
    # The sent path means itself to any server: decoding, resolving dots and folding case change nothing that matters.
    assert unquote(target.path) == target.path
    assert re.fullmatch(r"[A-Za-z0-9\-._~!$&'()*+,=:@/]*", target.path)
    segments = target.path.split("/")[1:]
    assert "" not in segments[:-1]
    assert not {".", ".."} & set(segments)
    assert "security-credentials" not in unquote(unquote(raw.partition("?")[0])).lower()


@given(st.text(alphabet=st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=40))
def test_every_spelling_of_a_role_is_one_role(role: str) -> None:
    encoded = quote(role, safe="")
    try:
        target = parse_target(f"{BASE}/{encoded}")
    except Unparsable:
        assert set(role) & set("\\;%") or {".", ".."} & set(role.split("/"))
        return
    assert target.role == role


@given(st.text(max_size=30))
def test_canonical_paths_stay_as_they_are(raw: str) -> None:
    try:
        target = parse_target("/" + raw)
    except Unparsable:
        return
    if not target.is_credentials:
        assert parse_target(target.path).path == target.path


@pytest.mark.parametrize(
    "path",
    [
        BASE + "/x",
        BASE.upper(),
        "/latest/meta-data/identity-credentials/ec2/security-credentials/ec2-instance",
        "/latest/meta-data/identity-credentials/ec2/info",
        "/x/y/Security-Credentials",
        "/meta-data/iam/security-credentials/",
        "/latest/meta-data/iam/security-credentials-x",
    ],
)
def test_node_credentials_are_never_allowed(path: str) -> None:
    assert gives_node_credentials(path)
    assert not EVERYTHING.allows("GET", path)
    assert not EVERYTHING.allows("PUT", path)


def test_only_put_to_the_token_path_needs_no_expression() -> None:
    nothing = RouteFilter("^$")
    assert nothing.allows("PUT", "/latest/api/token")
    assert nothing.allows("PUT", "/2021-01-01/api/token")
    assert not nothing.allows("GET", "/latest/api/token")
    assert not nothing.allows("PUT", "/latest/api/token/")
    assert not nothing.allows("PUT", "/latest/x/api/token")
    assert not is_token_path("/api/token")


def test_expression_is_searched_for_as_go_does() -> None:
    assert RouteFilter("instance").allows("GET", "/latest/meta-data/instance-id")
    assert not RouteFilter("^instance").allows("GET", "/latest/meta-data/instance-id")
    assert RouteFilter("/latest/(a|b)$").allows("GET", "/latest/b")


@pytest.mark.parametrize("expression", ["(", "a(?=b)", "(?P<n>a)\\1", "[z-a]"])
def test_expression_that_re2_cannot_read_is_one_clear_line(expression: str) -> None:
    with pytest.raises(UserError, match="--allow-route-regexp") as caught:
        RouteFilter(expression)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("::FFFF:a00:1", "10.0.0.1"),
        ("fe80::1%eth0", "fe80::1"),
        ("FD00:0::1", "fd00::1"),
    ],
)
def test_addresses_are_normalised(text: str, address: str) -> None:
    assert normalise_address(text) == address


@pytest.mark.parametrize("text", ["", "x", "10.0.0", "10.0.0.256", "10.0.0.1 ", "::g"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(Unparsable):
        normalise_address(text)


def test_query_values() -> None:
    assert query_value("a=1&ip=2&ip=3", "ip") == "2"
    assert query_value("deep", "deep") == ""
    assert query_value("", "ip") == ""
