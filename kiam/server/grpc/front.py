"""The server's port: who gets through to gRPC, and which way.

It listens from the server's first moment, before gRPC, boto3 and kubernetes are even imported: a conventional agent
gives up when it has no connection after a second. It ends TLS itself, so that it can bound what strangers cost and take
certificates that gRPC's own TLS refuses (:mod:`kiam.tls.anyusage`), and joins the client to gRPC over a Unix socket.
Who the client is goes by the Unix connection's own name, which the front chooses and nobody else can bind.

Where gRPC takes the certificate itself, nothing should stand between the two for long. So such a client is joined to a
gRPC server that soon asks it to connect again (HTTP/2's GOAWAY, after which calls under way end in peace), and at that
time the kernel gives connections from its address to gRPC's own listener on the same port
(:mod:`kiam.server.grpc.steering`).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import secrets
import socket
from collections.abc import Coroutine
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from OpenSSL import SSL

from kiam.addresses import unmapped
from kiam.errors import ErrorKind, UserError
from kiam.server.grpc.admission import Admission, Bounds, Stage
from kiam.server.grpc.steering import MOST, attach, program
from kiam.telemetry import parse_listen_address
from kiam.tls import TLSMaterial
from kiam.tls.anyusage import make_context, peer_certificate, was_lenient
from kiam.tls.relay import PlainEnd, TLSEnd, endpoint
from kiam.tls.reload import TLSReloader
from kiam.tls.summary import Side

log = logging.getLogger(__name__)

BACKLOG = 1024
ACCEPTS_AT_A_TIME = 64
"""Then the event loop gets its turn."""
COME_AGAIN_SECONDS = 5.0
"""A client whose certificate gRPC takes is asked to connect again after so long."""
EXPECTED_AFTER, EXPECTED_SECONDS = 0.85 * COME_AGAIN_SECONDS, 0.5 * COME_AGAIN_SECONDS
"""When connections from its address begin to go to gRPC's own listener, and for how long.

gRPC asks up to a tenth of the time sooner or later. Not longer, since others, whose certificates gRPC refuses, may
share the address."""
LENIENT_SECONDS = 3600.0
"""An address with a certificate that gRPC refuses stays with the front for so long: others may share the address."""
Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Backends:
    """Paths of gRPC's Unix sockets."""

    lasting: str
    brief: str
    """Its server asks clients to connect again after COME_AGAIN_SECONDS."""


@dataclass(slots=True, eq=False)
class _Connection:
    """One client's, from the first moment on."""

    sock: socket.socket
    address: str
    stranger: bool
    shaking: bool = True
    tls: TLSEnd | None = None
    timer: asyncio.TimerHandle | None = None
    name: str = ""
    """The abstract name of its Unix socket, while it is joined."""


@dataclass(frozen=True, slots=True)
class _Caller:
    """Who is behind a Unix connection of ours."""

    address: str
    names: frozenset[str]


class Front:
    """Opens the port with :meth:`open`, serves it from :meth:`start` on; :meth:`connect` once gRPC listens."""

    def __init__(self, bind: str, tls: TLSReloader, bounds: Bounds | None = None) -> None:
        self._bind = bind
        self._reloader = tls
        self.admission = Admission(bounds)
        self._context: tuple[TLSMaterial, SSL.Context] | None = None
        self._sockets: list[socket.socket] = []
        self._open: set[_Connection] = set()
        self._early: set[_Connection] = set()
        self._backends: Backends | None = None
        self._steers = False
        self._expected: dict[Address, float] = {}
        self._lenient: dict[str, float] = {}
        self._callers: dict[str, _Caller] = {}
        self._joining: set[asyncio.Task[Any]] = set()
        self._prefix = f"kiam-{secrets.token_hex(8)}"
        self._next = 0
        self._sweeper: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Listen. Connections wait in the kernel until :meth:`start`. Raises UserError."""
        try:
            host, port = parse_listen_address(self._bind)
        except ValueError as error:
            raise UserError(f"--bind: {error}") from error
        try:
            for family, sockaddr in _resolve(host, port):
                self._sockets.append(_listen(family, sockaddr, self._sockets))
        except OSError as error:
            self.close()
            raise UserError(
                f"--bind: can't listen on {self._bind}: it is in use, or not an address of this machine",
                kind=ErrorKind.BUSY if error.errno == errno.EADDRINUSE else ErrorKind.OTHER,
            ) from error
        try:
            for sock in self._sockets:
                attach(sock, program(()))
            self._steers = True
        except OSError as error:
            log.debug("this kernel doesn't steer connections, all go through the front: %s", error)

    @property
    def port(self) -> int:
        """The port's number."""
        return int(self._sockets[0].getsockname()[1]) if self._sockets else 0

    @property
    def steers(self) -> bool:
        """Whether gRPC may have a listener of its own on the port."""
        return self._steers

    @property
    def endpoints(self) -> list[str]:
        """What it listens on, as gRPC writes addresses."""
        names = [(str(unmapped(name[0])), name[1]) for name in (sock.getsockname() for sock in self._sockets)]
        return [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in names]

    def start(self) -> None:
        """Serve the port."""
        loop = asyncio.get_running_loop()
        for sock in self._sockets:
            loop.add_reader(sock, self._accept, sock)

    def connect(self, backends: Backends) -> None:
        """gRPC listens now: on Unix sockets, and on the port if :attr:`steers`."""
        self._backends = backends
        early, self._early = self._early, set()
        for connection in early:
            self._run(self._join(connection, backends))

    def caller(self, peer: str) -> frozenset[str] | None:
        """The DNS names in the certificate behind a Unix socket, as gRPC names the peer; None: nobody we joined."""
        caller = self._callers.get(peer)
        return None if caller is None else caller.names

    def address(self, peer: str) -> str:
        """The address that a client joined over a Unix socket connects from; empty: nobody we joined."""
        caller = self._callers.get(peer)
        return "" if caller is None else caller.address

    def stop(self) -> None:
        """Take no more connections; those that are open go on."""
        for sock in self._sockets:
            with contextlib.suppress(RuntimeError):
                asyncio.get_running_loop().remove_reader(sock)
            sock.close()
        self._sockets = []

    def close(self) -> None:
        """Stop, and end what is open."""
        self.stop()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for task in self._joining:
            task.cancel()
        for connection in list(self._open):
            if connection.tls is not None:
                connection.tls.abort()
            self._forget(connection)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS_AT_A_TIME):
            try:
                sock, sockaddr = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                # Out of descriptors, or the client has already gone.
                log.debug("accept: %s", error)
                return
            address = str(unmapped(sockaddr[0]))
            stranger = self.admission.begins(address)
            if stranger is None:
                _reset(sock)
                continue
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = _Connection(sock, address, stranger)
            self._open.add(connection)
            loop = asyncio.get_running_loop()
            connection.timer = loop.call_later(self.admission.bounds.handshake_seconds, self._forget, connection)
            # Nothing is made for a connection that has said nothing: 20,000 of them cost their sockets only.
            loop.add_reader(sock, self._first_bytes, connection)

    def _first_bytes(self, connection: _Connection) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(connection.sock)
        if not self.admission.may_shake_hands(connection.address, loop.time()):
            self._forget(connection)
            return
        tls = TLSEnd(
            endpoint(self._current_context(), server=True),
            lambda _: self._verified(connection),
            lambda _: self._forget(connection),
        )
        connection.tls = tls
        self._run(loop.connect_accepted_socket(lambda: tls, connection.sock))

    def _current_context(self) -> SSL.Context:
        material = self._reloader.material
        if self._context is None or self._context[0] is not material:
            self._context = (material, make_context(material, Side.CLIENT))
        return self._context[1]

    def _verified(self, connection: _Connection) -> None:
        """The client has shown a certificate of the authority."""
        self.admission.authenticated(connection.address)
        self._end_handshake(connection)
        if self._backends is None:
            self._early.add(connection)
        else:
            self._run(self._join(connection, self._backends))

    def _expect(self, address: str) -> None:
        """Have the kernel give further connections from an address to gRPC, which is about to ask for one."""
        now = asyncio.get_running_loop().time()
        if not self._steers or self._lenient.get(address, 0.0) > now or len(self._expected) >= MOST:
            # It comes back to the front, and is asked again later.
            return
        new = unmapped(address) not in self._expected
        self._expected[unmapped(address)] = now + EXPECTED_SECONDS
        if new:
            self._steer()
        self._sweep_at(now + EXPECTED_SECONDS)

    def _steer(self) -> None:
        try:
            for sock in self._sockets:
                attach(sock, program(self._expected))
        except OSError as error:
            log.warning("connections can't be steered past the front any more: %s", error)
            self._steers = False

    def _sweep_at(self, moment: float) -> None:
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_at(moment, self._sweep)

    def _sweep(self) -> None:
        self._sweeper = None
        now = asyncio.get_running_loop().time()
        self._expected = {address: until for address, until in self._expected.items() if until > now}
        self._lenient = {address: until for address, until in self._lenient.items() if until > now}
        self._steer()
        if self._expected:
            self._sweep_at(min(self._expected.values()))

    async def _join(self, connection: _Connection, backends: Backends) -> None:
        """Make a Unix connection to gRPC whose name stands for the client."""
        tls = connection.tls
        assert tls is not None
        if not self.admission.joins(connection.address):
            tls.close()
            return
        loop = asyncio.get_running_loop()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._name(connection, sock, frozenset(peer_certificate(tls.connection).dns_names))
        except (OSError, ValueError) as error:
            log.warning("a client can't be joined to gRPC: %s", error)
            self.admission.leaves(connection.address)
            sock.close()
            tls.close()
            return
        if was_lenient(tls.connection):
            self._lenient[connection.address] = loop.time() + LENIENT_SECONDS
            # A connection that gRPC gets from here on by steering would be refused.
            if self._expected.pop(unmapped(connection.address), None) is not None:
                self._steer()
        brief = self._steers and self._lenient.get(connection.address, 0.0) <= loop.time()
        if brief:
            connection.timer = loop.call_later(EXPECTED_AFTER, self._expect, connection.address)
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, backends.brief if brief else backends.lasting)
            await loop.create_unix_connection(lambda: PlainEnd(tls), sock=sock)
        except OSError as error:
            log.warning("a client can't be joined to gRPC: %s", error)
            sock.close()
            tls.close()

    def _name(self, connection: _Connection, sock: socket.socket, dns_names: frozenset[str]) -> None:
        """Give the socket a name that stands for the client. Raises OSError when somebody else has it.

        Which attack: a program beside the server that has bound the next name would be taken for the client. So the
        name stands for nobody until it is ours.
        """
        self._next += 1
        name = f"{self._prefix}-{self._next}"
        sock.bind(f"\0{name}")
        connection.name = name
        self._callers[f"unix-abstract:{name}"] = _Caller(connection.address, dns_names)

    def _end_handshake(self, connection: _Connection) -> None:
        if connection.shaking:
            connection.shaking = False
            self.admission.ended(connection.address, connection.stranger)
        if connection.timer is not None:
            connection.timer.cancel()
            connection.timer = None

    def _forget(self, connection: _Connection) -> None:
        """The end of a connection: it closed, or its time is up."""
        if connection not in self._open:
            return
        self._open.discard(connection)
        self._early.discard(connection)
        self._end_handshake(connection)
        if connection.timer is not None:
            connection.timer.cancel()
        if connection.name:
            del self._callers[f"unix-abstract:{connection.name}"]
            self.admission.leaves(connection.address)
        if connection.tls is None:
            asyncio.get_running_loop().remove_reader(connection.sock)
            _reset(connection.sock)
        else:
            connection.tls.abort()

    def _run(self, work: Coroutine[Any, Any, Any]) -> None:
        task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(work)
        self._joining.add(task)
        task.add_done_callback(self._joining.discard)

    def counts(self) -> dict[str, int]:
        """Connections by stage, and how many were turned away so far."""
        return {
            "handshake": self.admission.count(Stage.HANDSHAKE),
            "joined": self.admission.count(Stage.JOINED),
            "refused": self.admission.refused,
        }


def _resolve(host: str, port: int) -> list[tuple[socket.AddressFamily, tuple[str, int]]]:
    """Where to listen, by sockets of the kind that gRPC makes: the kernel steers among its like only.

    That is IPv6 sockets for IPv4 addresses too, and one for both families for every address (gRPC,
    grpc_create_dualstack_socket), unless the machine has no IPv6.
    """
    dual = socket.has_dualstack_ipv6()
    if host in ("", "0.0.0.0", "::"):  # noqa: S104  # what the flag says
        return [(socket.AF_INET6, ("::", port)) if dual else (socket.AF_INET, ("0.0.0.0", port))]  # noqa: S104
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    addresses = dict.fromkeys((family, str(sockaddr[0])) for family, _, _, _, sockaddr in found)
    return [
        (socket.AF_INET6, (f"::ffff:{address}", port))
        if dual and family == socket.AF_INET
        else (socket.AddressFamily(family), (address, port))
        for family, address in addresses
    ]


def _listen(family: socket.AddressFamily, sockaddr: tuple[str, int], others: list[socket.socket]) -> socket.socket:
    """One listening socket. Raises OSError, also when somebody else has the port, of whatever user."""
    host, port = sockaddr
    if not port and others:
        port = others[0].getsockname()[1]
    if port:
        # Without SO_REUSEPORT, with which a second server would quietly take half the connections.
        with _bound(family, host, port, shared=False) as probe:
            probe.listen()
    sock = _bound(family, host, port, shared=True)
    try:
        sock.setblocking(False)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _bound(family: socket.AddressFamily, host: str, port: int, *, shared: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    return sock


def _reset(sock: socket.socket) -> None:
    """Close without a trace: a connection that was turned away must not cost a TIME-WAIT."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()
