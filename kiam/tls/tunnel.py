"""A client's way to servers whose certificate gRPC's own TLS refuses: gRPC, a Unix socket, TLS of our own.

Slower than gRPC alone, so it is used only once a server has shown such a certificate.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import shutil
import socket
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from kiam.tls import TLSFiles, TLSMaterial, split_address
from kiam.tls.anyusage import make_context, peer_certificate
from kiam.tls.relay import PlainEnd, TLSEnd, endpoint
from kiam.tls.summary import Side

T = TypeVar("T")

log = logging.getLogger(__name__)

HANDSHAKE_SECONDS = 5.0
_PEER = struct.Struct("3i")
"""struct ucred: pid, uid, gid (unix(7), SO_PEERCRED)."""


class Tunnel:
    """Carries each connection to :attr:`target` over TLS to the next of a server's addresses."""

    def __init__(self, host: str, port: int, material: Callable[[], TLSMaterial]) -> None:
        """``material``: what a new connection is to use."""
        self._host, self._port = host, port
        self._material = material
        self._folder = Path(tempfile.mkdtemp(prefix="kiam-"))
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._turns = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def target(self) -> str:
        """What to give to gRPC as the address of an insecure channel."""
        return f"unix:{self._folder}/server"

    def start(self) -> None:
        """Take connections from now on."""
        self._listener.setblocking(False)
        self._listener.bind(f"{self._folder}/server")
        self._listener.listen()
        self._spawn(self._accept())

    def close(self) -> None:
        """End everything."""
        for task in self._tasks:
            task.cancel()
        self._listener.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(self._listener)
            pid, _, _ = _PEER.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
            # The attack stopped: whoever else gets at the socket would speak to the server with our certificate.
            if pid != os.getpid():
                sock.close()
                continue
            self._spawn(self._carry(sock))

    async def _carry(self, plain: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def verified(_: TLSEnd) -> None:
            if not done.done():
                done.set_result(None)

        def closed(end: TLSEnd) -> None:
            if not done.done():
                done.set_exception(end.failure or ConnectionError("the server closed the connection"))

        tls: TLSEnd | None = None
        try:
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                family, sockaddr = await self._next_address()
                outward = socket.socket(family, socket.SOCK_STREAM)
                outward.setblocking(False)
                outward.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                try:
                    await loop.sock_connect(outward, sockaddr)
                except BaseException:
                    outward.close()
                    raise
                context = make_context(self._material(), Side.SERVER)
                name = "" if _is_address(self._host) else self._host
                tls = end = TLSEnd(endpoint(context, server=False, host=name), verified, closed)
                await loop.create_connection(lambda: end, sock=outward)
                await done
            shown = peer_certificate(tls.connection)
            # The attack stopped: an agent's certificate, also one of the authority, must not pass for the server's.
            if not shown.covers(self._host):
                raise ConnectionError(f"the server's certificate is for {shown.names} and not for '{self._host}'")
            await loop.connect_accepted_socket(lambda: PlainEnd(end), plain)
        except Exception as error:
            # gRPC sees a connection that ends, and tries again after its back-off; the reason is found by diagnosis.
            log.debug("no connection to the server at %s:%d: %s", self._host, self._port, error)
            plain.close()
            if tls is not None:
                tls.abort()

    async def _next_address(self) -> tuple[int, Any]:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys((family, sockaddr) for family, _, _, _, sockaddr in found))
        return addresses[next(self._turns) % len(addresses)]

    def _spawn(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def ask_through_tunnel(address: str, files: TLSFiles, ask: Callable[[str], T]) -> T:
    """Run a blocking client of gRPC on the target of a tunnel to HOST:PORT. Raises UserError and what it raises."""
    material = files.read()
    host, port = split_address(address)

    async def run() -> T:
        tunnel = Tunnel(host, port, lambda: material)
        tunnel.start()
        try:
            return await asyncio.to_thread(ask, tunnel.target)
        finally:
            tunnel.close()

    return asyncio.run(run())


def _is_address(host: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        return True
    return False
