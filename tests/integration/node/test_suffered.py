"""What users of conventional kiam suffered, by the number it has in the contract. Others are where their subject is:
3 to 5 with the dataplanes, 6 and 10 in test_sts, 7 in test_faults."""

from __future__ import annotations

from tests.integration.node.conftest import PodMaker
from tests.sandbox.aws import ROLE_BASE_ARN
from tests.sandbox.node import NodeInABox
from tests.sandbox.process import wait_until


def test_1_a_pod_whose_namespace_is_unknown_waits_and_the_server_lives(box: NodeInABox, make_pod: PodMaker) -> None:
    pod = make_pod("app", namespace="never-created")
    assert pod.credentials("app").status == 503
    assert box.server is not None
    assert box.server.returncode is None
    box.add_namespace("never-created")
    assert wait_until(lambda: pod.credentials("app").status == 200, "the namespace to count")
    box.api.delete("namespaces", "never-created")
    assert wait_until(lambda: pod.credentials("app").status == 503, "the namespace's end to count")
    assert make_pod("other").credentials("other").status == 200


def test_8_two_active_pods_with_one_address_get_nothing_and_the_one_left_is_served_at_once(
    box: NodeInABox, make_pod: PodMaker
) -> None:
    """Neither may have what may be the other's; conventional kiam went on refusing for a minute after."""
    old, new = make_pod("old"), make_pod(known=False)
    assert old.role().text == "old"
    box.announce(new, "new", address=old.address)
    assert wait_until(lambda: old.role().status != 200 or old.role().text == "new", "the second pod to count")
    assert old.credentials("old").status in (403, 503)
    box.api.delete("pods", new.name, new.namespace)
    assert wait_until(lambda: old.role().status == 200, "the first pod to be alone again")
    assert old.role().text == "old"


def test_8_an_address_that_passes_to_another_pod_is_answered_for_that_pod(box: NodeInABox, make_pod: PodMaker) -> None:
    first, second = make_pod("first"), make_pod(known=False)
    assert first.credentials("first").status == 200
    box.api.delete("pods", first.name, first.namespace)
    box.announce(second, "second", address=first.address)
    assert wait_until(lambda: first.role().text == "second", "the address's new pod to count")
    assert first.credentials("first").status == 403
    assert first.credentials("second").status == 200


def test_9_the_server_starts_with_its_own_identity(box: NodeInABox, make_pod: PodMaker) -> None:
    assert not [flag for flag in box.server_flags if "assume-role" in flag]
    assert make_pod("plain").credentials("plain").status == 200
    assert box.aws.count(ROLE_BASE_ARN + "plain") == 1
