"""--pod-uid: the kernel's word on whose socket a connection is, against addresses and ahead of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.sandbox.netns import NODE_IPV4
from tests.sandbox.node import CREDENTIALS, NodeInABox, fetch, needs_root
from tests.sandbox.process import wait_until


@pytest.fixture(scope="module", params=["iptables", "nftables", "ebpf"])
def box(request: pytest.FixtureRequest) -> Iterator[NodeInABox]:
    why = needs_root()
    if why is not None:
        pytest.skip(why)
    with NodeInABox(request.param, needs_cgroups=True) as box:
        box.add_namespace("default")
        box.start_server()
        box.start_agent("--pod-uid=check", "--node-name=node-1")
        yield box


def counter(box: NodeInABox, name: str) -> float:
    return next(float(line.split()[1]) for line in box.metrics("agent").splitlines() if line.startswith(f"{name} "))


def test_scheduled_pod_is_answered_before_its_address_is_reported(box: NodeInABox) -> None:
    pod = box.add_pod("early", known=False)
    box.schedule(pod, "early")
    # Not because the address came to be known while the request waited: nobody says yet that it is the pod's.
    assert pod.role().text == "early"
    assert pod.credentials("early").status == 200
    assert pod.credentials("other").status == 403
    box.announce(pod, "early")
    assert wait_until(lambda: pod.credentials("early").status == 200, "the address to count")


def test_pod_at_another_ones_address_is_refused_and_called_an_attack(box: NodeInABox) -> None:
    victim, thief = box.add_pod("victim", "victim"), box.add_pod("thief", "thief")
    assert victim.credentials("victim").status == 200
    assert thief.credentials("thief").status == 200
    before = counter(box, "kiam_agent_impostors_total")
    for path in (CREDENTIALS, CREDENTIALS + "victim", CREDENTIALS + "thief"):
        assert thief.ask_as(victim, path).status == 403
    assert counter(box, "kiam_agent_impostors_total") >= before + 3
    assert box.agent is not None
    assert thief.uid in next(line for line in box.agent.output().splitlines() if "attack" in line)
    assert not box.events(victim)
    assert victim.credentials("victim").status == 200


def test_required_word_refuses_who_has_no_pods_socket(box: NodeInABox) -> None:
    pod = box.add_pod("plain", "plain")
    box.start_agent("--pod-uid=require", "--node-name=node-1")
    try:
        assert pod.credentials("plain").status == 200
        outside = pod.net.netns.call(
            fetch, str(NODE_IPV4), 8181, CREDENTIALS + "plain", "GET", None, None, 8.0, cgroup=box.cgroup.system
        )
        assert outside.status == 503
    finally:
        box.start_agent("--pod-uid=check", "--node-name=node-1")
