"""Interface patterns: what they read, what they match, and when two of them can mean the same interface."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiam.netfilter.interfaces import InterfacePattern, parse_forward_metadata

NAMES = st.text("abc0", min_size=1, max_size=4)
PATTERNS = st.builds(InterfacePattern, NAMES, st.booleans(), st.booleans())


@pytest.mark.parametrize(
    ("text", "matching", "other"),
    [
        ("cali+", "cali12345", "eth0"),
        ("!eth0", "eni1", "eth0"),
        ("weave", "weave", "weave0"),
        ("cbr0", "cbr0", "cbr"),
        ("!cali+", "eth0", "cali1"),
    ],
)
def test_a_pattern_matches_as_iptables_does(text: str, matching: str, other: str) -> None:
    pattern = InterfacePattern.parse(text)
    assert pattern.matches(matching)
    assert not pattern.matches(other)
    assert str(pattern) == text


def test_a_lone_plus_matches_everything() -> None:
    assert InterfacePattern.parse("+").matches("anything")


@pytest.mark.parametrize(
    "text", ["", "!", "!+", "a b", "eth0/1", "waytoolonganame12", "x:1", "é", "cali*", "a+b", "!!eth0", 'a"b', "a\\"]
)
def test_what_is_no_interface_is_refused_with_the_way_to_write_one(text: str) -> None:
    with pytest.raises(ValueError, match="write it like cali\\+, eth0 or !eth0"):
        InterfacePattern.parse(text)


@given(PATTERNS)
def test_every_pattern_reads_back(pattern: InterfacePattern) -> None:
    assert InterfacePattern.parse(str(pattern)) == pattern


@given(PATTERNS, PATTERNS, NAMES)
def test_patterns_that_share_a_name_overlap(one: InterfacePattern, other: InterfacePattern, name: str) -> None:
    if one.matches(name) and other.matches(name):
        assert one.overlaps(other)
        assert other.overlaps(one)


@given(PATTERNS, PATTERNS)
def test_patterns_that_overlap_share_a_name(one: InterfacePattern, other: InterfacePattern) -> None:
    stems = {one.name, other.name, "zz"}
    names = stems | {stem + tail for stem in stems for tail in ("z", "zz")}
    assert one.overlaps(other) == any(one.matches(name) and other.matches(name) for name in names)


@given(PATTERNS, PATTERNS)
def test_a_pattern_covers_another_when_it_takes_all_its_names(one: InterfacePattern, other: InterfacePattern) -> None:
    stems = {one.name, other.name, "zz"}
    names = stems | {stem + tail for stem in stems for tail in ("z", "zz")}
    assert one.covers(other) == all(one.matches(name) for name in names if other.matches(name))
    assert InterfacePattern.parse("+").covers(other)


def test_forwarding_is_dropped_or_allowed_for_an_interface_by_name() -> None:
    assert parse_forward_metadata("drop") is None
    assert parse_forward_metadata("allow:virbr+") == InterfacePattern("virbr", wildcard=True)


@pytest.mark.parametrize(
    "text", ["", "allow", "allow:", "deny:virbr0", "virbr0", "allow:!eth0", "allow:+", "allow:a b"]
)
def test_forwarding_for_interfaces_nobody_named_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write it like"):
        parse_forward_metadata(text)
