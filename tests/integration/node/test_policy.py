"""Which pod may have which role: every line of the contract's policy, and the Events that explain it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.node.conftest import PodMaker
from tests.sandbox.aws import ROLE_BASE_ARN
from tests.sandbox.conventional import ConventionalAgent
from tests.sandbox.node import SERVER_PORT, NodeInABox, Pod
from tests.sandbox.process import wait_until

ARN = ROLE_BASE_ARN


def event_of(box: NodeInABox, pod: Pod, reason: str, count: int = 1) -> dict[str, Any]:
    """The one Event of that reason about a pod, once it counts so many."""

    def find() -> dict[str, Any] | None:
        if count > 1:
            # The agent reports an address's refusals once a second at most, and the server writes repeats at intervals.
            assert pod.credentials("other").status == 403
        found = [event for event in box.events(pod) if event["reason"] == reason]
        assert len(found) < 2
        return found[0] if found and found[0].get("count", 1) >= count else None

    event = wait_until(find, f"an Event {reason} with count {count} about {pod.name}", timeout=40, interval=0.2)
    assert event is not None
    return event


@pytest.mark.parametrize(
    ("permitted", "role", "status"),
    [
        (".*", "app", 200),
        (ARN + "app", "app", 200),
        (ARN + "team/.*", "team/app", 200),
        (ARN + "app", "app2", 403),
        ("app", "app", 403),
        (".*role/app", "app", 200),
        # Conventional kiam compiles ^a|b$, which permits anything that starts with a or ends with b.
        (ARN + "a|" + ARN + "b", "ab", 403),
        (ARN + "a|" + ARN + "b", "b", 200),
        ("arn:aws:iam::999999999999:role/.*", "arn:aws:iam::999999999999:role/other-account", 200),
        (ARN + ".*", "arn:aws:iam::999999999999:role/other-account", 403),
        ("", "app", 403),
        (None, "app", 403),
        ("(", "app", 403),
    ],
)
def test_the_namespaces_expression_decides(
    box: NodeInABox, make_pod: PodMaker, permitted: str | None, role: str, status: int
) -> None:
    namespace = f"policy-{next(_numbers)}"
    box.add_namespace(namespace, permitted)
    assert make_pod(role, namespace).credentials(role).status == status


_numbers = iter(range(1, 1_000_000))


def test_the_expression_is_searched_for_without_strict_mode(box: NodeInABox, make_pod: PodMaker) -> None:
    box.add_namespace("searched", "role/app")
    pod = make_pod("app-7", "searched")
    assert pod.credentials("app-7").status == 403
    box.start_server("--disable-strict-namespace-regexp")
    assert wait_until(lambda: pod.credentials("app-7").status == 200, "credentials without strict mode")


def test_a_change_of_the_namespace_counts_at_once(box: NodeInABox, make_pod: PodMaker) -> None:
    box.add_namespace("changing", None)
    pod = make_pod("app", "changing")
    assert pod.credentials("app").status == 403
    box.add_namespace("changing", ".*")
    assert wait_until(lambda: pod.credentials("app").status == 200, "the permission to arrive")
    box.add_namespace("changing", "nothing")
    assert wait_until(lambda: pod.credentials("app").status == 403, "the permission to be withdrawn")


def test_a_finished_pod_has_no_role_any_more(box: NodeInABox, make_pod: PodMaker) -> None:
    pod = make_pod("app")
    assert pod.role().status == 200
    with ConventionalAgent(box.node, box.pki.agent, f"localhost:{SERVER_PORT}") as agent:
        for phase in ("Succeeded", "Failed"):
            box.announce(pod, "app", phase=phase)
            assert wait_until(lambda: agent.call("GetPodRole", 0.1, ip=pod.address).code != "OK", f"the end by {phase}")
            box.announce(pod, "app")
            assert wait_until(lambda: pod.role().status == 200, "the pod to run again")


def test_another_role_is_explained_on_the_pod_and_counted(box: NodeInABox, make_pod: PodMaker) -> None:
    pod = make_pod("app")
    event = event_of(box, pod, "KiamRoleForbidden", count=2)
    assert event["message"] == "failed assuming role \"other\": requested 'other' but annotated with 'app', forbidden"
    assert (event["type"], event["source"]["component"]) == ("Warning", "kiam.server")
    about = event["involvedObject"]
    assert (about["kind"], about["namespace"], about["name"]) == ("Pod", "open", pod.name)
    assert event["metadata"]["namespace"] == "open"


def test_a_role_that_the_namespace_forbids_is_explained_on_the_pod(box: NodeInABox, make_pod: PodMaker) -> None:
    box.add_namespace("narrow", "arn:.*:role/narrow")
    pod = make_pod("app", "narrow")
    assert pod.credentials("app").status == 403
    assert event_of(box, pod, "KiamRoleForbidden")["message"] == (
        "failed assuming role \"app\": namespace policy expression 'arn:.*:role/narrow' forbids "
        "role 'arn:aws:iam::123456789012:role/app'"
    )


def test_an_error_of_sts_is_explained_on_the_pod(box: NodeInABox, make_pod: PodMaker) -> None:
    box.aws.faults(sts="denied", roles="role/unassumable$")
    pod = make_pod("unassumable")
    assert pod.credentials("unassumable").status == 503
    message = event_of(box, pod, "KiamCredentialError")["message"]
    assert message == (
        "failed retrieving credentials: AccessDenied: User is not authorized to perform: sts:AssumeRole on resource: "
        "arn:aws:iam::123456789012:role/unassumable"
    )
