"""The ways a program in a pod can try to get to the metadata service."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from kiam.metadata import METADATA_IPV4, METADATA_IPV6, METADATA_PORT
from kiam.verify.live import uring
from kiam.verify.live.attempts import Attempt, Order, Outcome
from kiam.verify.live.frames import (
    ACK,
    ETH_P_IP,
    ETH_P_IPV6,
    ICMP,
    SYN,
    TCP,
    Seen,
    icmp_echo,
    ip_packet,
    parse,
    tcp_syn,
)

IPPROTO_MPTCP = 262
OTHER_PORT = 443
BLOCKED = frozenset({errno.EPERM, errno.EACCES})
UNSUPPORTED = frozenset(
    {errno.EPROTONOSUPPORT, errno.ENOSYS, errno.EAFNOSUPPORT, errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.EADDRNOTAVAIL}
)
PORTS = range(20000, 32768)
"""For the raw probes: below the range the kernel gives out by itself, so that no socket of the pod answers."""


@dataclass(slots=True)
class Context:
    """What the ways of one order share."""

    order: Order
    open: dict[str, socket.socket] = field(default_factory=dict)
    """Connections that are kept until the host has looked for its end of them."""


Way = Callable[[Context], Attempt]


def _tcp(
    name: str,
    family: socket.AddressFamily,
    host: str,
    port: int = METADATA_PORT,
    protocol: int = socket.IPPROTO_TCP,
    connect: Callable[[socket.socket, tuple[str, int], float], None] | None = None,
) -> Way:
    def attempt(context: Context) -> Attempt:
        try:
            connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC, protocol)
        except OSError as error:
            return Attempt(name, Outcome.UNSUPPORTED, error.strerror or str(error))
        context.open[name] = connection
        connection.settimeout(context.order.timeout)
        outcome, detail, own_port = Outcome.CONNECTED, "", 0
        try:
            # Bound before it connects, so that the port is its own, and known also after a failure.
            connection.bind(("", 0))
            own_port = connection.getsockname()[1]
            if connect is None:
                connection.connect((host, port))
            else:
                connect(connection, (host, port), context.order.timeout)
        except OSError as error:
            outcome, detail = _outcome(error)
        address = ""
        with contextlib.suppress(OSError):
            address = connection.getsockname()[0]
        return Attempt(name, outcome, detail, address, own_port)

    return attempt


def _outcome(error: OSError) -> tuple[Outcome, str]:
    detail = error.strerror or str(error) or type(error).__name__
    if isinstance(error, TimeoutError) or error.errno in {errno.ETIMEDOUT, errno.EINPROGRESS, errno.EAGAIN}:
        return Outcome.SILENCE, "no answer"
    if error.errno in BLOCKED:
        return Outcome.BLOCKED, detail
    if error.errno in UNSUPPORTED:
        return Outcome.UNSUPPORTED, detail
    return Outcome.REFUSED, detail


def _fast_open(connection: socket.socket, address: tuple[str, int], timeout: float) -> None:
    # sendto with MSG_FASTOPEN connects and carries data in the SYN, without a call of connect(2) (RFC 7413).
    # Blocking, with a limit of the kernel's: a non-blocking one returns before the answer.
    connection.setblocking(True)
    limit = struct.pack("ll", int(timeout), int(timeout % 1 * 1_000_000))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    connection.sendto(b"GET /ping HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n", socket.MSG_FASTOPEN, address)
    connection.getpeername()


def _udp(context: Context) -> Attempt:
    nonce = os.urandom(16)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.settimeout(context.order.timeout)
        try:
            sender.sendto(nonce, (str(METADATA_IPV4), METADATA_PORT))
            sender.recvfrom(2048)
            outcome, detail = Outcome.ANSWERED, ""
        except OSError as error:
            outcome, detail = _outcome(error)
        return Attempt("udp", outcome, detail, *sender.getsockname())


def _icmp(context: Context) -> Attempt:
    nonce = os.urandom(16)
    identifier = random.randrange(1, 0xFFFF)  # noqa: S311 - tells packets apart, keeps no secret
    try:
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_ICMP)
    except OSError as error:
        return Attempt("icmp", Outcome.UNSUPPORTED, error.strerror or str(error))
    with raw:
        try:
            raw.sendto(icmp_echo(identifier, nonce), (str(METADATA_IPV4), 0))
        except OSError as error:
            return Attempt("icmp", *_outcome(error), sent=((ICMP, nonce.hex()),))
        answered = _wait(raw, context.order.timeout, lambda seen: seen.protocol == ICMP and seen.mark == nonce.hex())
    outcome = Outcome.ANSWERED if answered else Outcome.SILENCE
    return Attempt("icmp", outcome, "" if answered else "no answer", sent=((ICMP, nonce.hex()),))


def _wait(receiver: socket.socket, timeout: float, wanted: Callable[[Seen], bool]) -> Seen | None:
    deadline = time.monotonic() + timeout
    while (left := deadline - time.monotonic()) > 0:
        receiver.settimeout(left)
        try:
            seen = parse(receiver.recv(2048))
        except TimeoutError:
            return None
        if seen is not None and wanted(seen):
            return seen
    return None


def _raw_tcp(context: Context) -> Attempt:
    # A raw socket sends past connect(2) and its hooks; the SYN is made here.
    source, destination = IPv4Address(own_address(context.order)), METADATA_IPV4
    port, sequence = _random_port(), random.getrandbits(32)
    try:
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_TCP)
    except OSError as error:
        return Attempt("raw", Outcome.UNSUPPORTED, error.strerror or str(error))
    with raw:
        try:
            raw.sendto(tcp_syn(source, destination, port, METADATA_PORT, sequence), (str(destination), 0))
        except OSError as error:
            return Attempt("raw", *_outcome(error), str(source), port)
        answer = _wait(raw, context.order.timeout, _answers(port))
    return _handshake("raw", answer, str(source), port)


def _answers(port: int) -> Callable[[Seen], bool]:
    return lambda seen: seen.protocol == TCP and seen.destination_port == port


def _handshake(way: str, answer: Seen | None, source: str, port: int) -> Attempt:
    if answer is None:
        return Attempt(way, Outcome.SILENCE, "no answer", source, port)
    if answer.flags & (SYN | ACK) == SYN | ACK:
        return Attempt(way, Outcome.ANSWERED, "SYN-ACK", source, port)
    return Attempt(way, Outcome.REFUSED, "RST", source, port)


def _packet(name: str, ipv6: bool) -> Way:
    def attempt(context: Context) -> Attempt:
        # A packet socket hands the frame to the driver: neither the socket layer's hooks nor the namespace's own
        # netfilter see it.
        ethertype = ETH_P_IPV6 if ipv6 else ETH_P_IP
        destination = METADATA_IPV6 if ipv6 else METADATA_IPV4
        own = own_address6(context.order) if ipv6 else own_address(context.order)
        if not own:
            return Attempt(name, Outcome.UNSUPPORTED, "the namespace has no IPv6 address")
        source = IPv6Address(own) if ipv6 else IPv4Address(own)
        port, sequence = _random_port(), random.getrandbits(32)
        try:
            interface, gateway = _gateway()
            sender = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, socket.htons(ethertype))
        except (OSError, LookupError) as error:
            return Attempt(name, Outcome.UNSUPPORTED, str(error))
        with sender:
            sender.bind((interface, ethertype))
            segment = tcp_syn(source, destination, port, METADATA_PORT, sequence)
            packet = ip_packet(source, destination, TCP, segment)
            try:
                sender.sendto(packet, (interface, ethertype, 0, 0, gateway))
            except OSError as error:
                return Attempt(name, *_outcome(error), str(source), port)
            answer = _wait(sender, context.order.timeout, _answers(port))
        return _handshake(name, answer, str(source), port)

    return attempt


def _random_port() -> int:
    return random.choice(PORTS)  # noqa: S311 - tells packets apart, keeps no secret


def own_address(order: Order) -> str:
    """The namespace's IPv4 address: the order's, or the one its default route uses."""
    if order.address:
        return order.address
    # Connecting a datagram socket sends nothing; 192.0.2.1 is for documentation (RFC 5737) and behind no hook.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as chooser:
        chooser.connect(("192.0.2.1", 9))
        return str(chooser.getsockname()[0])


def own_address6(order: Order) -> str:
    """The namespace's IPv6 address; empty where there is none."""
    if order.address6 or order.address:
        return order.address6
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as chooser,
    ):
        chooser.connect(("2001:db8::1", 9))
        return str(chooser.getsockname()[0])
    return ""


def _gateway() -> tuple[str, bytes]:
    """The interface of the default route, and the MAC address of its next hop."""
    for interface, address in _default_routes():
        for line in Path("/proc/thread-self/net/arp").read_text().splitlines()[1:]:
            words = line.split()
            if words[0] == address and words[5] == interface and words[3] != "00:00:00:00:00:00":
                return interface, bytes.fromhex(words[3].replace(":", ""))
    raise LookupError("no next hop in the ARP table")


def _default_routes() -> Iterator[tuple[str, str]]:
    for line in Path("/proc/thread-self/net/route").read_text().splitlines()[1:]:
        interface, destination, gateway, *_ = line.split()
        if destination == "00000000":
            yield interface, socket.inet_ntoa(struct.pack("=I", int(gateway, 16)))


_MAPPED = f"::ffff:{METADATA_IPV4}"

WAYS: dict[str, Way] = {
    "tcp": _tcp("tcp", socket.AF_INET, str(METADATA_IPV4)),
    "tcp6": _tcp("tcp6", socket.AF_INET6, str(METADATA_IPV6)),
    "mapped": _tcp("mapped", socket.AF_INET6, _MAPPED),
    "fastopen": _tcp("fastopen", socket.AF_INET, str(METADATA_IPV4), connect=_fast_open),
    "mptcp": _tcp("mptcp", socket.AF_INET, str(METADATA_IPV4), protocol=IPPROTO_MPTCP),
    "mptcp-mapped": _tcp("mptcp-mapped", socket.AF_INET6, _MAPPED, protocol=IPPROTO_MPTCP),
    "io_uring": _tcp("io_uring", socket.AF_INET, str(METADATA_IPV4), connect=uring.connect),
    "raw": _raw_tcp,
    "packet": _packet("packet", ipv6=False),
    "packet6": _packet("packet6", ipv6=True),
    "other-port": _tcp("other-port", socket.AF_INET, str(METADATA_IPV4), OTHER_PORT),
    "udp": _udp,
    "icmp": _icmp,
}
