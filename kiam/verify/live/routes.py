"""The routes by which a program in a pod can try to get to the metadata service."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable

from kiam.metadata import METADATA_IPV4, METADATA_IPV6, METADATA_PORT
from kiam.verify.live import encapsulated, raw, uring
from kiam.verify.live.attempts import Attempt, Outcome
from kiam.verify.live.context import Context, Route, outcome_of

IPPROTO_MPTCP = 262
OTHER_PORT = 443


def _tcp(
    name: str,
    family: socket.AddressFamily,
    host: str,
    port: int = METADATA_PORT,
    protocol: int = socket.IPPROTO_TCP,
    connect: Callable[[socket.socket, tuple[str, int], float], None] | None = None,
) -> Route:
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
            outcome, detail = outcome_of(error)
        address = ""
        with contextlib.suppress(OSError):
            address = connection.getsockname()[0]
        return Attempt(name, outcome, detail, address, own_port)

    return attempt


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
            outcome, detail = outcome_of(error)
        return Attempt("udp", outcome, detail, *sender.getsockname())


_MAPPED = f"::ffff:{METADATA_IPV4}"

ROUTES: dict[str, Route] = {
    "tcp": _tcp("tcp", socket.AF_INET, str(METADATA_IPV4)),
    "tcp6": _tcp("tcp6", socket.AF_INET6, str(METADATA_IPV6)),
    "mapped": _tcp("mapped", socket.AF_INET6, _MAPPED),
    "fastopen": _tcp("fastopen", socket.AF_INET, str(METADATA_IPV4), connect=_fast_open),
    "mptcp": _tcp("mptcp", socket.AF_INET, str(METADATA_IPV4), protocol=IPPROTO_MPTCP),
    "mptcp-mapped": _tcp("mptcp-mapped", socket.AF_INET6, _MAPPED, protocol=IPPROTO_MPTCP),
    "io_uring": _tcp("io_uring", socket.AF_INET, str(METADATA_IPV4), connect=uring.connect),
    "raw": raw.raw_tcp,
    "packet": raw.packet("packet", ipv6=False),
    "packet6": raw.packet("packet6", ipv6=True),
    "vlan0": raw.tagged("vlan0", 0),
    "vlan": raw.tagged("vlan", 5),
    **{kind: encapsulated.route(kind) for kind in encapsulated.WRAP},
    "other-port": _tcp("other-port", socket.AF_INET, str(METADATA_IPV4), OTHER_PORT),
    "udp": _udp,
    "icmp": raw.icmp,
}
