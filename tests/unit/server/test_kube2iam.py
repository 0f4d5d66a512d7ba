"""kube2iam's list of allowed roles, as an expression."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiam.server.policy.expressions import decide_namespace
from kiam.server.policy.kube2iam import allowed_roles_expression

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
