"""Header fields between a pod and the instance metadata service."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiam.agent.http.headers import passed_headers

NAMES = st.text(alphabet="abcXYZ-_", min_size=1, max_size=12)
FIELDS = st.lists(st.tuples(NAMES, st.text(max_size=10)), max_size=10)


@pytest.mark.parametrize(
    "name",
    [
        "Connection", "Keep-Alive", "Proxy-Authorization", "TE", "Trailer", "Transfer-Encoding", "Upgrade",
        "X-Forwarded-For", "X-FORWARDED-FOR", "x_forwarded_for", "X-Forwarded-Host", "Forwarded", "Via", "Host",
        "Content-Length", "Expect", "X-Real-IP",
    ],
)  # fmt: skip
def test_field_is_not_passed_on(name: str) -> None:
    assert list(passed_headers([(name, "x"), ("Accept", "y")])) == [("Accept", "y")]


def test_fields_named_in_connection_are_not_passed_on() -> None:
    fields = [
        ("Connection", "close, X-Secret"),
        ("x-secret", "1"),
        ("connection", " Other "),
        ("Other", "2"),
        ("A", "3"),
    ]
    assert list(passed_headers(fields)) == [("A", "3")]


def test_tokens_are_passed_on() -> None:
    fields = [("X-aws-ec2-metadata-token", "t"), ("X-aws-ec2-metadata-token-ttl-seconds", "60")]
    assert list(passed_headers(fields)) == fields


@given(FIELDS)
def test_nothing_is_added_and_order_is_kept(fields: list[tuple[str, str]]) -> None:
    passed = list(passed_headers(fields))
    remaining = iter(fields)
    assert all(any(field == candidate for candidate in remaining) for field in passed)


@given(FIELDS, NAMES)
def test_a_named_field_never_passes(fields: list[tuple[str, str]], name: str) -> None:
    passed = passed_headers([("Connection", name), *fields])
    assert name.casefold() not in {field.casefold() for field, _ in passed}
