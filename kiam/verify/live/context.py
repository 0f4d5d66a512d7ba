"""What the routes share."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

from kiam.verify.live.attempts import Attempt, Order, Outcome

BLOCKED = frozenset({errno.EPERM, errno.EACCES})
UNSUPPORTED = frozenset(
    {errno.EPROTONOSUPPORT, errno.ENOSYS, errno.EAFNOSUPPORT, errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.EADDRNOTAVAIL}
)


@dataclass(slots=True)
class Context:
    """What the routes of one order share."""

    order: Order
    open: dict[str, socket.socket] = field(default_factory=dict)
    """Connections that are kept until the host has looked for its end of them."""


Route = Callable[[Context], Attempt]


def outcome_of(error: OSError) -> tuple[Outcome, str]:
    """What an error of a socket says, and its words."""
    detail = error.strerror or str(error) or type(error).__name__
    if isinstance(error, TimeoutError) or error.errno in {errno.ETIMEDOUT, errno.EINPROGRESS, errno.EAGAIN}:
        return Outcome.SILENCE, "no answer"
    if error.errno in BLOCKED:
        return Outcome.BLOCKED, detail
    if error.errno in UNSUPPORTED:
        return Outcome.UNSUPPORTED, detail
    return Outcome.REFUSED, detail


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
