"""The node's ends of the tunnels a pod may send into: the kernel's devices, or a stand-in where the kernel lacks them.

To netfilter both are alike: an inner packet comes in on the tunnel's device. The stand-in is what flannel's udp backend
is, a program that unwraps packets and writes them into a TUN device.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tests.integration.dataplane.client import TUNNEL_ID
from tests.integration.dataplane.world import World
from tests.sandbox.netns import CALICO_MAC, NODE_IPV4, NODE_IPV6

TUNSETIFF = 0x400454CA
IFF_TUN_NO_PI = 0x1001
ETH_P_ALL = 0x0003
SOL_PACKET = 263
PACKET_AUXDATA = 8
MAC = "0a:00:00:00:00:01"
PORTS = {"vxlan": 8472, "geneve": 6081}


@dataclass(frozen=True, slots=True)
class Tunnel:
    """One kind of tunnel, outer and inner address family."""

    name: str
    kind: str
    """As the client's ``tunnelled`` calls it."""
    outer: int
    device: str
    """What ``ip link add <name>`` is given; ``{pod}`` and ``{uplink}`` are filled in."""
    inner: tuple[int, ...] = (4, 6)


TUNNELS = (
    Tunnel("vxlan", "vxlan", 4, f"address {MAC} type vxlan id {TUNNEL_ID} dstport 8472 dev eth0 nolearning"),
    Tunnel(
        "vxlan over IPv6", "vxlan", 6, f"address {MAC} type vxlan id {TUNNEL_ID} dstport 8472 dev eth0 group ff05::7"
    ),
    Tunnel("geneve", "geneve", 4, f"address {MAC} type geneve id {TUNNEL_ID} remote {{pod}}"),
    Tunnel("ipip", "ip", 4, f"type ipip local {NODE_IPV4} remote {{pod}}", (4,)),
    Tunnel("sit", "ip", 4, f"type sit local {NODE_IPV4} remote {{pod}}", (6,)),
    Tunnel("gre", "gre", 4, f"type gre local {NODE_IPV4} remote {{pod}}"),
    Tunnel("ip6tnl", "ip", 6, f"type ip6tnl mode any local {NODE_IPV6} remote {{pod6}}"),
    Tunnel("ip6gre", "gre", 6, f"type ip6gre local {NODE_IPV6} remote {{pod6}}"),
    Tunnel("vlan", "vlan", 0, f"link {{interface}} address {CALICO_MAC} type vlan id {TUNNEL_ID}"),
)


@contextlib.contextmanager
def tunnel_end(world: World, tunnel: Tunnel) -> Iterator[None]:
    """The tunnel's end on the node, for what the world's pod sends, on an interface that no pattern for pods fits."""
    name = "tt0"
    pod = world.pod
    link, _, rest = tunnel.device.format(pod=pod.address, pod6=pod.address6, interface=pod.interface).rpartition(
        "type "
    )
    command = f"link add {link}name {name} type {rest}"
    with contextlib.ExitStack() as stack:
        try:
            world.node.ip(command)
        except RuntimeError as error:
            if "Unknown device type" not in str(error) and "not supported" not in str(error):
                raise
            stack.enter_context(_stand_in(world, tunnel, name))
        else:
            stack.callback(world.node.ip, f"link delete {name}")
        world.node.ip(f"link set {name} up")
        world.node.sysctl(**{"ipv4__conf__all__rp_filter": 0, f"ipv4__conf__{name}__rp_filter": 0})
        yield


@contextlib.contextmanager
def _stand_in(world: World, tunnel: Tunnel, name: str) -> Iterator[None]:
    receivers = world.node.call(_receivers, tunnel, world.pod.interface)
    device = world.node.call(_tun, name)
    stopped, stop = os.pipe()
    unwrap = threading.Thread(target=_unwrap, args=(receivers, device, stopped))
    unwrap.start()
    try:
        yield
    finally:
        os.close(stop)
        unwrap.join()
        for receiver in receivers:
            receiver.close()
        os.close(stopped)
        os.close(device)


def _tun(name: str) -> int:
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN_NO_PI))
    return device


def _receivers(tunnel: Tunnel, interface: str) -> dict[socket.socket, int]:
    """Sockets that get the outer packets, each with how many bytes precede the inner IP header in what they get."""
    family, address = (socket.AF_INET6, str(NODE_IPV6)) if tunnel.outer == 6 else (socket.AF_INET, str(NODE_IPV4))
    outer = 20 if tunnel.outer == 4 else 0  # raw IPv4 sockets are given the IP header, raw IPv6 sockets aren't
    if tunnel.kind == "vlan":
        # The kernel has taken the tag off before any packet socket sees the frame, and says so beside it.
        packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        packets.bind((interface, ETH_P_ALL))
        packets.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        return {packets: 14}
    if tunnel.kind in PORTS:
        datagrams = socket.socket(family, socket.SOCK_DGRAM)
        datagrams.bind((address, PORTS[tunnel.kind]))
        return {datagrams: 8 + 14}
    if tunnel.kind == "gre":
        return {socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_GRE): outer + 4}
    protocols = (socket.IPPROTO_IPIP, socket.IPPROTO_IPV6)
    return {socket.socket(family, socket.SOCK_RAW, protocol): outer for protocol in protocols}


def _unwrap(receivers: Mapping[socket.socket, int], device: int, stopped: int) -> None:
    while True:
        waiting: list[socket.socket | int] = [*receivers, stopped]
        ready, _, _ = select.select(waiting, [], [])
        if stopped in ready:
            return
        for receiver in receivers.keys() & set(ready):
            data, beside, _, _ = receiver.recvmsg(65535, 256)
            if receiver.family != socket.AF_PACKET or _tag(beside) == TUNNEL_ID:
                os.write(device, data[receivers[receiver] :])


def _tag(beside: list[tuple[int, int, bytes]]) -> int | None:
    # struct tpacket_auxdata, linux/if_packet.h: the tag's control information is behind four bytes and two shorts.
    return next((struct.unpack_from("=H", data, 16)[0] for level, _, data in beside if level == SOL_PACKET), None)
