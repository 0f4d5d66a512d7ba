"""The documented iptables rule, and what a pod meets when the agent goes."""

from __future__ import annotations

import signal

import pytest

from tests.integration.node.conftest import PodMaker
from tests.sandbox.aws import NODE_ROLE
from tests.sandbox.netns import METADATA_IPV6, NODE_IPV4
from tests.sandbox.node import AGENT_PORT, CREDENTIALS, NodeInABox

RULE = (
    "-A PREROUTING -d 169.254.169.254/32 -i cali+ -p tcp -m tcp --dport 80 -j DNAT "
    f"--to-destination {NODE_IPV4}:{AGENT_PORT}"
)


def rules(box: NodeInABox) -> list[str]:
    """The nat tables' rules, of both backends."""
    listed = [
        box.node.run(f"iptables-{backend}", "-t", "nat", "-S", check=False).stdout for backend in ("nft", "legacy")
    ]
    return "\n".join(listed).splitlines()


def test_the_rule_reads_as_documented(box: NodeInABox) -> None:
    assert sum(rule == RULE for rule in rules(box)) == 1


def test_the_host_reaches_the_real_service(box: NodeInABox) -> None:
    assert box.ask_from_host(CREDENTIALS).text == NODE_ROLE


def test_a_pod_gets_nothing_but_the_agent(make_pod: PodMaker) -> None:
    pod = make_pod("app")
    assert pod.role().text == "app"
    with pytest.raises(OSError):
        pod.ask("/", port=81, timeout=0.5)
    assert pod.ask_ipv6(CREDENTIALS).text == "app"
    with pytest.raises(OSError):
        pod.ask("/", host=str(METADATA_IPV6), port=81, timeout=0.5)


def test_without_the_agent_a_pod_is_refused_and_never_gets_the_nodes_role(box: NodeInABox, make_pod: PodMaker) -> None:
    pod = make_pod("app")
    assert pod.role().text == "app"
    for number in (signal.SIGTERM, signal.SIGKILL):
        assert box.agent is not None
        box.agent.stop(number)
        with pytest.raises(ConnectionRefusedError):
            pod.role()
        box.start_agent()
        assert pod.role().text == "app"


def test_the_conventional_flags_take_the_rule_out_with_the_agent_unless_told_otherwise(box: NodeInABox) -> None:
    agent = box.start_agent("--dataplane=none")
    assert box.kiam("dataplane", "remove", "--dataplane=iptables").returncode == 0
    assert not any(rule == RULE for rule in rules(box))
    box.dataplane, usual = "none", box.dataplane
    try:
        agent = box.start_agent("--iptables")
        assert any(rule == RULE for rule in rules(box))
        assert agent.stop() == 0
        assert not any(rule == RULE for rule in rules(box))
        agent = box.start_agent("--iptables", "--no-iptables-remove")
        assert agent.stop() == 0
        assert any(rule == RULE for rule in rules(box))
    finally:
        box.dataplane = usual
