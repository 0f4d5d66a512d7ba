"""Which identities are wanted, as pods and namespaces come, change and go."""

from __future__ import annotations

import msgspec
import pytest

from kiam.identity import Identity
from kiam.server.kubernetes.objects import Namespace, Pod
from kiam.server.kubernetes.store import NamespaceStore, PodStore
from kiam.server.policy.demand import Demand
from kiam.server.policy.evaluator import Evaluator
from kiam.server.policy.judge import Judge
from kiam.server.policy.sessions import Sessions
from kiam.server.settings import PolicySettings, SessionSettings

BASE = "arn:aws:iam::123456789012:role/"
POD = Pod("u", "ns", "pod", "n1", "192.0.2.1", ("10.0.0.1",), "app", "", "", True, False, False)
APP = Identity(f"{BASE}app", "kiam-kiam", "")


class Bench:
    def __init__(self) -> None:
        self.pods, self.namespaces = PodStore(), NamespaceStore()
        self.evaluator = Evaluator(True, self.namespaces.touch)
        self.judge = Judge(self.namespaces, self.evaluator, BASE, Sessions(SessionSettings()), PolicySettings())
        self.time = 0.0
        self.log: list[tuple[str, Identity]] = []
        self.demand = Demand(
            self.pods,
            self.namespaces,
            self.judge,
            self,
            lambda pod, decision: self.unusable.append((pod.uid, decision.explanation)),
            lambda: self.time,
        )
        self.settles: list[float] = []
        self.unusable: list[tuple[str, str]] = []

    def want(self, identity: Identity, namespace: str, settle: float) -> None:
        self.log.append(("want", identity))
        self.settles.append(settle)

    def unwant(self, identity: Identity, namespace: str) -> None:
        self.log.append(("unwant", identity))

    def permit(self, expression: str) -> None:
        self.namespaces.put(Namespace("1", "ns", expression))


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    bench.permit(".*")
    return bench


def test_first_pod_wants_and_last_pod_unwants(bench: Bench) -> None:
    bench.pods.put(POD)
    bench.pods.put(msgspec.structs.replace(POD, uid="v"))
    bench.pods.remove("u")
    assert bench.log == [("want", APP)]
    bench.pods.remove("v")
    assert bench.log == [("want", APP), ("unwant", APP)]


@pytest.mark.parametrize(
    ("change", "identity"),
    [
        ({"role": "other"}, Identity(f"{BASE}other", "kiam-kiam", "")),
        ({"session_name": "my/session"}, Identity(f"{BASE}app", "kiam-my-session", "")),
        ({"external_id": "agreed"}, Identity(f"{BASE}app", "kiam-kiam", "agreed")),
        ({"role": ""}, None),
        ({"active": False}, None),
    ],
)
def test_changed_pod_wants_what_it_is_now(bench: Bench, change: dict[str, object], identity: Identity | None) -> None:
    bench.pods.put(POD)
    bench.pods.put(msgspec.structs.replace(POD, **change))
    assert bench.log[-1] == ("unwant", APP)
    assert bench.log[1:-1] == ([("want", identity)] if identity else [])


def test_pod_before_its_namespace_wants_once_the_namespace_permits() -> None:
    bench = Bench()
    bench.pods.put(POD)
    assert not bench.judge.decide(POD, "app").allowed
    assert bench.log == []
    bench.permit("")
    assert bench.log == []
    bench.permit(".*/app")
    assert bench.log == [("want", APP)]
    bench.permit(".*/other")
    assert bench.log[-1] == ("unwant", APP)
    bench.permit(".*")
    bench.namespaces.remove("1")
    assert bench.log[-1] == ("unwant", APP)


def test_spellings_of_one_role_are_one_identity(bench: Bench) -> None:
    for uid, role in (("1", "app"), ("2", "/app"), ("3", f"{BASE}app")):
        bench.pods.put(msgspec.structs.replace(POD, uid=uid, role=role))
    assert bench.log == [("want", APP)]


def test_first_identity_is_fetched_at_once_and_changes_settle_ever_longer(bench: Bench) -> None:
    for number in range(10):
        bench.pods.put(msgspec.structs.replace(POD, role=f"r{number}"))
        bench.time += 0.1
    assert bench.settles == [0, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    bench.time += 61
    bench.pods.put(msgspec.structs.replace(POD, role="calm"))
    assert bench.settles[-1] == 1


def test_change_of_one_pod_does_not_hold_up_another_one(bench: Bench) -> None:
    for role in ("a", "b", "c"):
        bench.pods.put(msgspec.structs.replace(POD, role=role))
    bench.pods.put(msgspec.structs.replace(POD, uid="v", role="d"))
    assert bench.settles[-1] == 0
    bench.pods.remove("u")
    bench.pods.put(POD)
    assert bench.settles[-1] == 0, "forgotten with the pod"


def test_each_namespace_wants_for_itself() -> None:
    bench = Bench()
    bench.namespaces.put(Namespace("1", "ns", ".*"))
    bench.namespaces.put(Namespace("2", "other", ".*"))
    bench.pods.put(POD)
    bench.pods.put(msgspec.structs.replace(POD, uid="v", namespace="other"))
    bench.pods.remove("u")
    assert bench.log == [("want", APP), ("want", APP), ("unwant", APP)]


@pytest.mark.parametrize(
    ("change", "explanation"),
    [
        ({"role": "x/../../admin"}, "'x/../../admin' can't be an IAM role: its path has"),
        ({"external_id": "a b"}, "external id 'a b' has a character that none has"),
    ],
)
def test_annotation_that_cannot_work_never_reaches_sts_and_is_told_once(
    bench: Bench, change: dict[str, str], explanation: str
) -> None:
    pod = msgspec.structs.replace(POD, **change)
    bench.pods.put(pod)
    bench.pods.put(msgspec.structs.replace(pod, deleting=True))
    assert bench.log == []
    ((uid, told),) = bench.unusable
    assert (uid, told[: len(explanation)]) == ("u", explanation)
    bench.pods.put(POD)
    bench.pods.put(pod)
    assert len(bench.unusable) == 2


def test_refusal_by_the_policy_is_not_told_before_the_pod_asks(bench: Bench) -> None:
    bench.permit("nothing")
    bench.pods.put(POD)
    assert bench.unusable == []
