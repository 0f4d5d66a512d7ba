"""kiam explain's steps: they say what the policy decides, and what they tell to do helps."""

from __future__ import annotations

import shlex

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiam.cli.explain_alone import Inline
from kiam.rpc import kiam_pb2
from kiam.server.kubernetes.objects import Namespace, Pod
from kiam.server.kubernetes.store import NamespaceStore
from kiam.server.policy.explain import explain, no_pod
from kiam.server.policy.judge import Judge
from kiam.server.policy.sessions import Sessions
from kiam.server.policy.steps import Explanation, Outcome, Step
from kiam.server.policy.surroundings import Facts
from kiam.server.settings import PolicySettings, RestrictionFormat, SessionSettings, TagScope

BASE = "arn:aws:iam::123456789012:role/"
POD = Pod("u", "ns", "pod", "n1", "192.0.2.1", ("10.0.0.1",), "app", "", "", True, False, False)

roles = st.one_of(
    st.sampled_from(["", "app", "/app", "team/app", f"{BASE}app", "a.p+p", "..", "x/../app", "a b", "arn:aws:s3:::x"]),
    st.from_regex(r"[a-c./+*]{1,6}", fullmatch=True),
)
expressions = st.sampled_from(
    [
        "",
        ".*",
        f"{BASE}app",
        "app",
        f"{BASE}(team/)?app",
        "(",
        "x|.*app",
        "(?i).*APP",
        r"\Qapp",
        r".*\pL",
        "a)|(b",
        "\\C",
    ]
)
globs = st.sampled_from(["", "[]", '["app"]', '["*"]', '["team/*", "a.p+p"]', "app"])
pods = st.builds(
    lambda role, external_id, mode: msgspec.structs.replace(POD, role=role, external_id=external_id, imds_tokens=mode),
    roles,
    st.sampled_from(["", "ab", "a", "a b", "team:1"]),
    st.sampled_from(["", "required", "nonsense"]),
)
namespaces = st.one_of(
    st.none(),
    st.builds(
        lambda permitted, allowed, default: Namespace(
            "n", "ns", permitted, default_role=default, allowed_roles=allowed
        ),
        st.none() | expressions,
        st.none() | globs,
        roles,
    ),
)
policies = st.builds(PolicySettings, expressions, st.booleans(), st.sampled_from(RestrictionFormat))
facts = st.builds(
    Facts,
    st.none() | st.sampled_from(["", " app\n"]),
    st.sampled_from(["", "2030-01-01T00:00:00Z"]),
    st.none() | st.sampled_from(["", "AccessDenied: no"]),
    st.none() | st.just(()) | st.just(("ns/b",)),
    st.just(()) | st.just(("ns/c",)),
    st.none() | st.booleans(),
)


def judge_of(namespace: Namespace | None, policy: PolicySettings, strict: bool = True) -> Judge:
    store = NamespaceStore()
    if namespace is not None:
        store.put(namespace)
    return Judge(store, Inline(strict), BASE, Sessions(SessionSettings()), policy)


def explained(pod: Pod, namespace: Namespace | None, judge: Judge, known: Facts | None = None) -> Explanation:
    return Explanation("ns", "pod", explain(pod, namespace, judge, known or Facts()))


def decided(pod: Pod, judge: Judge) -> bool:
    with_role = judge.with_role(pod)
    return with_role is not None and judge.decide(with_role, with_role.role).allowed


def of(name: str, steps: tuple[Step, ...]) -> Step:
    (found,) = [step for step in steps if step.name == name]
    return found


@settings(max_examples=2000, deadline=None)
@given(pods, namespaces, policies, st.booleans())
def test_what_is_explained_is_what_is_decided(
    pod: Pod, namespace: Namespace | None, policy: PolicySettings, strict: bool
) -> None:
    judge = judge_of(namespace, policy, strict)
    assert explained(pod, namespace, judge).gets_its_role is decided(pod, judge)


@settings(max_examples=300, deadline=None)
@given(pods, namespaces, policies, facts)
def test_who_knows_more_says_more_and_nothing_else(
    pod: Pod, namespace: Namespace | None, policy: PolicySettings, known: Facts
) -> None:
    judge = judge_of(namespace, policy)
    alone = explain(pod, namespace, judge)
    more = explain(pod, namespace, judge, known)
    without_node = [step for step in alone if step.name != "node"]
    assert [step for step in more if step in without_node] == without_node
    extra = {step.name for step in more if step not in without_node}
    assert extra <= {"written", "sts", "claims", "node"}


@settings(max_examples=1000, deadline=None)
@given(pods, namespaces, policies, st.booleans())
def test_command_against_a_missing_permission_gives_it_and_takes_none(
    pod: Pod, namespace: Namespace | None, policy: PolicySettings, strict: bool
) -> None:
    judge = judge_of(namespace, policy, strict)
    missing = [
        step for step in explain(pod, namespace, judge) if step.name == "permission" and step.outcome is Outcome.FAILED
    ]
    if not missing or namespace is None:
        return
    words = shlex.split(missing[0].fix)
    if words[1] == "edit":
        assert namespace.permitted not in (None, ".*") or policy.default_permitted
        return
    assert words[:5] == ["kubectl", "annotate", "--overwrite", "namespace", "ns"]
    name, _, expression = words[5].partition("=")
    assert name == "iam.amazonaws.com/permitted"
    after = msgspec.structs.replace(namespace, permitted=expression)
    fixed = judge_of(after, policy, strict)
    assert of("permission", explain(pod, after, fixed)).outcome is Outcome.OK
    for role in ("app", "team/app", "appx", "b", "other"):
        other = msgspec.structs.replace(POD, role=role)
        before = decided(other, judge)
        assert decided(other, fixed) >= before
        if policy.kube2iam_annotations and namespace.allowed_roles is not None:
            # It counts again, once permitted is valid.
            continue
        mine = (pod.role or namespace.default_role).removeprefix("/").removeprefix(BASE)
        assert decided(other, fixed) is (before or role == mine)


@pytest.mark.parametrize(
    ("pod", "namespace", "known", "name", "outcome", "text", "fix"),
    [
        ({"role": ""}, {}, {}, "role", "failed", "missing or empty", "annotate --overwrite pod pod --namespace ns"),
        ({"role": ""}, {"default_role": "web"}, {}, "role", "ok", "default-role is 'web'", ""),
        ({}, {}, {"written": " app\n"}, "written", "note", r"' app\n'", ""),
        ({"role": "a b"}, {}, {}, "arn", "failed", "can't be an IAM role", "iam.amazonaws.com/role=ROLE"),
        ({}, {"permitted": "("}, {}, "permission", "failed", "is invalid", f"permitted=^{BASE}app$'"),
        ({}, {"permitted": "x"}, {}, "permission", "failed", "expression 'x' forbids", f"permitted=(?:x)|^{BASE}app$'"),
        ({}, {"permitted": r"\pL"}, {}, "permission", "failed", "forbids", "kubectl edit namespace ns"),
        ({"external_id": "a b"}, {}, {}, "external-id", "failed", "has a character", "external-id=ID"),
        (
            {},
            {},
            {"failure": "AccessDenied: no"},
            "sts",
            "failed",
            "AWS refused AssumeRole: AccessDenied: no",
            "aws iam",
        ),
        ({}, {}, {"failure": "Throttling: x", "issued_until": "T"}, "sts", "note", "until T, but", "aws iam get-role"),
        ({}, {}, {"failure": "", "issued_until": "T"}, "sts", "ok", "until T", ""),
        ({}, {}, {"failure": "", "issued_until": ""}, "sts", "note", "no credentials of it yet", ""),
        ({"addresses": ()}, {}, {}, "address", "undecided", "no address", "kubectl describe pod pod"),
        ({}, {}, {"rivals": ("ns/b",)}, "claims", "failed", "claimed by ns/b", "status.podIP=10.0.0.1"),
        ({}, {}, {"elsewhere": ("ns/b",)}, "claims", "note", "on other nodes", "status.podIP=10.0.0.1"),
        ({"node": ""}, {}, {}, "node", "undecided", "isn't scheduled", "kubectl describe pod pod --namespace ns"),
        ({}, {}, {"stream": True}, "node", "ok", "agent of node n1 has a stream", ""),
        ({}, {}, {"stream": False}, "node", "note", "has no stream from this server", "spec.nodeName=n1"),
        ({"active": False}, {}, {}, "pod", "failed", "has finished", "start it anew"),
        (
            {"host_network": True, "addresses": ()},
            {},
            {},
            "host-network",
            "undecided",
            "has --host-network=redirect only",
            "give --host-network as the agents have it",
        ),
        (
            {"host_network": True, "addresses": ()},
            {},
            {"known_by_uid": False},
            "host-network",
            "failed",
            "has --host-network=redirect only",
            "hostNetwork: false",
        ),
        ({"host_network": True, "addresses": ()}, {}, {"known_by_uid": True}, "host-network", "ok", "by its UID", ""),
        ({"imds_tokens": "on"}, {}, {}, "tokens", "note", "counts as required", ""),
        ({}, {"imds_tokens": "optional"}, {}, "tokens", "note", "'optional' by its namespace's", ""),
    ],
)
def test_each_step_says_what_is_wrong_and_what_to_do(
    pod: dict[str, object],
    namespace: dict[str, object],
    known: dict[str, object],
    name: str,
    outcome: str,
    text: str,
    fix: str,
) -> None:
    its = msgspec.structs.replace(POD, **pod)
    where = msgspec.structs.replace(Namespace("n", "ns", ".*"), **namespace)
    found = explained(its, where, judge_of(where, PolicySettings()), Facts(**known))  # type: ignore[arg-type]
    step = of(name, found.steps)
    assert step.outcome.value == outcome
    assert text in step.text
    assert fix in step.fix
    assert bool(step.fix) is bool(fix)
    assert found.gets_its_role is (outcome in ("ok", "note"))


def test_every_line_is_one_line_whatever_is_annotated() -> None:
    bad = "x\n\x1b[31m" + "y" * 5000
    pod = msgspec.structs.replace(POD, role=bad, external_id=bad, imds_tokens=bad)
    namespace = Namespace("n", "ns", bad, default_role=bad, allowed_roles=bad)
    judge = judge_of(namespace, PolicySettings("", True))
    known = Facts(written=bad, issued_until="", failure=bad, rivals=("ns/b",))
    for step in (*explain(pod, namespace, judge, known), *no_pod(bad, "x")):
        assert step.text.isprintable(), step
        assert len(step.text) < 2500


def test_session_step_names_tags_and_hides_the_external_id() -> None:
    namespace = Namespace("n", "ns", ".*")
    store = NamespaceStore()
    store.put(namespace)
    sessions = Sessions(SessionSettings("{namespace}-{pod}", "c1", TagScope.NAMESPACE, "{pod}"))
    judge = Judge(store, Inline(True), BASE, sessions, PolicySettings())
    text = of("session", explain(msgspec.structs.replace(POD, external_id="hush-hush"), namespace, judge)).text
    assert "session name kiam-ns-pod" in text
    assert "kubernetes-cluster=c1, kubernetes-namespace=ns" in text
    assert "source identity pod" in text
    assert "hush" not in text


def test_wire_keeps_everything_and_an_unknown_outcome_is_never_a_yes() -> None:
    namespace = Namespace("n", "ns", "x")
    explanation = explained(POD, namespace, judge_of(namespace, PolicySettings()), Facts("", "", "no", ("ns/b",)))
    assert Explanation.of(explanation.message()) == explanation
    later = kiam_pb2.Explanation(steps=[kiam_pb2.ExplanationStep(name="new", outcome="splendid")])
    assert not Explanation.of(later).gets_its_role
