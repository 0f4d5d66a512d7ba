"""The server is away: known pods are answered from memory, and whoever may be a stranger is not.

Real namespaces and packets, wired as veth-route CNIs (Calico, AWS VPC CNI) and bridge CNIs (kubenet, kube-router) do.
One outage serves all these tests; strangers wait for the whole budget of a request, so they ask at the same time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from tests.sandbox.netns import NODE_IPV6
from tests.sandbox.node import CREDENTIALS, Answer, NodeInABox, Pod
from tests.sandbox.process import wait_until


@dataclass(slots=True)
class Outage:
    """A node whose server is killed after it has told the agent of its pods."""

    box: NodeInABox
    pods: dict[str, Pod]

    def credentials(self, *questions: tuple[str, str]) -> Sequence[int]:
        """Ask for (pod, role)s at the same time; the status of each."""
        with ThreadPoolExecutor(len(questions)) as pool:
            return list(pool.map(lambda question: ask(self.pods[question[0]], question[1]).status, questions))

    def replace(self, old: str, new: str) -> None:
        """The pod's sandbox goes as CNI DEL has it, and its address comes to another one."""
        address = self.pods[old].net.address
        unplug(self.box, old)
        self.pods[new] = Pod(self.box, new, "default", self.box.net.add_pod(new, address))


def ask(pod: Pod, role: str = "") -> Answer:
    """Ask the agent directly: which dataplane brings pods there is another matter."""
    return pod.ask(CREDENTIALS + role, host="192.0.2.10", port=8181, timeout=15)


def unplug(box: NodeInABox, name: str) -> None:
    """End a pod's network."""
    # Deleting the namespace alone would leave it to the kernel when the interface goes; CNI plugins delete that first.
    box.node.ip(f"link delete {box.net.pods[name].interface}")
    box.net.remove_pod(name)


def gauge(box: NodeInABox, name: str) -> float:
    """One of the agent's metrics."""
    for line in box.metrics("agent").splitlines():
        if line.startswith(name + " "):
            return float(line.split()[1])
    raise LookupError(name)


def known_pod(box: NodeInABox, name: str, role: str) -> Pod:
    """A pod that the agent has been told of, with its credentials."""
    pod = box.add_pod(name, role)
    assert ask(pod, role).status == 200
    return pod


@pytest.fixture(scope="module", params=["calico", "bridge"])
def outage(request: pytest.FixtureRequest) -> Iterator[Outage]:
    with NodeInABox(dataplane="none", cni=request.param) as box:
        box.add_namespace("default")
        box.start_server()
        box.start_agent()
        names = ("known", "victim", "one", "two", "mac")
        pods = {name: known_pod(box, name, f"role-of-{name}") for name in names}

        dropped = gauge(box, "kiam_agent_bindings_dropped_total")
        moved = known_pod(box, "moved", "role-of-moved")
        unplug(box, "moved")
        wait_until(lambda: gauge(box, "kiam_agent_bindings_dropped_total") > dropped, "the way to be seen as changed")
        pods["moved"] = Pod(box, "moved", "default", box.net.add_pod("moved", moved.net.address))

        # The server still says that the address is the pod's: the agent asks it anew, and believes it again.
        assert ask(pods["moved"], "role-of-moved").status == 200

        assert box.server is not None
        box.server.kill()
        wait_until(lambda: gauge(box, "kiam_agent_alone_seconds") > 0, "the agent to be alone")
        yield Outage(box, pods)


def test_known_pods_are_answered_and_strangers_are_not(outage: Outage) -> None:
    # One test, as an outage takes long to make and pytest-xdist would make one for each of several.
    known_pods_are_answered_from_memory(outage)
    health_says_that_the_agent_is_on_its_own(outage)
    strangers_get_nothing(outage)
    the_server_puts_everything_right_when_it_is_back(outage)


def known_pods_are_answered_from_memory(outage: Outage) -> None:
    assert outage.credentials(*[("known", "role-of-known")] * 20) == [200] * 20
    assert ask(outage.pods["known"]).body == b"role-of-known"
    # Its IPv6 address is bound as well.
    over_ipv6 = outage.pods["known"].ask(CREDENTIALS + "role-of-known", host=str(NODE_IPV6), port=8181, timeout=15)
    assert over_ipv6.status == 200
    assert outage.credentials(("known", "role-of-two")) == [403]
    assert gauge(outage.box, "kiam_agent_outage_answers_total") >= 20


def health_says_that_the_agent_is_on_its_own(outage: Outage) -> None:
    answer = outage.pods["known"].ask("/health", host="192.0.2.10", port=8181)
    assert answer.status == 200
    assert answer.headers["kiam-server"].startswith("away for ")
    assert outage.pods["known"].ask("/health?deep=1", host="192.0.2.10", port=8181, timeout=15).status == 500


def strangers_get_nothing(outage: Outage) -> None:
    outage.pods["stranger"] = outage.box.add_pod("stranger", "role-of-known")
    outage.replace("victim", "thief")
    # The CNI bridge plugin makes a pod's MAC from its address, so a MAC alone tells nothing apart.
    mac = outage.pods["mac"].net.netns.run("cat", "/sys/class/net/eth0/address").stdout.strip()
    outage.replace("mac", "same-mac")
    outage.pods["same-mac"].net.netns.ip(f"link set eth0 address {mac}")
    # Two pods swap their addresses.
    one, two = outage.pods["one"].net.address, outage.pods["two"].net.address
    unplug(outage.box, "one")
    unplug(outage.box, "two")
    for name, address in (("one", two), ("two", one)):
        outage.pods[name] = Pod(outage.box, name, "default", outage.box.net.add_pod(name, address))

    statuses = outage.credentials(
        ("stranger", "role-of-known"),
        ("thief", "role-of-victim"),
        ("thief", ""),
        ("same-mac", "role-of-mac"),
        ("one", "role-of-one"),
        ("one", "role-of-two"),
        ("two", "role-of-one"),
        ("two", "role-of-two"),
        ("known", "role-of-known"),
    )
    assert statuses == [503] * 8 + [200]


def the_server_puts_everything_right_when_it_is_back(outage: Outage) -> None:
    box = outage.box
    for name in ("victim", "mac"):
        if name in box.net.pods:
            outage.replace(name, f"other-{name}")
        box.api.delete("pods", name, "default")
    outage.pods["late"] = box.add_pod("late", "role-of-late")
    box.start_server()
    wait_until(lambda: gauge(box, "kiam_agent_alone_seconds") == 0, "the agent to have its stream back")
    assert outage.credentials(("late", "role-of-late"), ("known", "role-of-known")) == [200, 200]
