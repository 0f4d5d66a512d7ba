"""Checks on the addresses of a wanted state that every dataplane makes before it touches the kernel."""

from __future__ import annotations

import errno
import socket
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from kiam.dataplane.contract import WantedState
from kiam.errors import UserError
from kiam.metadata import METADATA_IPV4, METADATA_IPV6

_FIB_TRIE = Path("/proc/thread-self/net/fib_trie")


def is_local(address: IPv4Address | IPv6Address) -> bool:
    """Whether this network namespace has the address.

    Asked through routing, not by binding, which works for any address where ``ip_nonlocal_bind`` is set: a packet to
    one of its own addresses is the only one that a host sends from that same address. To its second address in a
    network it sends from the first, though, so where they differ the table of local addresses decides.
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(address), 9))
            return str(probe.getsockname()[0]) == str(address) or _is_listed(address)
    except OSError as error:
        if error.errno in (
            errno.ENETUNREACH,
            errno.EHOSTUNREACH,
            errno.EAFNOSUPPORT,
            errno.EADDRNOTAVAIL,
            errno.EACCES,
        ):
            return False
        raise


def _is_listed(address: IPv4Address | IPv6Address) -> bool:
    # proc(5); "host LOCAL" stands in the line after the address.
    if address.version == 6 or not _FIB_TRIE.exists():
        return False
    lines = iter(_FIB_TRIE.read_text().splitlines())
    return any(line.endswith(f"|-- {address}") and "/32 host LOCAL" in next(lines, "") for line in lines)


def _require_unicast(address: IPv4Address | IPv6Address, flag: str) -> None:
    if address in (METADATA_IPV4, METADATA_IPV6):
        raise UserError(f"{flag} {address} is the instance metadata service itself: give the node's own address")
    if address.is_unspecified or address.is_multicast or address.is_loopback:
        # DNAT to 127.0.0.1 is dropped as martian (route_localnet), so pods would get no answer.
        raise UserError(f"{flag} {address} can't be reached from pods: give an address of the node's network interface")


def _check_forwarding(wanted: WantedState) -> None:
    # "!eth0" and "+" fit nearly every interface, so there the interface named has the last word.
    forward, pods = wanted.forward_from, wanted.interface
    if forward is not None and pods.name and not pods.inverted and forward.overlaps(pods):
        raise UserError(
            f"--forward-metadata=allow:{forward} names interfaces of pods ({pods}), which would get the node's "
            "credentials: name the interface of what isn't a pod"
        )


def check_addresses(wanted: WantedState) -> None:
    """Refuse to lead pods to an address that isn't this node's. Raises UserError.

    Stops a wrong HOST_IP from sending every pod's metadata requests, and so the pods' credentials, to another machine.
    """
    for address, flag in ((wanted.host_address, "--host"), (wanted.host_address6, "--host6")):
        if address is None:
            continue
        _require_unicast(address, flag)
        if not is_local(address):
            raise UserError(
                f"{flag} {address} is not an address of this node (see 'ip address'): give the node's own, and run "
                "this in the node's network namespace (hostNetwork: true)"
            )
    _check_forwarding(wanted)
    if not 1 <= wanted.port <= 65535:
        raise UserError(f"--port {wanted.port} is not a port: give one from 1 to 65535")
