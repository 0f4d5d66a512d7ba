"""Session names and role ARNs."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiam.arns import resolve_role_arn
from kiam.identity import session_name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("kiam", "kiam-kiam"),
        ("my session/1", "kiam-my-session-1"),
        ("a_b+c=d,e.f@g-h", "kiam-a_b+c=d,e.f@g-h"),
        ("ünïcode", "kiam--n-code"),
        ("x" * 100, "kiam-" + "x" * 59),
        ("", "kiam-"),
    ],
)
def test_session_name_is_prefixed_cleaned_and_cut(name: str, expected: str) -> None:
    assert session_name(name) == expected


@given(st.text())
def test_every_session_name_is_one_that_sts_takes(name: str) -> None:
    assert re.fullmatch(r"[\w+=,.@-]{2,64}", session_name(name), re.ASCII)


@pytest.mark.parametrize("role", ["team/app", "/team/app", "arn:aws:iam::1:role/team/app"])
def test_name_path_and_arn_resolve_alike(role: str) -> None:
    assert resolve_role_arn(role, "arn:aws:iam::1:role/") == "arn:aws:iam::1:role/team/app"


def test_only_one_leading_slash_is_dropped() -> None:
    assert resolve_role_arn("//app", "arn:aws:iam::1:role/") == "arn:aws:iam::1:role//app"
