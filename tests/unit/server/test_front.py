"""The front's connections: names by which gRPC knows them, and the moments at which one may end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL

from kiam.errors import UserError
from kiam.server.grpc import front as module
from kiam.server.grpc.admission import Bounds
from kiam.server.grpc.front import Front, _Connection
from kiam.server.grpc.port import listen
from kiam.server.grpc.preface import FIRST_SETTINGS
from kiam.tls import TLSFiles
from kiam.tls.inspection import load_summary
from kiam.tls.reload import TLSReloader
from kiam.tls.summary import Side
from tests.sandbox.certificates import Authority, write
from tests.sandbox.process import until

AUTHORITY = Authority.make()
BOUNDS = Bounds(handshake_seconds=600.0)
Opener = Callable[..., Front]


@pytest.fixture
def client(tmp_path: Path) -> TLSFiles:
    return write(tmp_path / "client", AUTHORITY.sign_for_usages([ExtendedKeyUsageOID.CLIENT_AUTH]), AUTHORITY.pem)


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Opener]:
    files = write(tmp_path / "server", AUTHORITY.sign_for_usages([ExtendedKeyUsageOID.SERVER_AUTH]), AUTHORITY.pem)
    fronts = []

    def open_front(bounds: Bounds = BOUNDS) -> Front:
        front = Front(listen("127.0.0.1:0"), TLSReloader(files, Side.SERVER, load_summary), bounds)
        fronts.append(front)
        front.start()
        return front

    yield open_front
    for front in fronts:
        front.close()


async def _connect(front: Front, files: TLSFiles) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    context = ssl.create_default_context(cafile=str(files.ca))
    context.load_cert_chain(files.cert, files.key)
    context.set_alpn_protocols(["h2"])
    return await asyncio.open_connection("127.0.0.1", front.port, ssl=context, server_hostname="localhost")


async def _never_joined(front: Front) -> None:
    await until(lambda: not front._tasks)
    assert front.counts() == {"handshake": 0, "joined": 0, "refused": 0}
    assert not front._open
    assert not len(front.joined)


async def test_whoever_has_bound_a_name_first_is_not_taken_for_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "peer_certificate", lambda connection: Mock(dns_names=("node-1",)))
    monkeypatch.setattr(module, "make_context", Mock())
    front = Front([], Mock())
    connection = _Connection(Mock(), "10.0.0.1", False)
    connection.tls = tls = Mock()
    front._open.add(connection)
    with socket.socket(socket.AF_UNIX) as squatter:
        squatter.bind(f"\0{front.joined._prefix}-1")
        await front._join(connection, "/nonexistent")
        assert front.joined.names(f"unix-abstract:{front.joined._prefix}-1") is None
    tls.close.assert_called_once()


def _refuse(*_: Any) -> Any:
    raise SSL.Error([("SSL routines", "", "ee key too small")])


async def test_certificate_that_openssl_refuses_ends_the_start_in_one_line(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "make_context", _refuse)
    with pytest.raises(UserError, match="--cert: ee key too small; issue another one"):
        opened()


async def test_new_certificate_that_openssl_refuses_leaves_the_old_one_in_use(
    opened: Opener, client: TLSFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    front = opened()
    write(tmp_path / "server", AUTHORITY.sign_for_usages([ExtendedKeyUsageOID.SERVER_AUTH]), AUTHORITY.pem)
    assert front._reloader.refresh()
    monkeypatch.setattr(module, "make_context", _refuse)
    for _ in range(2):
        _, writer = await _connect(front, client)
        writer.close()
    assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == [
        "TLS can't use the new certificate, the one before stays in use: ee key too small"
    ]


async def test_handshake_whose_time_is_up_before_it_has_begun_is_never_finished(
    opened: Opener, client: TLSFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    connect_accepted_socket = loop.connect_accepted_socket
    reached, gate = asyncio.Event(), asyncio.Event()

    async def held(*arguments: Any) -> Any:
        reached.set()
        await gate.wait()
        return await connect_accepted_socket(*arguments)

    monkeypatch.setattr(loop, "connect_accepted_socket", held)
    front = opened()
    connecting = asyncio.create_task(_connect(front, client))
    await reached.wait()
    (connection,) = front._open
    # What its timer does.
    front._forget(connection)
    gate.set()
    # Reset or closed, as the kernel has it.
    with pytest.raises(OSError):
        await connecting
    await _never_joined(front)
    assert connection.sock.fileno() == -1


async def test_socket_that_no_transport_can_be_made_for_is_closed(
    opened: Opener, client: TLSFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: Any) -> Any:
        raise OSError("no")

    monkeypatch.setattr(asyncio.get_running_loop(), "connect_accepted_socket", refuse)
    front = opened()
    with pytest.raises((OSError, ssl.SSLError)):
        await _connect(front, client)
    await _never_joined(front)


async def test_client_that_is_gone_when_its_turn_to_be_joined_comes_leaves_nothing(
    opened: Opener, client: TLSFiles
) -> None:
    front = opened()
    _, writer = await _connect(front, client)
    await until(lambda: front._early)
    (connection,) = front._early
    assert front.counts()["joined"] == 1
    with socket.socket(socket.AF_UNIX) as backend:
        backend.bind(f"\0{front.joined._prefix}-backend")
        backend.listen()
        # The task that joins it is made, and has its turn after the end of the connection.
        front.connect(f"\0{front.joined._prefix}-backend")
        front._forget(connection)
        await _never_joined(front)
        backend.setblocking(False)
        with pytest.raises(BlockingIOError):
            backend.accept()
    writer.close()


async def test_client_that_goes_while_it_is_being_joined_leaves_nothing(
    opened: Opener, client: TLSFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    front = opened()
    _, writer = await _connect(front, client)
    await until(lambda: front._early)
    (connection,) = front._early
    loop = asyncio.get_running_loop()
    sock_connect = loop.sock_connect

    async def ends_meanwhile(*arguments: Any) -> Any:
        await sock_connect(*arguments)
        front._forget(connection)
        await until(lambda: connection.tls is not None and connection.tls._lost)

    monkeypatch.setattr(loop, "sock_connect", ends_meanwhile)
    with socket.socket(socket.AF_UNIX) as backend:
        backend.setblocking(False)
        backend.bind(f"\0{front.joined._prefix}-backend")
        backend.listen()
        front.connect(f"\0{front.joined._prefix}-backend")
        async with asyncio.timeout(30):
            joined, _ = await loop.sock_accept(backend)
            with joined:
                joined.setblocking(False)
                assert await loop.sock_recv(joined, 1) == b""
        await _never_joined(front)
    writer.close()


async def test_clients_that_wait_for_grpc_count_within_the_bounds(opened: Opener, client: TLSFiles) -> None:
    front = opened(replace(BOUNDS, connections_of_address=2))
    writers = []
    for _ in range(4):
        with contextlib.suppress(OSError):
            writers.append((await _connect(front, client))[1])
    await until(lambda: front.counts() == {"handshake": 0, "joined": 2, "refused": 2})
    assert len(front._early) == 2
    for writer in writers:
        writer.close()


async def test_client_has_the_servers_preface_before_grpc_is_there(opened: Opener, client: TLSFiles) -> None:
    front = opened()
    reader, writer = await _connect(front, client)
    async with asyncio.timeout(30):
        assert await reader.readexactly(len(FIRST_SETTINGS)) == FIRST_SETTINGS
    writer.close()


async def test_client_that_waits_for_grpc_fills_the_kernels_memory_and_not_the_servers(
    opened: Opener, client: TLSFiles
) -> None:
    front = opened()
    _, writer = await _connect(front, client)
    await until(lambda: front._early)
    (connection,) = front._early
    assert connection.tls is not None
    assert connection.tls.transport is not None
    assert not connection.tls.transport.is_reading()
    writer.close()


async def test_refused_client_is_told_of_with_the_reason_at_debug_level_only(
    opened: Opener, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stranger = Authority.make("other")
    files = write(tmp_path / "stranger", stranger.sign("agent"), AUTHORITY.pem)
    caplog.set_level(logging.DEBUG, module.log.name)
    front = opened()
    with contextlib.suppress(OSError):
        reader, writer = await _connect(front, files)
        await reader.read()
        writer.close()
    await until(lambda: caplog.records)
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.DEBUG, "TLS with 127.0.0.1 failed: certificate verify failed")
    ]
