"""Which texts can be IAM roles, and how texts from outside are shown."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiam.arns import resolve_role_arn, role_problem, shown

BASE = "arn:aws:iam::123456789012:role/"


def problem(role: str) -> str:
    return role_problem(resolve_role_arn(role, BASE))


@pytest.mark.parametrize(
    "role",
    [
        "app",
        "/app",
        "team/app",
        "a_b+c=d,e.f@g-h",
        "x" * 64,
        "p" * 509 + "/app",
        "with:colon/and*star/app",
        "..x/app..",
        "arn:aws-us-gov:iam::1:role/app",
        "arn:aws-cn:iam::123456789012:role/service-role/app",
    ],
)
def test_what_can_be_a_role_is_one(role: str) -> None:
    assert problem(role) == ""


@pytest.mark.parametrize(
    "role",
    [
        "x/../../admin",
        "x/./admin",
        "..",
        "../admin",
        "x//admin",
        "//app",
        "app/",
        "/",
        "x*",
        "x?",
        "x\0",
        "x\x1b[31m",
        "x\ny",
        "x y",
        "x y/app",
        "ü",
        "ünder/app",
        "\N{FULLWIDTH LATIN SMALL LETTER A}pp",
        "x" * 65,
        "p" * 511 + "/app",
        "x" * 200_000,
        "arn:aws:iam::123456789012:user/app",
        "arn:aws:iam::aws:role/app",
        "arn:aws:sts::123456789012:assumed-role/app/x",
        "arn:aws:iam::123456789012:role/",
        "arn:aws:iam:eu-west-1:123456789012:role/app",
        "arn:",
    ],
)
def test_what_cannot_be_a_role_has_a_reason(role: str) -> None:
    reason = problem(role)
    assert reason
    assert reason.isprintable()
    assert len(reason) < 120


@given(st.text(max_size=80))
def test_every_role_that_passes_is_made_of_what_iam_takes(role: str) -> None:
    if not problem(role):
        assert re.fullmatch(r"([!-.0-~]+/)*[A-Za-z0-9_+=,.@-]{1,64}", resolve_role_arn(role, BASE)[len(BASE) :])


@given(st.text(max_size=3000))
def test_what_is_shown_is_short_and_printable(text: str) -> None:
    assert shown(text).isprintable()
    assert len(shown(text)) <= 257 * len("\\U0010ffff")


def test_ordinary_text_is_shown_as_it_is() -> None:
    assert shown("team/app") == "team/app"
    assert shown("a\0\x1bb") == "a\\x00\\x1bb"
