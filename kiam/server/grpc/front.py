"""The server's port: who gets through to gRPC.

It listens from the server's first moment, before gRPC, boto3 and kubernetes are even imported: a conventional agent
gives up when it has no connection after a second (:mod:`kiam.server.grpc.preface`). It ends TLS itself, so that it can
bound what each client costs, and take certificates that gRPC's own TLS refuses (:mod:`kiam.tls.anyusage`), and joins
the client to gRPC over a Unix socket. Who the client is goes by the Unix connection's own name, which the front chooses
and nobody else can bind.

There is no other way to gRPC. Which attack: gRPC counts its connections in all and not by address, and knows nothing of
strangers; whoever reached a socket of its own, from an agent's address or with one stolen certificate, could take all
connections for themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from OpenSSL import SSL

from kiam.errors import UserError
from kiam.server.grpc.admission import Admission, Bounds, Stage
from kiam.server.grpc.joined import JoinedClients
from kiam.server.grpc.port import number, peer_of, reset
from kiam.server.grpc.preface import FIRST_SETTINGS, FirstAcknowledgement
from kiam.tls import TLSMaterial
from kiam.tls.anyusage import make_context, peer_certificate
from kiam.tls.relay import PlainEnd, TLSEnd, endpoint, reason
from kiam.tls.reload import TLSReloader
from kiam.tls.summary import Side

log = logging.getLogger(__name__)

ACCEPTS_AT_A_TIME = 64
"""Then the event loop gets its turn."""


@dataclass(slots=True, eq=False)
class _Connection:
    """One client's, from the first moment on."""

    sock: socket.socket
    address: str
    stranger: bool
    shaking: bool = True
    joined: bool = False
    """Whether it counts among those of gRPC, which it does from the end of its handshake on."""
    tls: TLSEnd | None = None
    timer: asyncio.TimerHandle | None = None
    name: str = ""
    """The abstract name of its Unix socket, while it has one."""


class Front:
    """Serves the port from :meth:`start` on; :meth:`connect` once gRPC listens."""

    def __init__(self, sockets: Sequence[socket.socket], tls: TLSReloader, bounds: Bounds | None = None) -> None:
        """``sockets`` listen (:func:`kiam.server.grpc.port.listen`); connections wait in them until :meth:`start`.

        Raises UserError for a certificate that TLS can't use.
        """
        self._sockets = list(sockets)
        self._reloader = tls
        self.admission = Admission(bounds)
        self._context: tuple[TLSMaterial, SSL.Context] | None = None
        self._open: set[_Connection] = set()
        self._early: set[_Connection] = set()
        self._backend: str | None = None
        self.joined = JoinedClients()
        """Who is behind the Unix connections."""
        self._tasks: set[asyncio.Task[Any]] = set()
        try:
            self._current_context()
        except SSL.Error as error:
            raise UserError(f"TLS can't use the certificate in --cert: {reason(error)}", "issue another one") from error

    @property
    def port(self) -> int:
        """The port's number."""
        return number(self._sockets[0]) if self._sockets else 0

    def start(self) -> None:
        """Serve the port."""
        loop = asyncio.get_running_loop()
        for sock in self._sockets:
            loop.add_reader(sock, self._accept, sock)

    def connect(self, backend: str) -> None:
        """gRPC listens now, on a Unix socket of this path or, after a NUL, abstract name."""
        self._backend = backend
        early, self._early = self._early, set()
        for connection in early:
            self._run(self._join(connection, backend))

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
        for task in self._tasks:
            task.cancel()
        for connection in list(self._open):
            self._forget(connection)

    def counts(self) -> dict[str, int]:
        """Connections by stage, and how many were turned away so far."""
        return {
            "handshake": self.admission.count(Stage.HANDSHAKE),
            "joined": self.admission.count(Stage.JOINED),
            "refused": self.admission.refused,
        }

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
            address = peer_of(sockaddr)
            stranger = self.admission.begins(address)
            if stranger is None:
                reset(sock)
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
        connection.tls = TLSEnd(
            endpoint(self._current_context(), server=True),
            lambda _: self._verified(connection),
            lambda end: self._lost(connection, end.failure),
        )
        self._run(self._shake_hands(connection, connection.tls))

    async def _shake_hands(self, connection: _Connection, tls: TLSEnd) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: tls, connection.sock)
        except OSError as error:
            log.debug("a client's connection can't be served: %s", error)
            self._forget(connection)
            connection.sock.close()

    def _current_context(self) -> SSL.Context:
        material = self._reloader.material
        if self._context is None or self._context[0] is not material:
            try:
                context = make_context(material, Side.CLIENT)
            except SSL.Error as error:
                if self._context is None:
                    raise
                log.error("TLS can't use the new certificate, the one before stays in use: %s", reason(error))
                context = self._context[1]
            self._context = (material, context)
        return self._context[1]

    def _verified(self, connection: _Connection) -> None:
        """The client has shown a certificate of the authority."""
        tls = connection.tls
        if tls is None or connection not in self._open:
            return
        self.admission.authenticated(connection.address)
        self._end_handshake(connection)
        connection.joined = self.admission.joins(connection.address)
        if not connection.joined:
            tls.close()
        elif self._backend is not None:
            self._run(self._join(connection, self._backend))
        else:
            tls.write(FIRST_SETTINGS)
            tls.received = FirstAcknowledgement()
            self._early.add(connection)

    async def _join(self, connection: _Connection, backend: str) -> None:
        """Make a Unix connection to gRPC whose name stands for the client."""
        tls, loop = connection.tls, asyncio.get_running_loop()
        if tls is None or connection not in self._open:
            # It ended while this was waiting for its turn.
            return
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            names = frozenset(peer_certificate(tls.connection).dns_names)
            connection.name = self.joined.bind(sock, connection.address, names)
            await loop.sock_connect(sock, backend)
            await loop.create_unix_connection(lambda: PlainEnd(tls), sock=sock)
        except (OSError, ValueError) as error:
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

    def _lost(self, connection: _Connection, failure: Exception | None) -> None:
        if failure is not None:
            # Not louder: anybody could fill the log.
            log.debug("TLS with %s failed: %s", connection.address, reason(failure))
        self._forget(connection)

    def _forget(self, connection: _Connection) -> None:
        """The end of a connection: it closed, or its time is up."""
        if connection not in self._open:
            return
        self._open.discard(connection)
        self._early.discard(connection)
        self._end_handshake(connection)
        if connection.joined:
            self.admission.leaves(connection.address)
        if connection.name:
            self.joined.forget(connection.name)
        if connection.tls is None:
            asyncio.get_running_loop().remove_reader(connection.sock)
            reset(connection.sock)
        else:
            connection.tls.abort()

    def _run(self, work: Coroutine[Any, Any, Any]) -> None:
        task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
