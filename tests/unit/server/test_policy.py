"""The policy: which role a pod may have."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiam.server.policy.expressions import decide_namespace, is_cheap
from kiam.server.policy.permitted import Decision, check_request, forbidden_message

BASE = "arn:aws:iam::123456789012:role/"
APP = BASE + "team/app"

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9+=,.@_-]{0,12}(/[A-Za-z0-9][A-Za-z0-9+=,.@_-]{0,12}){0,2}", fullmatch=True)


@pytest.mark.parametrize("requested", ["team/app", "/team/app", APP])
@pytest.mark.parametrize("annotated", ["team/app", "/team/app", APP])
def test_name_path_and_arn_are_one_role(requested: str, annotated: str) -> None:
    assert check_request(requested, annotated, BASE) == APP


@pytest.mark.parametrize(
    ("requested", "annotated"),
    [
        ("other", "app"),
        ("app", ""),
        ("", ""),
        ("//app", "app"),
        ("App", "app"),
        ("app ", "app"),
        ("app/", "app"),
        ("arn:aws:iam::999999999999:role/app", "app"),
        ("arn:aws-cn:iam::123456789012:role/app", "app"),
    ],
)
def test_any_other_role_than_the_annotated_is_forbidden(requested: str, annotated: str) -> None:
    decision = check_request(requested, annotated, BASE)
    assert decision == Decision(False, f"requested '{requested}' but annotated with '{annotated}', forbidden")


@given(names, names)
def test_roles_are_one_only_if_their_arns_are(requested: str, annotated: str) -> None:
    same = requested.removeprefix("/") == annotated.removeprefix("/")
    assert isinstance(check_request(requested, annotated, BASE), str) is same


def test_empty_expression_permits_nothing() -> None:
    assert decide_namespace(APP, "", True) == Decision(
        False, f"namespace policy expression '(empty)' forbids role '{APP}'"
    )


@pytest.mark.parametrize(
    ("expression", "strict", "allowed"),
    [
        (".*", True, True),
        ("team/app", True, False),
        ("team/app", False, True),
        (r"arn:aws:iam::\d+:role/team/.*", True, True),
        (r"arn:aws:iam::\d+:role/team", True, False),
        (r"arn:aws:iam::\d+:role/team", False, True),
        # A top-level alternative escapes the anchors of ^a|b$; here it doesn't.
        ("x|.*app", True, True),
        ("arn:aws:iam|x", True, False),
        ("x|app", True, False),
        ("x|app", False, True),
        # Anchors of one's own do no harm, and multi-line mode widens nothing.
        (f"^{APP}$", True, True),
        (f"(?m)^{APP}$", True, True),
        ("(?m)^app$", True, False),
        ("(?i).*TEAM/APP", True, True),
        (".*TEAM/APP", True, False),
        (r"\Qarn:aws:iam::123456789012:role/team/app\E", True, True),
        (r".*\bapp", True, True),
        ("[[:alpha:]].*", True, True),
        (".*(app|web)", True, True),
        ("(?P<any>.*)", True, True),
        (".{63,64}", True, False),
    ],
)
def test_expressions_match_as_in_go(expression: str, strict: bool, allowed: bool) -> None:
    assert decide_namespace(APP, expression, strict).allowed is allowed


@pytest.mark.parametrize(
    "expression",
    [
        "(",
        "[",
        "a**",
        "*",
        r"\1",
        "(?=.*)",
        "(?!x).*",
        "(?<=x).*",
        "a{1001}",
        r"\C*",
        r"x|.*\C",
        r"\\\C.*",
        "(?>a)",
        "\\",
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_invalid_expression_permits_nothing_and_is_explained(expression: str, strict: bool) -> None:
    decision = decide_namespace(APP, expression, strict)
    assert not decision.allowed
    assert f"expression '{expression}' is invalid: " in decision.explanation
    assert decision.explanation.endswith("; it permits no role")


@pytest.mark.parametrize("expression", [r".*\\Capp|.*", r"\Q\C\E|.*", r"\Q\C|.*\E|.*"])
def test_literal_backslash_c_is_not_the_byte_escape(expression: str) -> None:
    assert decide_namespace(APP, expression, True).allowed


@pytest.mark.parametrize("expression", ["(a*)*b", "(a|a)*b", "(.*)(.*)(.*)(.*)(.*)x", "(a{0,30}){30}b"])
def test_expression_that_hangs_a_backtracking_engine_is_answered(expression: str) -> None:
    started = time.process_time()
    assert not decide_namespace("a" * 2000, expression, True).allowed
    assert time.process_time() - started < 2


def test_expression_too_large_to_compile_is_invalid() -> None:
    decision = decide_namespace(APP, "((a{100}){100}){100}", True)
    assert not decision.allowed


@given(st.text(max_size=30), st.booleans())
def test_no_expression_breaks_the_decision(expression: str, strict: bool) -> None:
    decision = decide_namespace(APP, expression, strict)
    assert decision.allowed or decision.explanation


@given(names, names)
def test_strict_literal_permits_itself_only(name: str, other: str) -> None:
    expression = BASE + r"\Q" + name + r"\E"
    assert decide_namespace(BASE + name, expression, True).allowed
    assert decide_namespace(BASE + other, expression, True).allowed is (name == other)


def test_newline_does_not_end_the_match_early() -> None:
    assert not decide_namespace(APP + "\nx", ".*", True).allowed
    assert not decide_namespace(APP + "\n", f"{APP}$", True).allowed


def test_message_of_the_event_quotes_what_was_requested() -> None:
    decision = check_request("o'ther", "app", BASE)
    assert isinstance(decision, Decision)
    assert forbidden_message("o'ther", decision) == (
        "failed assuming role \"o'ther\": requested 'o'ther' but annotated with 'app', forbidden"
    )
    assert "\n" not in forbidden_message("a\nb", Decision(False, "x"))


@pytest.mark.parametrize(
    "expression",
    ["", ".*", "arn:aws:iam::123456789012:role/(cart|team/billing)", r"arn:aws:iam::\d{12}:role/.*", "x" * 512],
)
def test_ordinary_expressions_are_cheap(expression: str) -> None:
    assert is_cheap(expression)


@pytest.mark.parametrize(
    "expression",
    ["x" * 513, r"\pL", r"\P{Greek}", "(?i)x", "(?si)x", "a{21}", "a{2,3}", "a{2}b{2}", "a{100}", "(a{2}){2}"],
)
def test_what_may_be_costly_is_not_cheap(expression: str) -> None:
    assert not is_cheap(expression)
