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
from kiam.agent.http.listener import original_destination
from kiam.agent.kernel.peers import SocketPeers
from kiam.agent.kernel.pod_cgroups import PodCgroups
from kiam.agent.kernel.rtnetlink import Questions
from kiam.agent.kernel.sock_diag import End
from tests.sandbox.cgroups import NodeCgroup, cgroup2_mount
from tests.sandbox.netns import METADATA_IPV4, METADATA_IPV6, NODE_IPV4, NODE_IPV6, NetNs, NodeNet
from tests.sandbox.node import needs_root
from tests.sandbox.process import wait_until

if (why := needs_root()) is not None:
    pytest.skip(why, allow_module_level=True)

CLIENT = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
while True:
    sock = socket.socket(family)
    sock.settimeout(10)
    # A port can be taken twice, for connections to different places.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("", int(sys.argv[3])))
    try:
        sock.connect((sys.argv[1], int(sys.argv[2])))
        break
    except ConnectionRefusedError:
        # What is left of an older connection between these ports; it is gone with that.
        sock.close()
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
METADATA = str(METADATA_IPV4)


def listen(address: str, port: int) -> socket.socket:
    return socket.create_server((address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET)


def has_said_goodbye(port: int, remote_port: int) -> bool:
    """Whether our end of a connection is closed and the other end's kernel knows it (FIN_WAIT2)."""
    rows = [line.split()[1:4] for line in Path("/proc/thread-self/net/tcp").read_text().splitlines()[1:]]
    return any(
        (local[-4:], remote[-4:], state) == (f"{port:04X}", f"{remote_port:04X}", "05") for local, remote, state in rows
    )


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
        return self.net.node.call(listen, address, PORT)

    @contextmanager
    def connection(
        self, netns: NetNs, cgroup: Path, to: str = str(NODE_IPV4), port: int = PORT, source_port: int = 0
    ) -> Iterator[tuple[End, End, End | None]]:
        """Connect from a namespace and a cgroup; both ends as the agent sees them, and conntrack's word."""
        with (
            self.listener(str(NODE_IPV6 if ":" in to else NODE_IPV4)) as listener,
            client(netns, cgroup, to, port, source_port),
        ):
            accepted, peer = listener.accept()
            with accepted:
                yield (
                    (str(ip_address(peer[0])), peer[1]),
                    accepted.getsockname()[:2],
                    original_destination(accepted, to),
                )


@contextmanager
def client(netns: NetNs, cgroup: Path, to: str, port: int, source_port: int = 0) -> Iterator[int]:
    """A connection, from a process in a namespace and a cgroup; its local port."""
    process = netns.popen(
        [sys.executable, "-c", CLIENT, to, str(port), str(source_port)],
        cgroup=cgroup,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


@contextmanager
def redirected(node: NetNs, chain: str, metadata: str = METADATA) -> Iterator[None]:
    """The node leads connections to instance metadata to the agent's port."""
    command, to = ("ip6tables", f"[{NODE_IPV6}]") if ":" in metadata else ("iptables", f"{NODE_IPV4}")
    rule = f"-d {metadata} -p tcp --dport 80 -j DNAT --to-destination {to}:{PORT}".split()
    node.run(command, "-t", "nat", "-A", chain, *rule)
    try:
        yield
    finally:
        node.run(command, "-t", "nat", "-D", chain, *rule)


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
        with site.connection(pod.netns, cgroup) as ends, site.peers() as peers:
            assert peers.uid_of(*ends) == uid
            # Another connection's ends are nobody's.
            assert peers.uid_of((ends[0][0], 1), *ends[1:]) is None
    with site.connection(pod.netns, own, to=str(NODE_IPV6)) as ends, site.peers() as peers:
        assert peers.uid_of(*ends) == uid


def test_socket_outside_kubelets_cgroups_is_no_pods(site: Site) -> None:
    pod = site.net.add_pod("elsewhere")
    beside = site.cgroup.system / "kubepods-burstable.slice" / f"pod{uuid4()}"
    beside.mkdir(parents=True)
    with site.connection(pod.netns, beside) as ends, site.peers() as peers:
        assert peers.uid_of(*ends) is None


@pytest.mark.parametrize("metadata", [METADATA, str(METADATA_IPV6)])
def test_redirected_connection_is_found_under_the_address_the_pod_connected_to(site: Site, metadata: str) -> None:
    uid = str(uuid4())
    pod = site.net.add_pod(f"r{uid[:8]}")
    own = site.cgroup.pod(uid)
    with (
        redirected(site.net.node, "PREROUTING", metadata),
        site.connection(pod.netns, own, metadata, 80) as ends,
        site.peers() as peers,
    ):
        assert ends[2] == (metadata, 80)
        assert peers.uid_of(*ends) == uid


def test_host_network_pod_is_found_in_the_nodes_own_namespace(site: Site) -> None:
    uid = str(uuid4())
    with site.connection(site.net.node, site.cgroup.pod(uid, "")) as ends, site.peers() as peers:
        assert peers.uid_of(*ends) == uid


def test_connection_of_another_host_network_pod_to_the_real_service_from_the_same_port_is_not_taken_for_the_client(
    site: Site,
) -> None:
    # Which attack: the two share addresses and ports. One knows a port from which the other still has a connection to
    # instance metadata, of the time before the redirect, and asks the agent from it.
    victim, attacker = str(uuid4()), str(uuid4())
    node = site.net.node
    with (
        site.net.aws.call(listen, METADATA, 80),
        client(node, site.cgroup.pod(victim), METADATA, 80) as port,
        site.connection(node, site.cgroup.pod(attacker), source_port=port) as ends,
        site.peers() as peers,
    ):
        assert ends[0][1] == port
        assert peers.uid_of(*ends) == attacker


def test_connection_that_the_agent_has_closed_is_not_taken_for_another_from_the_same_port(site: Site) -> None:
    # Which attack: as above, by a connection that was redirected, and that the agent has closed and the other pod has
    # not. Its conntrack entry goes in time.
    victim, attacker = str(uuid4()), str(uuid4())
    node = site.net.node
    with (
        redirected(node, "OUTPUT"),
        site.listener(str(NODE_IPV4)) as listener,
        client(node, site.cgroup.pod(victim), METADATA, 80) as port,
    ):
        listener.accept()[0].close()
        listener.close()
        # A packet that is still under way would be tracked anew.
        wait_until(lambda: node.call(has_said_goodbye, PORT, port), "the other pod's kernel to acknowledge the close")
        with site.peers() as peers:
            assert peers.uid_of((str(NODE_IPV4), port), (str(NODE_IPV4), PORT), (METADATA, 80)) is None
        node.run("conntrack", "--flush")
        with site.connection(node, site.cgroup.pod(attacker), source_port=port) as ends, site.peers() as peers:
            assert ends[0][1] == port
            assert peers.uid_of(*ends) == attacker


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
        with site.connection(pod.netns, site.cgroup.pod(uid)) as ends:
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
