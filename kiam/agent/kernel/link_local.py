"""Gives the node the addresses of the container credentials endpoint: ``python -m kiam.agent.kernel.link_local``.

They become the node's own, on the loopback interface, so that whatever a pod sends there is delivered on the node, by
every dataplane and for pods on the host network too, and reaches the agent or nobody. Nothing takes them away when the
agent ends: without it a connection is refused. A process of its own, as the agent itself can do without pyroute2.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys

from pyroute2 import IPRoute, NetlinkError

from kiam.metadata import CONTAINER_CREDENTIALS_IPV4, CONTAINER_CREDENTIALS_IPV6

_HOST_SCOPE = 254
"""RT_SCOPE_HOST (linux/rtnetlink.h): valid on this machine only, so that no connection to elsewhere is made from it."""
_NOT_THERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EOPNOTSUPP)


def assign() -> None:
    """Have both addresses on ``lo``; IPv6 only where the node has it. Raises NetlinkError, OSError."""
    with IPRoute() as netlink:
        (loopback,) = netlink.link_lookup(ifname="lo")
        netlink.addr(
            "replace", index=loopback, address=str(CONTAINER_CREDENTIALS_IPV4), prefixlen=32, scope=_HOST_SCOPE
        )
        if _has_ipv6():
            # Deprecated from the start: it is never chosen as the source of a connection to elsewhere.
            netlink.addr(
                "replace",
                index=loopback,
                family=socket.AF_INET6,
                address=str(CONTAINER_CREDENTIALS_IPV6),
                prefixlen=128,
                preferred=0,
                valid=2**32 - 1,
            )


def withdraw() -> None:
    """Take both addresses away; those that aren't there are fine. Raises NetlinkError, OSError."""
    with IPRoute() as netlink:
        (loopback,) = netlink.link_lookup(ifname="lo")
        for address, length in ((CONTAINER_CREDENTIALS_IPV4, 32), (CONTAINER_CREDENTIALS_IPV6, 128)):
            try:
                netlink.addr("delete", index=loopback, address=str(address), prefixlen=length)
            except NetlinkError as error:
                if error.code not in _NOT_THERE:
                    raise


def _has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
        probe.bind(("::1", 0))
        return True
    return False


def main() -> int:
    """Assign; what goes wrong is one line on standard error."""
    try:
        assign()
    except NetlinkError as error:
        sys.stderr.write(f"{os.strerror(error.code)}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"{error.strerror}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
