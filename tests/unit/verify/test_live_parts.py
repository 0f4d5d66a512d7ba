"""Packets as bytes, the tap's filter, the kernel's socket table and io_uring, on loopback."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiam.metadata import METADATA_IPV4
from kiam.netfilter.interfaces import InterfacePattern
from kiam.verify.live import uring
from kiam.verify.live.attempts import TunnelEnd
from kiam.verify.live.encapsulated import WRAP
from kiam.verify.live.frames import (
    ICMP,
    SYN,
    TCP,
    UDP,
    Address,
    checksum,
    icmp_echo,
    ip_packet,
    metadata_filter,
    parse,
    tcp_syn,
)
from kiam.verify.live.sockdiag import Endpoint, find_connection, find_in_table
from kiam.verify.live.stand_in import HEADER, stand_in
from kiam.verify.live.tunnels import KINDS, unmatched_name
from tests.sandbox.process import free_port

LOOPBACK = IPv4Address("127.0.0.1")
METADATA = (IPv4Address("169.254.169.254"), IPv6Address("fd00:ec2::254"))
ports = st.integers(1, 65535)
unhurried = settings(deadline=None)


@unhurried
@given(st.ip_addresses(v=4), st.ip_addresses(v=4), ports, ports, st.integers(0, 2**32 - 1))
def test_a_syn_reads_back_as_it_was_made(
    source: IPv4Address, destination: IPv4Address, own: int, port: int, sequence: int
) -> None:
    seen = parse(ip_packet(source, destination, TCP, tcp_syn(source, destination, own, port, sequence)))
    assert seen is not None
    assert (seen.source, seen.destination, seen.source_port, seen.destination_port) == (source, destination, own, port)
    assert (seen.mark, seen.flags) == (f"{sequence:08x}", SYN)


@unhurried
@given(st.ip_addresses(v=6), st.ip_addresses(v=6), ports, ports)
def test_checksums_come_out_as_zero_over_what_they_cover(
    source: IPv6Address, destination: IPv6Address, own: int, port: int
) -> None:
    segment = tcp_syn(source, destination, own, port, 1)
    pseudo = source.packed + destination.packed + (20).to_bytes(4, "big") + bytes(3) + bytes([TCP])
    assert checksum(pseudo + segment) == 0
    assert checksum(icmp_echo(own, b"nonce")) == 0
    assert checksum(ip_packet(LOOPBACK, LOOPBACK, UDP, b"")[:20]) == 0


@unhurried
@given(st.binary(max_size=100))
def test_nonsense_is_no_packet_and_no_error(data: bytes) -> None:
    seen = parse(data)
    assert seen is None or seen.protocol in {ICMP, TCP, UDP, 58}


def accepts(program: list[tuple[int, int, int, int]], ethertype: int, packet: bytes) -> bool:
    """Run a classic BPF program (only the instructions the filter has)."""
    accumulator, at = 0, 0
    while True:
        code, yes, no, k = program[at]
        at += 1
        if code == 0x28:
            assert k == 0xFFFFF000
            accumulator = ethertype
        elif code == 0x20:
            if k + 4 > len(packet):
                return False
            accumulator = int.from_bytes(packet[k : k + 4], "big")
        elif code == 0x15:
            at += yes if accumulator == k else no
        else:
            assert code == 0x06
            return k > 0


@unhurried
@given(st.one_of(st.sampled_from(METADATA), st.ip_addresses()), st.one_of(st.sampled_from(METADATA), st.ip_addresses()))
def test_the_taps_filter_lets_exactly_metadata_packets_up(source: Address, destination: Address) -> None:
    if source.version != destination.version:
        return
    packet = ip_packet(source, destination, UDP, bytes(8))
    ethertype = 0x0800 if source.version == 4 else 0x86DD
    wanted = source in METADATA or destination in METADATA
    assert accepts(metadata_filter(METADATA), ethertype, packet) is wanted
    assert not accepts(metadata_filter(METADATA), 0x0806, packet)


@contextmanager
def listener(address: str, family: socket.AddressFamily) -> Iterator[socket.socket]:
    with closing(socket.create_server((address, 0), family=family, dualstack_ipv6=address == "::")) as server:
        yield server


@pytest.mark.parametrize(
    ("listens", "connects"), [("127.0.0.1", "127.0.0.1"), ("::", "127.0.0.1"), ("::", "::1"), ("::1", "::1")]
)
def test_the_kernel_is_asked_for_exactly_one_connection(listens: str, connects: str) -> None:
    family = socket.AF_INET6 if ":" in listens else socket.AF_INET
    with listener(listens, family) as server:
        port = server.getsockname()[1]
        local = Endpoint(ip_address(connects), port)
        with socket.create_connection((connects, port)) as connection:
            own = connection.getsockname()[1]
            # Not accepted by any program, and there all the same.
            found = find_connection(local, Endpoint(ip_address(connects), own))
            assert found is not None
            assert (found.local, found.peer.port) == (local, own)
            assert find_in_table(local, Endpoint(ip_address(connects), own))
            other = own - 1 if own > 1024 else own + 1
            assert find_connection(local, Endpoint(ip_address(connects), other)) is None
            assert not find_in_table(local, Endpoint(ip_address(connects), other))
        assert find_connection(local, Endpoint(ip_address(connects), 1)) is None


def test_io_uring_connects_and_is_refused_like_connect() -> None:
    with listener("127.0.0.1", socket.AF_INET) as server:
        port = server.getsockname()[1]
        with socket.socket() as connection:
            uring.connect(connection, ("127.0.0.1", port), 5)
            assert connection.getpeername() == ("127.0.0.1", port)
    with socket.socket() as connection, pytest.raises(ConnectionRefusedError):
        uring.connect(connection, ("127.0.0.1", port), 5)


def ask(port: int, path: str) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\n\r\n".encode())
        return connection.recv(4096)


def test_the_stand_in_answers_the_nonce_and_resets_everybody_else() -> None:
    port = free_port()
    with stand_in(LOOPBACK, port, "nonce") as standing:
        assert standing is not None
        assert f"{HEADER}: {standing.secret}".encode() in ask(port, "/kiamverify-nonce/x")
        with pytest.raises(ConnectionResetError):
            ask(port, "/latest/meta-data/iam/security-credentials/")
    with pytest.raises(ConnectionRefusedError):
        ask(port, "/")


def test_the_stand_in_steps_back_for_an_agent() -> None:
    with listener("127.0.0.1", socket.AF_INET) as server, stand_in(LOOPBACK, server.getsockname()[1], "n") as standing:
        assert standing is None


END = TunnelEnd(port=8472, number=0x0A0B0C, mac="02:00:00:00:00:09", source="198.19.0.1", interface="kiamt0")


@pytest.mark.parametrize(
    ("kind", "head"),
    [
        ("vxlan", "08000000 0a0b0c00 020000000009 020000000001 0800"),
        ("geneve", "00006558 0a0b0c00 020000000009 020000000001 0800"),
        ("ipip", ""),
        ("gre", "00000800"),
        ("sit", ""),
    ],
)
def test_tunnels_are_wrapped_as_their_rfcs_say(kind: str, head: str) -> None:
    wrap, _ = WRAP[kind]
    inner = ip_packet(IPv4Address(END.source), METADATA_IPV4, TCP, b"segment")
    expected = bytes.fromhex(head)
    assert wrap(END, inner) == expected + inner
    outer = 20 if KINDS[kind].protocol else 0
    assert KINDS[kind].overhead == outer + len(expected)


@pytest.mark.parametrize("pattern", ["cali+", "!eth0", "kiamt+", "weave"])
def test_the_name_of_an_interface_that_is_no_pods_fits_no_pattern_that_leaves_one(pattern: str) -> None:
    parsed = InterfacePattern.parse(pattern)
    name = unmatched_name(parsed)
    assert len(name) <= 15
    assert parsed.matches(name) is (pattern == "!eth0")
