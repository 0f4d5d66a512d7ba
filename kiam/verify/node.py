"""The node's own addresses."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address

from kiam.dataplane.addresses import is_local


def usable(address: IPv4Address | IPv6Address) -> bool:
    """Whether pods can be led to it: an address of this node that isn't a loopback one."""
    return not address.is_loopback and not address.is_unspecified and is_local(address)


def own_address() -> IPv4Address | None:
    """The address packets leave the node with; None without a route."""
    # Connecting a datagram socket sends nothing. These networks are for documentation (RFC 5737).
    for elsewhere in ("192.0.2.1", "198.51.100.1"):
        found = _source(socket.AF_INET, elsewhere)
        if found is not None and found != elsewhere and usable(IPv4Address(found)):
            return IPv4Address(found)
    return None


def own_address6() -> IPv6Address | None:
    """The same over IPv6."""
    found = _source(socket.AF_INET6, "2001:db8::1")
    if found is None or IPv6Address(found).is_link_local or not usable(IPv6Address(found)):
        return None
    return IPv6Address(found)


def _source(family: socket.AddressFamily, elsewhere: str) -> str | None:
    try:
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as chooser:
            chooser.connect((elsewhere, 9))
            return str(chooser.getsockname()[0])
    except OSError:
        return None
