"""Whose socket a connection is, by real sockets in real namespaces and cgroups."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from ipaddress import ip_address
from pathlib import Path
from uuid import uuid4

import pytest

from kiam.agent.core.addresses import Addresses
from kiam.agent.core.routes import Route
from kiam.agent.kernel.peers import SocketPeers
from kiam.agent.kernel.pod_cgroups import PodCgroups
from kiam.agent.kernel.rtnetlink import Questions
from tests.sandbox.cgroups import NodeCgroup, cgroup2_mount
from tests.sandbox.netns import NODE_IPV4, NODE_IPV6, NodeNet, PodNet
from tests.sandbox.node import needs_root

if (why := needs_root()) is not None:
    pytest.skip(why, allow_module_level=True)

CLIENT = """
import socket, sys
sock = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10)
print(sock.getsockname()[1], flush=True)
sys.stdin.read()
"""
CONNECTING = """
import socket, sys
sock = socket.socket()
sock.setblocking(False)
sock.connect_ex((sys.argv[1], 18182))
print(sock.getsockname()[1], flush=True)
sys.stdin.read()
"""
PORT = 18181


class RereadKernel:
    """Reads everything anew instead of following changes."""

    def __init__(self) -> None:
        self.questions, self.addresses = Questions(), Addresses()

    def catch_up(self) -> None:
        self.addresses.kernel_is(self.questions.everything(), 0.0, is_first=True)

    def route_to(self, address: str) -> Route | None:
        return self.questions.route_to(address)


class Site:
    """A node with pods, and what asks the node's kernel about them."""

    def __init__(self, cni: str) -> None:
        self.cgroup = NodeCgroup()
        self.net = NodeNet(cni)
        self.net.__enter__()

    def close(self) -> None:
        self.net.close()
        self.cgroup.close()

    @contextmanager
    def peers(self) -> Iterator[SocketPeers]:
        """Its sockets are the node's."""

        def make() -> tuple[SocketPeers, RereadKernel]:
            kernel = RereadKernel()
            return SocketPeers(kernel.addresses, kernel, cgroup2_mount()), kernel

        peers, kernel = self.net.node.call(make)
        with closing(peers), closing(kernel.questions):
            yield peers

    def listener(self, address: str) -> socket.socket:
        def listen() -> socket.socket:
            return socket.create_server((address, PORT), family=socket.AF_INET6 if ":" in address else socket.AF_INET)

        return self.net.node.call(listen)

    @contextmanager
    def connection(
        self, pod: PodNet, cgroup: Path, to: str = str(NODE_IPV4), port: int = PORT
    ) -> Iterator[tuple[tuple[str, int], tuple[str, int]]]:
        """Connect from a pod's namespace and a cgroup; both ends as the agent sees them."""
        with self.listener(to if port == PORT else str(NODE_IPV4)) as listener:
            process = pod.netns.popen(
                [sys.executable, "-c", CLIENT, to, str(port)],
                cgroup=cgroup,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            try:
                accepted, peer = listener.accept()
                with accepted:
                    yield (str(ip_address(peer[0])), peer[1]), accepted.getsockname()[:2]
            finally:
                process.kill()
                process.communicate()


@pytest.fixture(scope="module", params=["calico", "bridge"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    site = Site(request.param)
    yield site
    site.close()


def test_socket_of_a_pod_is_known_by_its_cgroup_and_nested_cgroups_are_the_pods(site: Site) -> None:
    uid, forged = str(uuid4()), str(uuid4())
    pod = site.net.add_pod(f"p{uid[:8]}")
    own = site.cgroup.pod(uid)
    # A container that may make cgroups names them as kubelet would name another pod's.
    nested = own / "container" / "kubepods" / "burstable" / f"pod{forged}"
    nested.mkdir(parents=True)
    for cgroup in (own, nested):
        with site.connection(pod, cgroup) as ends, site.peers() as peers:
            assert peers.uid_of(*ends) == uid
            # Another connection's ends are nobody's.
            assert peers.uid_of((ends[0][0], 1), ends[1]) is None
    with site.connection(pod, own, to=str(NODE_IPV6)) as ends, site.peers() as peers:
        assert peers.uid_of(*ends) == uid


def test_socket_outside_kubelets_cgroups_is_no_pods(site: Site) -> None:
    pod = site.net.add_pod("elsewhere")
    beside = site.cgroup.system / "kubepods-burstable.slice" / f"pod{uuid4()}"
    beside.mkdir(parents=True)
    with site.connection(pod, beside) as ends, site.peers() as peers:
        assert peers.uid_of(*ends) is None


def test_redirected_connection_is_found_under_the_address_the_pod_connected_to(site: Site) -> None:
    uid = str(uuid4())
    pod = site.net.add_pod(f"r{uid[:8]}")
    rule = f"-d 169.254.169.254/32 -p tcp --dport 80 -j DNAT --to-destination {NODE_IPV4}:{PORT}"
    site.net.node.run("iptables", "-t", "nat", "-A", "PREROUTING", *rule.split())
    try:
        with site.connection(pod, site.cgroup.pod(uid), to="169.254.169.254", port=80) as ends, site.peers() as peers:
            assert peers.uid_of(*ends) == uid
    finally:
        site.net.node.run("iptables", "-t", "nat", "-D", "PREROUTING", *rule.split())


def test_host_network_pod_is_found_in_the_nodes_own_namespace(site: Site) -> None:
    uid = str(uuid4())
    with site.listener(str(NODE_IPV4)) as listener:
        process = site.net.node.popen(
            [sys.executable, "-c", CLIENT, str(NODE_IPV4), str(PORT)],
            cgroup=site.cgroup.pod(uid, ""),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            accepted, peer = listener.accept()
            with accepted, site.peers() as peers:
                assert peers.uid_of(peer, accepted.getsockname()) == uid
        finally:
            process.kill()
            process.communicate()


def test_socket_that_is_not_connected_yet_is_nobodys_peer(site: Site) -> None:
    uid = str(uuid4())
    pod = site.net.add_pod(f"s{uid[:8]}")
    # Packets to the port are dropped, so that it stays in SYN_SENT.
    rule = f"-d {NODE_IPV4} -p tcp --dport 18182 -j DROP"
    site.net.node.run("iptables", "-I", "INPUT", *rule.split())
    process = pod.netns.popen(
        [sys.executable, "-c", CONNECTING, str(NODE_IPV4)],
        cgroup=site.cgroup.pod(uid),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        with site.peers() as peers:
            assert peers.uid_of((str(pod.address), port), (str(NODE_IPV4), 18182)) is None
    finally:
        process.kill()
        process.communicate()
        site.net.node.run("iptables", "-D", "INPUT", *rule.split())


def test_namespace_of_a_pod_that_is_gone_is_let_go(site: Site) -> None:
    uid = str(uuid4())
    pod = site.net.add_pod(f"g{uid[:8]}")
    with site.peers() as peers:
        with site.connection(pod, site.cgroup.pod(uid)) as ends:
            assert peers.uid_of(*ends) == uid
        assert len(peers._tables) == 1
        peers.links_gone(lambda link: False)
        assert not peers._tables


def test_identifiers_of_cgroups_that_are_gone_are_nobodys(site: Site) -> None:
    gone = site.cgroup.pod(str(uuid4()))
    number = gone.stat().st_ino
    gone.rmdir()
    with closing(PodCgroups(cgroup2_mount())) as cgroups:
        assert cgroups.uid_of(number) is None
