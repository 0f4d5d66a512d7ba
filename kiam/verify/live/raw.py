"""The bypasses for which a program makes its packets itself."""

from __future__ import annotations

import os
import random
import socket
import struct
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from kiam.metadata import METADATA_IPV4, METADATA_IPV6, METADATA_PORT
from kiam.verify.live.attempts import Attempt, Outcome
from kiam.verify.live.context import Context, Route, outcome_of, own_address, own_address6
from kiam.verify.live.frames import (
    ACK,
    ETH_P_8021Q,
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

PORTS = range(20000, 32768)
"""For the raw probes: below the range the kernel gives out by itself, so that no socket of the pod answers."""


def icmp(context: Context) -> Attempt:
    """An echo request, known again by its payload."""
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
            return Attempt("icmp", *outcome_of(error), sent=((ICMP, nonce.hex()),))
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


def raw_tcp(context: Context) -> Attempt:
    """A SYN from a raw socket."""
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
            return Attempt("raw", *outcome_of(error), str(source), port)
        answer = _wait(raw, context.order.timeout, _answers(port))
    return _handshake("raw", answer, str(source), port)


def _answers(port: int) -> Callable[[Seen], bool]:
    return lambda seen: seen.protocol == TCP and seen.destination_port == port


def _handshake(route: str, answer: Seen | None, source: str, port: int) -> Attempt:
    if answer is None:
        return Attempt(route, Outcome.SILENCE, "no answer", source, port)
    if answer.flags & (SYN | ACK) == SYN | ACK:
        return Attempt(route, Outcome.ANSWERED, "SYN-ACK", source, port)
    return Attempt(route, Outcome.REFUSED, "RST", source, port)


def packet(name: str, ipv6: bool) -> Route:
    """A SYN from a packet socket."""

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
            frame = ip_packet(source, destination, TCP, segment)
            try:
                sender.sendto(frame, (interface, ethertype, 0, 0, gateway))
            except OSError as error:
                return Attempt(name, *outcome_of(error), str(source), port)
            answer = _wait(sender, context.order.timeout, _answers(port))
        return _handshake(name, answer, str(source), port)

    return attempt


def tagged(name: str, number: int) -> Route:
    """A SYN in a frame with a VLAN tag of that number; 0 is a priority tag, which the kernel takes off by itself."""

    def attempt(context: Context) -> Attempt:
        source, destination = IPv4Address(own_address(context.order)), METADATA_IPV4
        port, sequence = _random_port(), random.getrandbits(32)
        try:
            interface, gateway = _gateway()
            sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        except (OSError, LookupError) as error:
            return Attempt(name, Outcome.UNSUPPORTED, str(error))
        syn = ((TCP, f"{sequence:08x}"),)
        with sender:
            sender.bind((interface, 0))
            own = sender.getsockname()[4]
            segment = tcp_syn(source, destination, port, METADATA_PORT, sequence)
            frame = gateway + own + struct.pack("!HHH", ETH_P_8021Q, number, ETH_P_IP)
            try:
                sender.send(frame + ip_packet(source, destination, TCP, segment))
            except OSError as error:
                return Attempt(name, *outcome_of(error), str(source), port)
        # Nothing to wait for: what comes back has no tag and goes to nobody.
        return Attempt(name, Outcome.SILENCE, "no answer", str(source), port, syn)

    return attempt


def _random_port() -> int:
    return random.choice(PORTS)  # noqa: S311 - tells packets apart, keeps no secret


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
