"""The last look at packets, on the devices by which they leave the node."""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from kiam.dataplane.ebpf import bpf, uplink
from kiam.metadata import METADATA_IPV4
from tests.integration.ebpf import ways
from tests.integration.ebpf.world import TIMEOUT, World, ask, wanted_state
from tests.sandbox.netns import AWS_IPV4, NODE_IPV4, NetNs, PodNet
from tests.sandbox.process import wait_until

SCHED_CLS = 3
CONTINUE = (0xB7, 0, 0, -1), (0x95, 0, 0, 0)  # mov r0, -1; exit
MACVLAN_ADDRESS = "192.0.2.50"


@pytest.fixture(scope="module")
def macvlan_pod(world: World) -> Iterator[NetNs]:
    """A pod with a device of its own on the uplink: none of its packets pass the host's network stack."""
    with NetNs("macvlan") as netns:
        world.node.ip(f"link add mac0 link eth0 netns {netns.name} type macvlan mode bridge")
        netns.ip(
            f"address add {MACVLAN_ADDRESS}/24 dev mac0",
            "link set mac0 up",
            f"route add default via {AWS_IPV4}",
        )
        yield netns


def test_a_pod_with_a_device_on_the_uplink_reaches_the_real_service_without_the_dataplane(
    clean: World, macvlan_pod: NetNs
) -> None:
    assert macvlan_pod.call(ask).who == "real"


def test_what_of_its_packets_no_hook_redirected_is_dropped(redirected: World, macvlan_pod: NetNs) -> None:
    # Out of this process, which is outside the cgroup: a connection that no hook has seen, like one of before.
    bypassed, beyond = redirected.drops()["bypass"], redirected.packets_beyond_node()
    assert macvlan_pod.call(ask, str(METADATA_IPV4), 80, 0, None, 0.3).error
    assert redirected.drops()["bypass"] > bypassed
    assert redirected.packets_beyond_node() == beyond


@pytest.mark.parametrize("send", [ways.send_raw_packet, ways.send_packet_socket])
def test_tcp_made_by_hand_on_the_host_network_is_dropped(redirected: World, send: Callable[[str], int]) -> None:
    bypassed, beyond = redirected.drops()["bypass"], redirected.packets_beyond_node()
    with suppress(OSError):  # ENOBUFS
        redirected.from_host_network_pod(send, str(NODE_IPV4))
    assert redirected.drops()["bypass"] == bypassed + 1
    assert redirected.packets_beyond_node() == beyond


def test_forwarded_packets_are_dropped_there_too_when_the_guard_is_gone(redirected: World, pod: PodNet) -> None:
    redirected.node.run("nft", "delete", "table", "inet", "kiam_ebpf")
    bypassed, beyond = redirected.drops()["bypass"], redirected.packets_beyond_node()
    redirected.from_pod(pod, ways.send_packet_socket, str(pod.address))
    redirected.from_pod(pod, ways.send_packet_socket6, str(pod.address6))
    wait_until(lambda: redirected.drops()["bypass"] == bypassed + 2, "both packets to be counted")
    assert redirected.packets_beyond_node() == beyond


def test_the_hosts_connections_pass_also_behind_source_nat_with_random_ports(redirected: World) -> None:
    """As the AWS VPC CNI translates them."""
    rules = (
        "table ip translate { chain out { type nat hook postrouting priority srcnat; "
        f"ip daddr {METADATA_IPV4} masquerade fully-random; }}; }}"
    )
    redirected.node.run("nft", rules)
    try:
        for address in (str(METADATA_IPV4), f"::ffff:{METADATA_IPV4}"):
            assert redirected.from_host(ask, address).who == "real"
            if ways.mptcp_exists():
                assert redirected.from_host(ask, address, 80, ways.IPPROTO_MPTCP).who == "real"
    finally:
        redirected.node.run("nft", "delete", "table", "ip", "translate")


def _close_with_a_reset() -> None:
    with socket.create_connection((str(METADATA_IPV4), 80), timeout=TIMEOUT) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_the_hosts_resets_pass_though_their_socket_is_gone(redirected: World) -> None:
    before = redirected.drops()
    beyond = redirected.packets_beyond_node()
    redirected.from_host(_close_with_a_reset)
    # SYN, ACK of the handshake, perhaps of the greeting, RST.
    wait_until(lambda: redirected.packets_beyond_node() >= beyond + 3, "the reset to leave the node")
    assert redirected.drops() == before


def test_the_hosts_ipv6_connections_pass(redirected: World) -> None:
    assert redirected.from_host(ask, "fd00:ec2::254").who == "real"


def test_a_missing_program_is_noticed_and_put_back(redirected: World) -> None:
    redirected.node.call(uplink.detach_all)
    problems = redirected.inspect(wanted_state()).problems
    assert problems == ["the program kiam_uplink is not attached to eth0"]
    redirected.install(wanted_state())
    assert redirected.inspect(wanted_state()).problems == []


def test_a_device_that_becomes_an_uplink_is_noticed(redirected: World) -> None:
    redirected.node.ip("link add more0 type bridge", "link set more0 up", "route add default dev more0 table 77")
    try:
        problems = redirected.inspect(wanted_state()).problems
        assert problems == ["the program kiam_uplink is not attached to more0"]
        redirected.install(wanted_state())
        assert redirected.inspect(wanted_state()).problems == []
    finally:
        redirected.node.ip("link delete more0")


# Kernels before 6.6 have no tcx; what they use instead exists here too.


@pytest.fixture
def without_tcx(clean: World, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(uplink, "_has_tcx", lambda _: False)
    return clean


def load_classifier(name: bytes) -> int:
    instructions = b"".join(struct.pack("=BBhi", *one) for one in CONTINUE)
    code, license_ = ctypes.create_string_buffer(instructions), ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack(
        "=IIQQIIQII16s",
        *(SCHED_CLS, len(CONTINUE), ctypes.addressof(code), ctypes.addressof(license_)),
        *(0, 0, 0, 0, 0, name),
    )
    return bpf.bpf(5, attributes)  # BPF_PROG_LOAD


def filters(world: World) -> str:
    return world.node.run("tc", "filter", "show", "dev", "eth0", "egress").stdout


def attach_again(world: World) -> int:
    with bpf.closing(load_classifier(b"kiam_uplink")) as program:
        world.node.call(uplink.attach, program)
        return bpf.program_info(program).program_id


def test_before_tcx_a_filter_is_attached_replaced_and_removed_with_its_qdisc(without_tcx: World) -> None:
    before = without_tcx.state_of_machine()
    first, second = attach_again(without_tcx), attach_again(without_tcx)
    assert first != second
    assert filters(without_tcx).count("handle 0x") == 1
    assert "protocol all pref 1 bpf" in filters(without_tcx)
    assert f"id {second} " in filters(without_tcx)
    assert [device.name for device in without_tcx.node.call(uplink.find_ours)] == ["eth0"]
    without_tcx.node.call(uplink.detach_all)
    assert without_tcx.state_of_machine() == before


def test_before_tcx_a_qdisc_that_was_there_stays(without_tcx: World) -> None:
    without_tcx.node.run("tc", "qdisc", "add", "dev", "eth0", "clsact")
    try:
        before = without_tcx.state_of_machine()
        attach_again(without_tcx)
        attach_again(without_tcx)
        without_tcx.node.call(uplink.detach_all)
        assert without_tcx.state_of_machine() == before
        assert "clsact" in before["tc"]
    finally:
        without_tcx.node.run("tc", "qdisc", "del", "dev", "eth0", "clsact")


def test_before_tcx_a_qdisc_that_somebody_came_to_use_stays_with_their_filter(without_tcx: World) -> None:
    attach_again(without_tcx)
    try:
        theirs = ("prio", "7", "bpf", "bytecode", "1,6 0 0 0")
        without_tcx.node.run("tc", "filter", "add", "dev", "eth0", "egress", *theirs)
        without_tcx.node.call(uplink.detach_all)
        assert "pref 7" in filters(without_tcx)
        assert "kiam_uplink" not in filters(without_tcx)
    finally:
        without_tcx.node.run("tc", "qdisc", "del", "dev", "eth0", "clsact", check=False)
