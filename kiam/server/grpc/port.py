"""The sockets that listen on the server's port."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable

from kiam.addresses import parse_listen_address, unmapped
from kiam.errors import ErrorKind, UserError

BACKLOG = 1024


def listen(bind: str) -> list[socket.socket]:
    """Listen on what ``--bind`` says, on each address of a host name. Raises UserError."""
    try:
        host, port = parse_listen_address(bind)
    except ValueError as error:
        raise UserError(f"--bind: {error}") from error
    sockets: list[socket.socket] = []
    try:
        for family, address in _resolve(host, port):
            if sockets and not port:
                # Port 0 stands for one free port, on all of the addresses.
                port = number(sockets[0])
            sockets.append(_listen(family, address, port))
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise UserError(
            f"--bind: can't listen on {bind}: it is in use, or not an address of this machine",
            kind=ErrorKind.BUSY if error.errno == errno.EADDRINUSE else ErrorKind.OTHER,
        ) from error
    return sockets


def listen_early(bind: str) -> Callable[[], list[socket.socket]]:
    """Listen, if that is possible; the sockets are had, or why there are none is said, by calling what is returned.

    A server whose other flags are wrong says so first, whoever has the port.
    """
    try:
        sockets = listen(bind)
    except UserError:
        return lambda: listen(bind)
    return lambda: sockets


def number(sock: socket.socket) -> int:
    """The port of a listening socket."""
    return int(sock.getsockname()[1])


def peer_of(sockaddr: tuple[str, int]) -> str:
    """The address in what ``accept`` says, in one form whichever family the listening socket has."""
    return str(unmapped(sockaddr[0]))


def reset(sock: socket.socket) -> None:
    """Close without a trace: a connection that was turned away must not cost a TIME-WAIT."""
    with contextlib.suppress(OSError):
        # struct linger: on, 0 seconds (socket(7)).
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()


def _resolve(host: str, port: int) -> list[tuple[socket.AddressFamily, str]]:
    """Every address is one IPv6 socket for both families, unless the machine has no IPv6."""
    if host in ("", "0.0.0.0", "::"):  # noqa: S104  # what the flag says
        return [(socket.AF_INET6, "::") if socket.has_dualstack_ipv6() else (socket.AF_INET, "0.0.0.0")]  # noqa: S104
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((socket.AddressFamily(family), str(name[0])) for family, _, _, _, name in found))


def _listen(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Without SO_REUSEPORT, with which a second server would quietly take half the connections.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
        sock.bind((host, port))
        sock.setblocking(False)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock
