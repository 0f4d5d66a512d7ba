"""A node with pods, cgroups, an agent and the real service behind it, each as plain as the tests allow."""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, TypeVar

from kiam.dataplane.contract import HostNetwork, WantedState
from kiam.dataplane.ebpf import EbpfDataplane, uplink
from kiam.metadata import METADATA_IPV4, METADATA_IPV6
from kiam.netfilter.interfaces import InterfacePattern
from tests.sandbox.cgroups import NodeCgroup, cgroup2_mount
from tests.sandbox.netns import NODE_IPV4, NODE_IPV6, NetNs, NodeNet, PodNet

T = TypeVar("T")

AGENT_PORT = 8181
OTHER_AGENT_PORT = 8182
MAPPED = f"::ffff:{METADATA_IPV4}"
TIMEOUT = 3.0


class Service:
    """Answers every TCP connection with its own name and the address of the client, and keeps them open."""

    def __init__(self, name: str, netns: NetNs, addresses: list[tuple[str, int]]) -> None:
        self.name = name
        self.received = b""
        self._connections: list[socket.socket] = []
        self._listeners = [netns.call(_listen, address) for address in addresses]
        for listener in self._listeners:
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, peer = listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            with contextlib.suppress(OSError):  # gone already
                connection.sendall(f"{self.name} {peer[0].removeprefix('::ffff:')}\n".encode())
            threading.Thread(target=self._read, args=(connection,), daemon=True).start()

    def _read(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            while data := connection.recv(4096):
                self.received += data

    def close(self) -> None:
        for one in (*self._listeners, *self._connections):
            # shutdown and not only close: a thread that waits in accept or recv would keep the socket alive.
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


def _listen(address: tuple[str, int]) -> socket.socket:
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    return socket.create_server(address, family=family, backlog=512)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a client saw: who answered and as whom it was seen, what getpeername says, or the error."""

    who: str = ""
    source: str = ""
    peer: tuple[str, int] | None = None
    error: int = 0

    @property
    def refused(self) -> bool:
        return self.error == errno.EPERM


Connect = Callable[[socket.socket, tuple[str, int]], None]


def ask(
    address: str = str(METADATA_IPV4),
    port: int = 80,
    protocol: int = 0,
    connect: Connect | None = None,
    timeout: float = TIMEOUT,
) -> Reply:
    """Connect and read one line."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM, protocol) as client:
            client.settimeout(timeout)
            if connect is None:
                client.connect((address, port))
            else:
                connect(client, (address, port))
            who, source = client.makefile().readline().split()
            return Reply(who, source, client.getpeername()[:2])
    except OSError as error:
        return Reply(error=error.errno or errno.ETIMEDOUT)


class World:
    """Node, pods, cgroups, agents and the real service. A context manager that removes them all."""

    def __init__(self) -> None:
        with contextlib.ExitStack() as stack:
            self.cgroup = stack.enter_context(NodeCgroup())
            self.net = stack.enter_context(NodeNet())
            self.dataplane = EbpfDataplane(self.cgroup.root)
            self._pod_cgroups: dict[str, Path] = {}
            both = [(str(NODE_IPV4), AGENT_PORT), (str(NODE_IPV6), AGENT_PORT)]
            self.agent = Service("agent", self.node, both)
            stack.callback(self.agent.close)
            self.other_agent = Service("agent", self.node, [(str(NODE_IPV4), OTHER_AGENT_PORT)])
            stack.callback(self.other_agent.close)
            real = [(str(METADATA_IPV4), 80), (str(METADATA_IPV6), 80), (str(METADATA_IPV4), 81)]
            self.real = Service("real", self.net.aws, real)
            stack.callback(self.real.close)
            self.net.aws.run("nft", "-f", "-", stdin=_COUNT_METADATA)
            self.stack = stack.pop_all()

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    @property
    def node(self) -> NetNs:
        return self.net.node

    def add_pod(self, name: str) -> PodNet:
        pod = self.net.add_pod(name)
        self._pod_cgroups[name] = self.cgroup.pod(str(uuid.uuid4()))
        return pod

    def pod_cgroup(self, pod: PodNet) -> Path:
        return self._pod_cgroups[pod.name]

    def from_pod(self, pod: PodNet, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function in a process of the pod."""
        return pod.netns.call(function, *arguments, cgroup=self.pod_cgroup(pod))

    def from_host(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function in a process of the node's own software."""
        return self.node.call(function, *arguments, cgroup=self.cgroup.system)

    def from_host_network_pod(self, function: Callable[..., T], *arguments: Any, cgroup: Path | None = None) -> T:
        """Call a function in a process of a pod that shares the node's network namespace."""
        return self.node.call(function, *arguments, cgroup=cgroup or self.cgroup.pod(HOST_NETWORK_POD))

    def install(self, wanted: WantedState) -> None:
        self.node.call(self.dataplane.install, wanted)

    def remove(self) -> None:
        self.node.call(self.dataplane.remove)

    def inspect(self, wanted: WantedState | None) -> Any:
        return self.node.call(self.dataplane.inspect, wanted)

    def redirects(self) -> int:
        return self.node.call(self.dataplane.counters).redirects

    def drops(self) -> dict[str, int]:
        return dict(self.node.call(self.dataplane.counters).drops or {})

    def packets_beyond_node(self) -> int:
        """How many packets for a metadata address have left the node."""
        listed = json.loads(self.net.aws.run("nft", "-j", "list", "counters").stdout)["nftables"]
        return sum(int(one["counter"]["packets"]) for one in listed if "counter" in one)

    def state_of_machine(self) -> dict[str, str]:
        """All that the dataplane could leave behind."""
        return {
            "cgroups": self.node.run("bpftool", "cgroup", "tree", str(self.cgroup.root), check=False).stdout,
            "nftables": self.node.run("nft", "list", "ruleset").stdout,
            "tc": self.node.run("tc", "qdisc", "show").stdout + self.node.run("tc", "filter", "show").stdout,
            "tcx": str(self.node.call(uplink.find_ours)),
            "rules": self.node.run("ip", "rule").stdout,
            "bpffs": "\n".join(sorted(str(path) for path in Path("/sys/fs/bpf").rglob("*kiam*"))),
        }


_COUNT_METADATA = f"""
table inet seen {{
  counter metadata {{ }}
  chain seen {{
    type filter hook prerouting priority -400; policy accept;
    ip daddr {METADATA_IPV4} counter name metadata
    ip6 daddr {METADATA_IPV6} counter name metadata
  }}
}}
"""
HOST_NETWORK_POD = str(uuid.uuid4())


def wanted_state(
    port: int = AGENT_PORT,
    ipv6: bool = False,
    host_network: HostNetwork = HostNetwork.IGNORE,
    agent_cgroup: Path | None = None,
) -> WantedState:
    return WantedState(
        host_address=IPv4Address(NODE_IPV4),
        port=port,
        interface=InterfacePattern.parse("cali+"),
        host_address6=IPv6Address(NODE_IPV6) if ipv6 else None,
        host_network=host_network,
        agent_cgroup=None if agent_cgroup is None else str(agent_cgroup.relative_to(cgroup2_mount())),
    )


@contextlib.contextmanager
def installed(world: World, wanted: WantedState) -> Iterator[None]:
    world.install(wanted)
    try:
        yield
    finally:
        world.remove()
