"""The server's port: who gets through to gRPC, and which way.

It listens from the server's first moment, before gRPC, boto3 and kubernetes are even imported: a conventional agent
gives up when it has no connection after a second. It ends TLS itself, so that it can bound what strangers cost and take
certificates that gRPC's own TLS refuses (:mod:`kiam.tls.anyusage`). A client is then

- told to come again, if its certificate is one that gRPC takes: with HTTP/2's GOAWAY, which every gRPC client follows
  at once and without losing a call. For the next seconds the kernel gives connections from its address to gRPC's own
  listener on the same port (:mod:`kiam.server.grpc.steering`), so nothing stands between the two any more;
- joined to gRPC over a Unix socket, if gRPC would refuse its certificate, or where the kernel can't steer. Who it is
  goes by the Unix socket's own name, which the front chooses and nobody else can bind.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from OpenSSL import SSL

from kiam.addresses import unmapped
from kiam.errors import ErrorKind, UserError
from kiam.server.grpc.admission import Admission, Stage
from kiam.server.grpc.steering import FRONT, MOST, attach, program
from kiam.telemetry import parse_listen_address
from kiam.tls import TLSMaterial
from kiam.tls.anyusage import make_context, peer_certificate, was_lenient
from kiam.tls.certificates import Side
from kiam.tls.relay import PlainEnd, TLSEnd, endpoint
from kiam.tls.reload import TLSReloader

log = logging.getLogger(__name__)

BACKLOG = 1024
ACCEPTS_AT_A_TIME = 64
"""Then the event loop gets its turn."""
COME_AGAIN_SECONDS = 10.0
"""For so long after a handshake, connections from its address go to gRPC's own listener."""
LENIENT_SECONDS = 3600.0
"""An address with a certificate that gRPC refuses stays with the front for so long: others may share the address."""
LINGER_SECONDS = 5.0
"""A client that was told to come again closes this connection; after so long we do."""
RETURNS = 3
"""An address that comes back so often though it was told to come again isn't steered, by whatever is in between."""

SETTINGS = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""An empty SETTINGS frame, with which a server begins (RFC 9113, 3.4, 6.5)."""
GOAWAY = bytes((0, 0, 8, 7, 0, 0, 0, 0, 0)) + bytes(8)
"""No stream was looked at, no error (RFC 9113, 6.8): the client may send all its calls again elsewhere."""

Address = IPv4Address | IPv6Address


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


class Front:
    """Opens the port with :meth:`open`, serves it from :meth:`start` on; :meth:`connect` once gRPC listens."""

    def __init__(self, bind: str, tls: TLSReloader, admission: Admission | None = None) -> None:
        self._bind = bind
        self._reloader = tls
        self.admission = admission or Admission()
        self._context: tuple[TLSMaterial, SSL.Context] | None = None
        self._sockets: list[socket.socket] = []
        self._open: set[_Connection] = set()
        self._early: set[_Connection] = set()
        self._backend = ""
        self._steers = False
        self._expected: dict[Address, float] = {}
        self._lenient: dict[str, float] = {}
        self._returned: dict[str, int] = {}
        self._callers: dict[str, frozenset[str]] = {}
        self._joining: set[asyncio.Task[None]] = set()
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
        names = [sock.getsockname() for sock in self._sockets]
        return [f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}" for name in names]

    def start(self) -> None:
        """Serve the port."""
        loop = asyncio.get_running_loop()
        for sock in self._sockets:
            loop.add_reader(sock, self._accept, sock)

    def connect(self, path: str) -> None:
        """gRPC listens now: on a Unix socket, and on the port if :attr:`steers`."""
        self._backend = path
        for connection in list(self._early):
            self._come_again(connection)

    def caller(self, peer: str) -> frozenset[str] | None:
        """The DNS names in the certificate behind a Unix socket, as gRPC names the peer; None: nobody we joined."""
        return self._callers.get(peer)

    def close(self) -> None:
        """Stop listening, and end what is open."""
        loop = None
        with contextlib.suppress(RuntimeError):
            loop = asyncio.get_running_loop()
        for sock in self._sockets:
            if loop is not None:
                loop.remove_reader(sock)
            sock.close()
        self._sockets = []
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
            connection.timer = loop.call_later(
                self.admission.bounds.handshake_seconds, self._forget, connection
            )
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
        now = asyncio.get_running_loop().time()
        self.admission.authenticated(connection.address)
        self._end_handshake(connection)
        assert connection.tls is not None
        if was_lenient(connection.tls.connection):
            self._lenient[connection.address] = now + LENIENT_SECONDS
        if not self._backend:
            # The client's connection is up with this, which is all that a conventional agent waits for.
            connection.tls.write(SETTINGS)
            self._early.add(connection)
        elif self._expect(connection.address, now):
            connection.tls.write(SETTINGS)
            self._come_again(connection)
        else:
            self._run(self._join(connection))

    def _expect(self, address: str, now: float) -> bool:
        """Have the kernel give connections from an address to gRPC; False: this one has to be joined."""
        if not self._steers or self._lenient.get(address, 0.0) > now:
            return False
        returned = self._returned[address] = self._returned.get(address, 0) + 1
        if returned > RETURNS or len(self._expected) >= MOST:
            return False
        self._expected[unmapped(address)] = now + COME_AGAIN_SECONDS
        self._steer()
        self._sweep_at(now + COME_AGAIN_SECONDS)
        return True

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
        self._returned = {address: n for address, n in self._returned.items() if unmapped(address) in self._expected}
        self._steer()
        if self._expected:
            self._sweep_at(min(self._expected.values()))

    def _come_again(self, connection: _Connection) -> None:
        self._early.discard(connection)
        assert connection.tls is not None
        connection.tls.write(GOAWAY)
        connection.timer = asyncio.get_running_loop().call_later(LINGER_SECONDS, connection.tls.close)

    async def _join(self, connection: _Connection) -> None:
        """Make a Unix connection to gRPC whose name stands for the client."""
        tls = connection.tls
        assert tls is not None
        if not self.admission.joins(connection.address):
            tls.close()
            return
        self._next += 1
        connection.name = f"{self._prefix}-{self._next}"
        self._callers[f"unix-abstract:{connection.name}"] = frozenset(peer_certificate(tls.connection).dns_names)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.bind(f"\0{connection.name}")
            loop = asyncio.get_running_loop()
            await loop.sock_connect(sock, self._backend)
            await loop.create_unix_connection(lambda: PlainEnd(tls), sock=sock)
        except OSError as error:
            log.warning("a client can't be joined to gRPC: %s", error)
            sock.close()
            tls.close()

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
        if connection.name:
            del self._callers[f"unix-abstract:{connection.name}"]
            self.admission.leaves(connection.address)
        if connection.tls is None:
            asyncio.get_running_loop().remove_reader(connection.sock)
            _reset(connection.sock)
        else:
            connection.tls.abort()

    def _run(self, work: object) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(work)  # type: ignore[arg-type]  # awaitables of two kinds
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
    """Where to listen. For every address: one socket for both families, as gRPC does it."""
    if host in ("", "0.0.0.0", "::"):  # noqa: S104  # what the flag says
        return [(socket.AF_INET6, ("::", port)) if socket.has_dualstack_ipv6() else (socket.AF_INET, ("0.0.0.0", port))]  # noqa: S104
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((family, (str(sockaddr[0]), port)) for family, _, _, _, sockaddr in found))


def _listen(
    family: socket.AddressFamily, sockaddr: tuple[str, int], others: list[socket.socket]
) -> socket.socket:
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
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
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
