"""kube2iam's list of allowed roles, as an expression."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiam.server.policy.expressions import decide_namespace, expression_problem
from kiam.server.policy.kube2iam import allowed_roles_expression
from kiam.server.settings import RestrictionFormat

BASE = "arn:aws:iam::123456789012:role/"
texts = st.text("ab.+(|\\", max_size=4)


def matches(pattern: str, text: str) -> bool:
    """The reference: only a star is special."""
    if not pattern:
        return not text
    if pattern[0] == "*":
        return any(matches(pattern[1:], text[start:]) for start in range(len(text) + 1))
    return bool(text) and text[0] == pattern[0] and matches(pattern[1:], text[1:])


@given(st.lists(st.text("ab.+(|\\*", min_size=1, max_size=5), max_size=3), texts, st.booleans())
def test_expression_permits_what_the_globs_match(globs: list[str], role: str, strict: bool) -> None:
    expression = allowed_roles_expression(json.dumps(globs), BASE)
    allowed = decide_namespace(BASE + role, expression, strict).allowed
    assert allowed is any(matches(glob.removeprefix("/"), role) for glob in globs)


@pytest.mark.parametrize("annotation", ["", "app", "{}", '"app"', "[1]", "[", '["a",]'])
def test_what_is_no_list_of_roles_is_named_in_one_line(annotation: str) -> None:
    with pytest.raises(ValueError, match=r"^it is not a JSON list of roles, as in \[") as error:
        allowed_roles_expression(annotation, BASE)
    assert "\n" not in str(error.value)


@given(st.lists(st.text("ab.*()[]|\\QE:", max_size=8), max_size=3), texts)
def test_expressions_permit_what_each_of_them_matches_whole(roles: list[str], role: str) -> None:
    """One that is invalid makes the whole list permit nothing, and never more than it says."""
    roles = [one.removeprefix("/") for one in roles]
    try:
        expression = allowed_roles_expression(json.dumps(roles), BASE, RestrictionFormat.REGEXP)
    except ValueError:
        assert any(expression_problem(one) for one in roles)
        return
    decision = decide_namespace(BASE + role, expression, strict=True)
    if any(expression_problem(one) for one in roles):
        assert not decision.allowed
    else:
        assert decision.allowed is any(decide_namespace(role, one or "()", strict=True).allowed for one in roles)


@pytest.mark.parametrize(
    ("roles", "role", "strict", "allowed"),
    [
        (["app-.*"], "app-a", True, True),
        (["/app"], "app", True, True),
        (["app"], "app-admin", True, False),
        # As kube2iam has it.
        (["app"], "app-admin", False, True),
        (["app|web"], "web", True, True),
        (["app|web"], "x/web", False, False),
        ([f"{BASE}team/.*"], "team/a", True, True),
        (["ARN:aws.*"], "app", True, False),
        # It gets the base ARN put before it there too, and so matches nothing.
        ([f"^{BASE}app$"], "app", False, False),
        ([], "app", True, False),
    ],
)
def test_expressions_are_matched_as_permitted_is(roles: list[str], role: str, strict: bool, allowed: bool) -> None:
    expression = allowed_roles_expression(json.dumps(roles), BASE, RestrictionFormat.REGEXP)
    assert decide_namespace(BASE + role, expression, strict).allowed is allowed


@pytest.mark.parametrize("role", ["a)|(?:.*", ")", r"\)(", "a)|(b", "(", "[", "a\\"])
def test_expression_that_would_reach_into_the_next_is_named(role: str) -> None:
    with pytest.raises(ValueError, match="something is opened and not closed, or closed and not opened"):
        allowed_roles_expression(json.dumps([role]), BASE, RestrictionFormat.REGEXP)


@pytest.mark.parametrize("role", ["[)]", r"\)", r"\Q)\E", "[])]", "[[:alpha:])]", "[^)]", "[^])]", "()"])
def test_parenthesis_that_is_only_a_character_is_no_end(role: str) -> None:
    assert expression_problem(role) == ""
    allowed_roles_expression(json.dumps([role]), BASE, RestrictionFormat.REGEXP)
