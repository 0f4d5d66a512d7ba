"""How the server asks STS: once, ahead of need, and not in anger."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tests.integration.node.conftest import PodMaker
from tests.sandbox.node import NodeInABox, Pod
from tests.sandbox.process import wait_until


def ask_together(pods: list[Pod], role: str) -> list[int]:
    """Statuses of credentials asked for by all pods at the same time."""
    with ThreadPoolExecutor(len(pods)) as pool:
        return list(pool.map(lambda pod: pod.credentials(role).status, pods))


def test_pods_that_ask_together_share_one_call(box: NodeInABox, make_pod: PodMaker) -> None:
    box.aws.faults(sts_delay=0.3, roles="role/shared$")
    pods = [make_pod("shared") for _ in range(4)]
    assert ask_together(pods * 4, "shared") == [200] * 16
    assert box.aws.count("shared") == 1


def test_credentials_are_fetched_before_the_pod_asks(box: NodeInABox, make_pod: PodMaker) -> None:
    make_pod("prefetched")
    assert wait_until(lambda: box.aws.count("prefetched") == 1, "the prefetch")


def test_a_refusal_is_asked_for_once_and_told_to_every_pod(box: NodeInABox, make_pod: PodMaker) -> None:
    """Conventional kiam made 16 AssumeRole calls, and every pod waited 4 s."""
    box.aws.faults(sts="denied", roles="role/denied$")
    pods = [make_pod("denied") for _ in range(4)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda pod: pod.credentials("denied"), pods * 4))
    # What STS said, which a pod that had been made to wait until its time is over would not be told.
    assert {(answer.status, "AccessDenied" in answer.text) for answer in answers} == {(503, True)}
    assert all(answer.headers["retry-after"] for answer in answers)
    assert box.aws.count("denied") == 1


def test_throttling_is_waited_out_once_for_all_pods(box: NodeInABox, make_pod: PodMaker) -> None:
    box.aws.faults(sts="throttled", roles="role/throttled$")
    pods = [make_pod("throttled") for _ in range(4)]
    assert set(ask_together(pods * 4, "throttled")) == {503}
    assert box.aws.count("throttled") <= 2
    box.aws.faults()
    assert wait_until(lambda: pods[0].credentials("throttled").status == 200, "the end of the back-off", timeout=60)


def test_slow_sts_holds_up_only_those_who_wait_for_it(box: NodeInABox, make_pod: PodMaker) -> None:
    quick, slow = make_pod("quick"), make_pod(known=False)
    assert quick.credentials("quick").status == 200
    box.aws.faults(sts_delay=2, roles="role/slow$")
    box.announce(slow, "slow")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(slow.credentials, "slow")
        answered = 0
        while not waiting.done():
            assert quick.credentials("quick").status == 200
            answered += 1
        assert waiting.result().status == 200
    assert answered > 10


def test_credentials_are_renewed_before_they_expire_though_no_pod_asks(box: NodeInABox, make_pod: PodMaker) -> None:
    """Conventional kiam renewed only when a pod asked after they had left the cache, and that pod waited."""
    box.start_server("--session-refresh=14m57s")
    pod = make_pod("renewed")
    first = pod.credentials("renewed").json()["AccessKeyId"]
    asked = box.aws.count("renewed")
    assert wait_until(lambda: box.aws.count("renewed") > asked, "the renewal")
    second = wait_until(lambda: (key := pod.credentials("renewed").json()["AccessKeyId"]) != first and key, "new keys")
    assert second != first


def test_credentials_of_roles_without_pods_are_not_renewed(box: NodeInABox, make_pod: PodMaker) -> None:
    box.start_server("--session-refresh=14m58s")
    pod, other = make_pod("abandoned"), make_pod("kept")
    assert pod.credentials("abandoned").status == 200
    box.remove_pod(pod)
    asked = box.aws.count("kept")
    assert wait_until(lambda: box.aws.count("kept") >= asked + 2, "two renewals of the other role")
    box.remove_pod(other)
    assert box.aws.count("abandoned") <= 2


def test_the_region_chooses_the_signature_and_assume_role_arn_the_identity(box: NodeInABox, make_pod: PodMaker) -> None:
    box.aws.forget_calls()
    box.start_server("--region=eu-west-1", "--assume-role-arn=arn:aws:iam::123456789012:role/kiam-server")
    assert make_pod("regional").credentials("regional").status == 200
    calls = {call.role_arn.rpartition("/")[2]: call for call in box.aws.calls()}
    assert calls["regional"].region == "eu-west-1"
    assert "kiam-server" in calls


def test_the_base_arn_is_found_through_instance_metadata(box: NodeInABox, make_pod: PodMaker) -> None:
    box.aws.faults(require_token=True, instance_profile="arn:aws-cn:iam::111122223333:instance-profile/a/b")
    box.aws.forget_calls()
    box.start_server("--role-base-arn-autodetect")
    assert make_pod("found").credentials("found").status == 200
    assert box.aws.count("arn:aws-cn:iam::111122223333:role/found") == 1
