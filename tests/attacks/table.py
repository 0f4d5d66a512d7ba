"""Every way to instance metadata, tried from a pod and from pods on the host network, by dataplane.

``python -m tests.attacks.table`` tries them and writes the table into docs/security.md. What decides is what arrives at
the real service, whatever the attacker was told.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from kiam.dataplane.contract import HostNetwork, WantedState
from kiam.dataplane.registry import DATAPLANES, load_dataplane
from kiam.netfilter.interfaces import InterfacePattern
from tests.attacks.attacker import V4_ONLY, WAYS
from tests.attacks.service_log import ServiceLog
from tests.integration.dataplane.tunnels import MAC, TUNNELS, tunnel_end
from tests.integration.dataplane.world import AGENT_PORT, METADATA, METADATA6, Client, World
from tests.sandbox.cgroups import NodeCgroup
from tests.sandbox.netns import CALICO_MAC, NODE_IPV4, NODE_IPV6

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
BEGIN = "<!-- made by: make attacks -->"
END = "<!-- end of what make attacks made -->"
ATTACKER = Path(__file__).with_name("attacker.py")
REACHES = "**reaches it**"
PLACES = ("a pod", "host network, `deny`", "host network, `redirect`")
LABELS = {
    "connect": "TCP to port 80",
    "connect_mapped": "TCP to `::ffff:169.254.169.254`",
    "connect_elsewhere": "TCP to another port",
    "datagram": "UDP",
    "raw_ip": "raw socket, own IP header",
    "raw_tcp": "raw socket, TCP",
    "raw_marked": "raw socket, with a mark",
    "packet": "packet socket",
    "packet_dgram": "packet socket, SOCK_DGRAM",
    "packet_wrong_type": "packet socket, wrong protocol",
    "packet_vnet": "packet socket, virtio header",
    "packet_vlan0": "packet socket, VLAN 0",
    "packet_ring": "packet socket, PACKET_TX_RING",
    "packet_bypass": "packet socket, PACKET_QDISC_BYPASS",
    "packet_bypass_vlan0": "the same with VLAN 0",
    "packet_on_loopback": "packet socket on `lo`",
    "xdp": "AF_XDP",
}
_ports = itertools.count(41000)

Table = Mapping[tuple[str, str], Mapping[str, str]]
"""(place, way as people call it): what came of it by dataplane."""


@dataclass(frozen=True, slots=True)
class Attacker:
    """A process that tries, and where it is."""

    client: Client
    sources: Mapping[str, str]
    device: str
    mac: str
    gateway_mac: str

    def attempt(self, way: str, version: int, log: ServiceLog) -> str:
        """What came of one way."""
        port = next(_ports)
        place = {
            "sources": self.sources,
            "device": self.device,
            "mac": self.mac,
            "gateway_mac": self.gateway_mac,
            "port": port,
        }
        answer = self.client.ask("attack", way, version, place)
        if log.has(port):
            return REACHES
        if "value" in answer:
            return "agent" if way.startswith("connect") else "dropped"
        return "dropped" if answer["error"] == "ETIMEDOUT" else "refused"


def attackers(world: World) -> tuple[Attacker, Attacker]:
    """One in a pod with NET_RAW, and one in a pod on the host network."""
    pod = world.pod
    in_pod = world.client_in(pod.netns, world.cgroups.pod("00000000-0000-4000-8000-0000000000a1"), ATTACKER)
    on_host = world.client_in(world.node, world.cgroups.pod("00000000-0000-4000-8000-0000000000a2"), ATTACKER)
    own, beyond = (
        netns.run("cat", "/sys/class/net/eth0/address").stdout.strip() for netns in (world.node, world.net.aws)
    )
    pod_mac = pod.netns.run("cat", "/sys/class/net/eth0/address").stdout.strip()
    return (
        Attacker(in_pod, {"4": str(pod.address), "6": str(pod.address6)}, "eth0", pod_mac, CALICO_MAC),
        Attacker(on_host, {"4": str(NODE_IPV4), "6": str(NODE_IPV6)}, "eth0", own, beyond),
    )


def wanted(world: World, host_network: HostNetwork) -> WantedState:
    """As a node has it; with pods on the host network told apart, the agent's own pod passes."""
    state = WantedState(NODE_IPV4, AGENT_PORT, InterfacePattern.parse("cali+"))
    if host_network is HostNetwork.IGNORE:
        return state
    mount = next(parent for parent in world.cgroups.root.parents if parent.stat().st_ino == 1)
    return replace(state, host_network=host_network, agent_cgroup=str(world.agent_pod.relative_to(mount)))


def attempt_all(attacker: Attacker, log: ServiceLog) -> Iterator[tuple[str, str]]:
    """Every way over both address families: what people call it, and what came of it."""
    for way in WAYS:
        for version in (4,) if way in V4_ONLY else (4, 6):
            yield LABELS[way] + (", IPv6" if version == 6 else ""), attacker.attempt(way, version, log)


def attempt_tunnels(world: World, log: ServiceLog) -> Iterator[tuple[str, str]]:
    """Packets inside those of every tunnel that may end on the node."""
    pod = world.pod
    for tunnel in TUNNELS:
        for version in tunnel.inner:
            port = next(_ports)
            source, address = (str(pod.address), METADATA) if version == 4 else (str(pod.address6), METADATA6)
            with tunnel_end(world, tunnel):
                mac = CALICO_MAC if tunnel.kind == "vlan" else MAC
                endpoint = str(NODE_IPV6 if tunnel.outer == 6 else NODE_IPV4)
                world.client.do("tunnelled", tunnel.kind, endpoint, mac, source, address, port)
                yield f"inside {tunnel.name}, IPv{version}", REACHES if log.has(port) else "dropped"


def make_table(world: World, dataplanes: Mapping[str, str] = DATAPLANES) -> dict[tuple[str, str], dict[str, str]]:
    """Try everything."""
    table: dict[tuple[str, str], dict[str, str]] = {}

    def note(place: str, dataplane: str, results: Iterator[tuple[str, str]]) -> None:
        for way, result in results:
            table.setdefault((place, way), {})[dataplane] = result

    in_pod, on_host = attackers(world)
    with ServiceLog(world.net.aws, world.node) as log:
        for name in dataplanes:
            dataplane = load_dataplane(name)
            try:
                for place, host_network in zip(PLACES, HostNetwork, strict=True):
                    world.node.call(dataplane.install, wanted(world, host_network))
                    world.forget_connections()
                    if host_network is HostNetwork.IGNORE:
                        note(place, name, attempt_all(in_pod, log))
                        note(place, name, attempt_tunnels(world, log))
                    else:
                        note(place, name, attempt_all(on_host, log))
            finally:
                world.node.call(dataplane.remove)
    return table


def render(table: Table) -> str:
    """The table as Markdown, a line a way."""
    names = list(DATAPLANES)
    lines = [f"| from | way | {' | '.join(names)} |", f"|---|---|{'---|' * len(names)}"]
    lines += [
        f"| {place} | {way} | {' | '.join(results[name] for name in names)} |"
        for (place, way), results in table.items()
    ]
    return "\n".join(lines)


def on_page() -> str:
    """The table in docs/security.md."""
    return PAGE.read_text().partition(BEGIN)[2].partition(END)[0].strip()


def main() -> int:
    """Try everything and put the table into the page."""
    with NodeCgroup() as cgroups, World(cgroups) as world:
        import os

        os.environ["KIAM_EBPF_CGROUP"] = str(cgroups.root)
        made = render(make_table(world))
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n{made}\n\n{END}{after}")
    print(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
