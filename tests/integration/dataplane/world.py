"""A node with a pod, an agent stand-in and a real metadata service, on which a dataplane can be judged by packets.

What reaches the real service is counted by nftables in its own network namespace, so that nothing a test's clients
believe matters: a packet of any kind from a pod, or from an address of the node's, is seen there.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.sandbox.cgroups import NodeCgroup
from tests.sandbox.netns import METADATA_IPV4, METADATA_IPV6, NODE_IPV4, NODE_IPV6, NetNs, NodeNet, PodNet
from tests.sandbox.process import placed, wait_until

CLIENT = Path(__file__).with_name("client.py")
AGENT_PORT = 8181
OTHER_AGENT_PORT = 8282
METADATA = str(METADATA_IPV4)
METADATA6 = str(METADATA_IPV6)
MAPPED = f"::ffff:{METADATA}"

_SEEN = f"""
table inet seen {{
  counter pods {{ }}
  counter node {{ }}
  chain arriving {{
    type filter hook prerouting priority raw; policy accept;
    ip daddr {METADATA} ip saddr 10.42.0.0/16 counter name pods
    ip6 daddr {METADATA6} ip6 saddr fd42:10::/64 counter name pods
    ip daddr {METADATA} ip saddr {NODE_IPV4} counter name node
    ip6 daddr {METADATA6} ip6 saddr {NODE_IPV6} counter name node
  }}
}}
"""


SAVE_PROGRAMS = ("iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save", "ip6tables-legacy-save")


def _without_counters(text: str) -> str:
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return re.sub(r"packets \d+ bytes \d+|\[\d+:\d+\]", "", "\n".join(lines))


class Service:
    """Answers each line with who it is and who asks, on TCP; a thread a connection."""

    def __init__(self, netns: NetNs, name: str, port: int) -> None:
        self.name = name
        self.port = port
        self._netns = netns
        self._connections: list[socket.socket] = []
        self.start()

    def start(self) -> None:
        """Listen (again)."""

        def listen() -> socket.socket:
            # On both families at once, as the agent listens.
            return socket.create_server(("::", self.port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=512)

        self._listener = self._netns.call(listen)
        self._listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 64)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def stop(self) -> None:
        """Stop listening and cut all connections, as when the process is killed."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self._connections.clear()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, peer = listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            threading.Thread(target=self._answer, args=(connection, peer[0]), daemon=True).start()

    def _answer(self, connection: socket.socket, peer: str) -> None:
        answer = json.dumps({"service": self.name, "port": self.port, "source": peer.removeprefix("::ffff:")}) + "\n"
        with contextlib.suppress(OSError), connection, connection.makefile("rb") as lines:
            for _ in lines:
                connection.sendall(answer.encode())
        with contextlib.suppress(ValueError):
            self._connections.remove(connection)


class Client:
    """A process in a network namespace, and a cgroup, that does what it is told; see :mod:`.client`."""

    def __init__(self, netns: NetNs, cgroup: Path, script: Path = CLIENT) -> None:
        self._process = subprocess.Popen(
            placed([sys.executable, "-I", "-S", str(script)], netns.name, cgroup),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, function: str, *arguments: Any) -> dict[str, Any]:
        """Call a function there: ``{"value": ...}``, or ``{"error": "ECONNREFUSED"}``."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([function, *arguments]) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def do(self, function: str, *arguments: Any) -> Any:
        """As ask, for what has to succeed."""
        answer = self.ask(function, *arguments)
        assert "value" in answer, f"{function}{arguments}: {answer}"
        return answer["value"]

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


class World:
    """The node with everything around it. A context manager."""

    def __init__(self, cgroups: NodeCgroup, cni: str = "calico") -> None:
        self.cgroups = cgroups
        self.agent_pod = cgroups.pod("00000000-0000-4000-8000-00000000000a")
        self._stack = contextlib.ExitStack()
        try:
            self.net = self._stack.enter_context(NodeNet(cni))
            self.node = self.net.node
            self.pod: PodNet = self.net.add_pod("one")
            self.net.aws.run("nft", "-f", "-", stdin=_SEEN)
            # A legacy table, once there, can't be taken out of a network namespace again; on a node of that kind
            # kube-proxy has made them.
            for program in ("iptables-legacy", "ip6tables-legacy"):
                for table in ("nat", "mangle"):
                    self.node.run(program, "-t", table, "-S")
            self.agent = self._service(self.node, "agent", AGENT_PORT)
            self.other_agent = self._service(self.node, "agent", OTHER_AGENT_PORT)
            for port in (80, 81, 8080):
                self._service(self.net.aws, "real", port)
            self.client = self.client_in(self.pod.netns, cgroups.pod("00000000-0000-4000-8000-000000000001"))
            self.host = self.client_in(self.node, cgroups.system)
            # So that the first packet isn't lost while neighbours are looked up.
            wait_until(lambda: "value" in self.client.ask("who", METADATA), "a way to the real service")
            wait_until(lambda: "value" in self.client.ask("who", METADATA6), "a way to the real service over IPv6")
        except BaseException:
            self.close()
            raise

    def _service(self, netns: NetNs, name: str, port: int) -> Service:
        service = Service(netns, name, port)
        self._stack.callback(service.stop)
        return service

    def client_in(self, netns: NetNs, cgroup: Path, script: Path = CLIENT) -> Client:
        """Start another client; it ends with the world."""
        client = Client(netns, cgroup, script)
        self._stack.callback(client.close)
        return client

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take everything down."""
        self._stack.close()

    def reached(self, whose: str = "pods") -> int:
        """Packets that have come to the real service, from pods or from the node itself."""
        listing = json.loads(self.net.aws.run("nft", "-j", "list", "counter", "inet", "seen", whose).stdout)
        return int(next(entry["counter"]["packets"] for entry in listing["nftables"] if "counter" in entry))

    def forget_connections(self) -> None:
        """Empty the node's connection table, so that tests don't see one another's."""
        self.node.run("conntrack", "--flush")

    @contextlib.contextmanager
    def second_interface(self) -> Iterator[None]:
        """Give the pod a second way to the real service, on an interface that no pattern for pods would match."""
        pod = self.pod.netns
        self.node.ip(f"link add second0 type veth peer name second0 netns {pod.name}")
        try:
            self.node.ip("address add 198.51.100.1/24 dev second0", "link set second0 up")
            self.node.sysctl(ipv4__conf__all__rp_filter=0, ipv4__conf__second0__rp_filter=0)
            pod.sysctl(ipv4__conf__all__rp_filter=0, ipv4__conf__eth0__rp_filter=0)
            pod.ip(
                "address add 198.51.100.2/24 dev second0",
                "link set second0 up",
                f"route add {METADATA} via 198.51.100.1 src {self.pod.address}",
            )
            yield
        finally:
            self.node.ip("link delete second0")

    def state(self) -> dict[str, str]:
        """Everything a dataplane might leave behind on the node, counters taken out."""
        commands = {
            "nft": ("nft", "list", "ruleset"),
            **{program: (program,) for program in SAVE_PROGRAMS},
            "cgroup": ("bpftool", "cgroup", "tree", str(self.cgroups.root)),
            "qdisc": ("tc", "qdisc", "show"),
            "net": ("bpftool", "net", "show"),
            "bpffs": ("find", "/sys/fs/bpf"),
        }
        output = {name: self.node.run(*command, check=False).stdout for name, command in commands.items()}
        return {name: _without_counters(text) for name, text in output.items()}

    @contextlib.contextmanager
    def nothing_gets_through(self) -> Iterator[None]:
        """Assert that no packet of a pod reaches the real service meanwhile."""
        before = self.reached()
        yield
        assert self.reached() == before, "packets of the pod reached the real metadata service"
