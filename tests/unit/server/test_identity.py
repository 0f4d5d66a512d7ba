"""Session names and role ARNs."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiam.arns import resolve_role_arn
from kiam.identity import Identity, external_id_problem, hashed_name, session_name


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


names = st.text(max_size=100)
external_ids = st.from_regex(r"([A-Za-z0-9_+=,.@:/-]{2,20})?", fullmatch=True)
tags = st.lists(st.tuples(st.sampled_from("kl"), st.sampled_from("vw")), max_size=3).map(tuple)
identities = st.builds(
    Identity,
    st.sampled_from(["arn:aws:iam::1:role/a", "arn:aws:iam::1:role/b"]),
    st.sampled_from(["kiam-a", "kiam-b"]),
    external_ids,
    tags,
    st.sampled_from(["", "me", "you"]),
)


@given(names)
def test_hashed_name_is_one_that_sts_takes(name: str) -> None:
    assert re.fullmatch(r"[\w+=,.@-]{0,64}", hashed_name(name), re.ASCII)


@given(st.text("ab", min_size=60, max_size=90), st.text("ab", min_size=60, max_size=90))
def test_long_names_that_differ_stay_different(one: str, other: str) -> None:
    assert (hashed_name(one) == hashed_name(other)) is (one == other)


@given(identities)
def test_identity_survives_the_wire(identity: Identity) -> None:
    assert Identity.of(identity.message()) == identity


@given(identities, identities)
def test_agents_that_know_three_fields_never_take_one_identity_for_another(one: Identity, other: Identity) -> None:
    def key(identity: Identity) -> tuple[str, str, str]:
        message = identity.message()
        return message.role_arn, message.session_name, message.external_id

    assert (key(one) == key(other)) is (one == other)


@given(identities)
def test_key_of_a_tagged_identity_is_no_external_id(identity: Identity) -> None:
    if identity.tags or identity.source_identity:
        assert external_id_problem(identity.message().external_id)
