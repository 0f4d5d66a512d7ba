"""Names of sessions by a template: which tell pods apart."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kiam.identity import sts_word
from kiam.server.kubernetes.objects import Pod
from kiam.server.policy.sessions import Sessions, ambiguous_parts
from kiam.server.settings import SessionSettings
from tests.unit.server.test_explain import POD

labels = st.from_regex(r"[ab]([ab-]?[ab])?", fullmatch=True)
subdomains = st.from_regex(r"[ab]([ab.-]?[ab])?", fullmatch=True)
separators = st.sampled_from(["", "-", ".", "_", "/", "-.", "a", "a.b"])
names = st.lists(
    st.sampled_from(["{namespace}", "{serviceaccount}", "{pod}", "{cluster}"]), min_size=1, max_size=3, unique=True
)


@st.composite
def templates(draw: st.DrawFn) -> str:
    return "".join(name + draw(separators) for name in draw(names))


def pod(namespace: str, account: str, name: str) -> Pod:
    return msgspec.structs.replace(POD, name=name, namespace=namespace, service_account=account)


@given(templates(), st.tuples(labels, subdomains, subdomains), st.tuples(labels, subdomains, subdomains))
def test_template_without_ambiguous_parts_names_no_two_pods_alike(
    template: str, one: tuple[str, str, str], other: tuple[str, str, str]
) -> None:
    cluster = "prod eu"
    assume(ambiguous_parts(template, cluster) is None)
    sessions = Sessions(SessionSettings(template, cluster, source_identity=template))
    for of in (sessions.name, sessions.source_identity):
        if of(pod(*one)) == of(pod(*other)):
            for placeholder, mine, yours in zip(("namespace", "serviceaccount", "pod"), one, other, strict=True):
                assert mine == yours or f"{{{placeholder}}}" not in template


@pytest.mark.parametrize(
    ("template", "parts"),
    [
        ("{namespace}-{pod}", ("namespace", "pod")),
        ("{namespace}{pod}", ("namespace", "pod")),
        # STS takes no slash: it becomes a hyphen.
        ("{namespace}/{pod}", ("namespace", "pod")),
        ("{namespace}.{serviceaccount}.{pod}", ("serviceaccount", "pod")),
        ("{cluster}.{namespace}.{pod}", None),
        ("{pod}.{namespace}", None),
        ("{namespace}.{serviceaccount}_{pod}", None),
        ("{pod}-{cluster}-{namespace}", ("pod", "namespace")),
        ("{namespace}.{pod}-{pod}", ("pod", "pod")),
        ("kiam", None),
        ("{pod}", None),
    ],
)
def test_parts_that_cannot_be_told_apart_are_named(template: str, parts: tuple[str, str] | None) -> None:
    assert ambiguous_parts(template, "prod") == parts


def test_forged_name_is_why() -> None:
    sessions = Sessions(SessionSettings("{namespace}-{pod}"))
    assert sessions.name(pod("a", "x", "b-c")) == sessions.name(pod("a-b", "x", "c"))
    assert sts_word("/") == "-"
