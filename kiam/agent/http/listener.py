"""The agent's port: how an old and a new agent share it while one takes over from the other."""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from asyncio.trsock import TransportSocket
from ipaddress import IPv4Address, IPv6Address

from kiam.errors import UserError

BACKLOG = 1024
"""Connections that wait to be taken; event loops listen once more, with a number of their own unless told one."""
# asm-generic/socket.h; Python's socket module has no name for it.
_SO_ATTACH_REUSEPORT_CBPF = 51
_SO_ORIGINAL_DST = 80
"""linux/netfilter_ipv4.h; linux/netfilter_ipv6/ip6_tables.h has the same number for IPv6."""
# linux/bpf_common.h: BPF_RET | BPF_K.
_BPF_RETURN_CONSTANT = 0x06
_SOCKADDR_IN = struct.Struct("!2xH4s8x")
_SOCKADDR_IN6 = struct.Struct("!2xH4x16s4x")
"""Port and address; the family before and the scope behind are left out."""


def listen(port: int) -> socket.socket:
    """Listen on a port of every address, IPv4 and (where the node has it) IPv6.

    With SO_REUSEPORT, so that a new agent can start before the old one has stopped. The kernel lets only processes of
    the same user and network namespace share a port: no pod but one on the host network that runs as root
    (docs/security.md, "Pods on the host network that run as root"). Raises UserError when somebody else has it.
    """
    dual = socket.has_dualstack_ipv6()
    # As the conventional agent; pods come from anywhere.
    anywhere = "::" if dual else "0.0.0.0"  # noqa: S104  # pods come in on every interface
    try:
        return _listen(socket.AF_INET6 if dual else socket.AF_INET, anywhere, port, is_dual=dual)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"--port: port {port} is in use by another program; stop it or choose another") from error
        raise UserError(f"--port: can't listen on port {port}: {error.strerror}") from error


def listen_at(address: IPv4Address | IPv6Address, port: int) -> socket.socket:
    """Listen on a port of one address, shared like that of :func:`listen`. Raises OSError."""
    return _listen(socket.AF_INET6 if address.version == 6 else socket.AF_INET, str(address), port, is_dual=False)


def _listen(family: socket.AddressFamily, address: str, port: int, *, is_dual: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family is socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if is_dual else 1)
        sock.setblocking(False)
        sock.bind((address, port))
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def steer_away(sock: socket.socket) -> None:
    """Have the kernel hand new connections to the port's other listener, if there is one.

    Closing a listener resets the connections that wait in its queue, so it must stop getting any first. A classic BPF
    program chooses the listener of a SO_REUSEPORT group by its index: the oldest is 0, and when it goes, the last takes
    its place. This one always says 1. While there is only one listener there is no 1, and the kernel falls back to
    its usual choice (net/core/sock_reuseport.c, reuseport_select_sock), so the program does no harm when it is left
    on the group. Needs no privilege; Linux 4.5.
    """
    instruction = ctypes.create_string_buffer(struct.pack("=HBBI", _BPF_RETURN_CONSTANT, 0, 0, 1))
    # struct sock_fprog (linux/filter.h): how many instructions, and where they are.
    program = struct.pack("HP", 1, ctypes.addressof(instruction))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, program)


def original_destination(connection: socket.socket | TransportSocket, client: str) -> tuple[str, int] | None:
    """Where a client's packets were addressed before the kernel translated that to our end, by its connection tracking.

    ``client`` is its canonical address. None: nothing tracks the connection, so nothing has translated it.
    """
    try:
        if ":" in client:
            raw = connection.getsockopt(socket.IPPROTO_IPV6, _SO_ORIGINAL_DST, _SOCKADDR_IN6.size)
            port, address = _SOCKADDR_IN6.unpack(raw)
            return str(IPv6Address(address)), port
        # It answers for an IPv4 client of an IPv6 socket, too.
        port, address = _SOCKADDR_IN.unpack(
            connection.getsockopt(socket.IPPROTO_IP, _SO_ORIGINAL_DST, _SOCKADDR_IN.size)
        )
        return str(IPv4Address(address)), port
    except OSError:
        return None


def is_served(port: int) -> bool:
    """Whether somebody listens on the port of this machine: another agent, as far as anyone can tell."""
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.settimeout(1.0)
                probe.connect((address, port))
                return True
        except OSError:
            continue
    return False
