"""--host-network=redirect with --pod-uid: a pod on the node's own network gets its own role, by its UID."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from uuid import uuid4

import pytest

from tests.sandbox.host_pods import HostPod
from tests.sandbox.netns import NODE_IPV4
from tests.sandbox.node import AGENT_PORT, CREDENTIALS, NodeInABox, needs_root
from tests.sandbox.process import wait_until

FLAGS = ("--host-network=redirect", "--node-name=node-1")


@pytest.fixture(scope="module", params=["iptables", "nftables", "ebpf"])
def box(request: pytest.FixtureRequest) -> Iterator[NodeInABox]:
    why = needs_root()
    if why is not None:
        pytest.skip(why)
    with NodeInABox(request.param) as box:
        box.add_namespace("default")
        box.start_server()
        # Before the agent starts, which looks for kubelet's cgroups.
        box.cgroup.pod(str(uuid4()))
        box.start_agent("--pod-uid=check", *FLAGS)
        yield box


def test_each_gets_its_own_role_and_only_that(box: NodeInABox) -> None:
    one, two = HostPod(box, "one"), HostPod(box, "two")
    for pod, own, other in ((one, "one", "two"), (two, "two", "one")):
        assert wait_until(lambda: pod.ask(CREDENTIALS).status == 200, "the server to tell of the pod")  # noqa: B023
        assert pod.ask(CREDENTIALS).text == own
        assert pod.ask(CREDENTIALS + own).status == 200
        assert pod.ask(CREDENTIALS + other).status == 403
    keys = [pod.ask(CREDENTIALS + role).json()["AccessKeyId"] for pod, role in ((one, "one"), (two, "two"))]
    assert len(set(keys)) == 2
    one.annotate(None)
    assert wait_until(lambda: one.ask(CREDENTIALS + "one").status != 200, "the annotation's end to count")
    assert two.ask(CREDENTIALS + "two").status == 200


def test_without_an_annotation_it_is_refused_whatever_others_there_have(box: NodeInABox) -> None:
    annotated, plain = HostPod(box, "annotated"), HostPod(box, None)
    assert wait_until(lambda: annotated.ask(CREDENTIALS).status == 200, "the server to tell of the pod")
    for path in (CREDENTIALS, CREDENTIALS + "annotated"):
        assert plain.ask(path).status in (404, 503), path


def test_the_nodes_own_software_and_the_agent_keep_the_nodes(box: NodeInABox) -> None:
    HostPod(box, "unrelated")
    # The agent runs in the same cgroup as this, and its own requests for what it passes on go the same way.
    assert box.ask_from_host("/latest/meta-data/instance-id").text.startswith("i-")
    assert box.ask_from_host(CREDENTIALS).text != "unrelated"
    health = box.ask_agent("/health")
    assert health.status == 200
    assert health.text.startswith("i-")


CONNECTED = """
import socket, sys
sock = socket.create_connection(("169.254.169.254", 80), timeout=10)
print(sock.getsockname()[1], flush=True)
sys.stdin.read()
"""
IP_BIND_ADDRESS_NO_PORT, IP_LOCAL_PORT_RANGE = 24, 51


def ask_from_port(port: int, to: str) -> bytes:
    """Ask the agent directly, from a port that another process of this network uses for another connection."""
    with socket.socket() as sock:
        sock.settimeout(10)
        sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        with contextlib.suppress(OSError):
            # Linux 6.3. Before, it takes many connections until the kernel gives out the port, and this tries one.
            sock.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, struct.pack("I", port | port << 16))
        sock.bind((str(NODE_IPV4), 0))
        sock.connect((to, AGENT_PORT))
        sock.sendall(f"GET {CREDENTIALS} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n".encode())
        return sock.makefile("rb").read()


def test_who_shares_a_connected_pods_port_is_not_taken_for_that_pod(box: NodeInABox) -> None:
    victim, thief = HostPod(box, "victim"), HostPod(box, "thief")
    for pod in (victim, thief):
        assert wait_until(lambda: pod.ask(CREDENTIALS).status == 200, "the server to tell of the pod")  # noqa: B023
    connected = box.node.popen(
        [sys.executable, "-c", CONNECTED],
        cgroup=victim.cgroup,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert connected.stdout is not None
        port = int(connected.stdout.readline())
        answer = box.node.call(ask_from_port, port, "127.0.0.1", cgroup=thief.cgroup)
        assert answer.endswith(b"\r\n\r\nthief"), answer
    finally:
        connected.kill()
        connected.communicate()


def test_without_the_kernels_word_they_stay_refused(box: NodeInABox) -> None:
    box.start_agent(*FLAGS)
    try:
        assert HostPod(box, "unknown").ask(CREDENTIALS).status in (404, 503)
    finally:
        box.start_agent("--pod-uid=check", *FLAGS)
