"""The server's port: how soon it is open, and what connections of strangers do to the server and to real agents."""

from __future__ import annotations

import contextlib
import resource
import socket
import ssl
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from kiam.rpc import kiam_pb2, kiam_pb2_grpc
from kiam.server.grpc.preface import FIRST_SETTINGS
from kiam.tls import TLSFiles
from tests.sandbox.node import SERVER_PORT, NodeInABox
from tests.sandbox.process import Process

Say = Callable[[str], None]

STARTS = 5
HELD = 20_000
CALLS = 200
SHARED_SECONDS = 15.0
LOOPBACKS = 250
"""Addresses of 127.0.0.0/8 that the strangers come from, as if they were so many pods."""


def measure_start(say: Say) -> list[dict[str, Any]]:
    """From the process's start to a TLS handshake, to HTTP/2's first SETTINGS, and to the first answer of gRPC.

    A conventional agent's dial (grpc-go's, WithBlock) ends with the SETTINGS, and gives up after a second.
    """
    say(f"server: {STARTS} starts")
    with NodeInABox("none") as box:
        starts = sorted((_start(box) for _ in range(STARTS)), key=lambda start: start[0])
    names = ("tls_accepted_s", "http2_settings_s", "first_grpc_answer_s")
    return [
        {
            name: round(statistics.median(start[index] for start in starts), 3) for index, name in enumerate(names)
        } | {f"{name[:-2]}_max_s": round(max(start[index] for start in starts), 3) for index, name in enumerate(names)}
    ]  # fmt: skip


def measure_strangers(say: Say) -> list[dict[str, Any]]:
    """An agent's calls and the server's memory: alone, beside connections that are held, beside some that churn."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with NodeInABox("none") as box:
        box.start_server()
        assert box.server is not None
        rows = [_row(box, box.server, "none", 0)]
        say(f"strangers: {HELD} connections, held")
        with _held(box) as held:
            rows.append(_row(box, box.server, "held, silent", len(held)))
        say(f"strangers: for {SHARED_SECONDS:.0f} s, at an agent's own address")
        rows.append(_beside(box, box.server))
        say(f"strangers: {HELD} connections, one after the other")
        rows.append(_row(box, box.server, "churning", HELD, lambda: _churn(box)))
        rows.append(_row(box, box.server, "none, afterwards", 0))
    return rows


def _beside(box: NodeInABox, server: Process) -> dict[str, Any]:
    """As many TLS handshakes as can be begun, and not ended, from the address that an agent connects from too.

    A pod behind its node's address has that. The agent calls all the time; what the server holds at most is told.
    """
    tops = {"connections": 0.0, "rss": 0.0}

    def meanwhile() -> None:
        hello, sockets = _client_hello(), list[socket.socket]()
        end = time.monotonic() + SHARED_SECONDS
        try:
            while time.monotonic() < end:
                _ask(box.pki.agent)
                sockets += _begin_handshakes(hello, 500)
                alive = [sock for sock in sockets if _is_open(sock)]
                for sock in set(sockets) - set(alive):
                    sock.close()
                sockets = alive
                tops["connections"] = max(tops["connections"], len(alive))
                tops["rss"] = max(tops["rss"], server.rss_bytes())
        finally:
            for sock in sockets:
                sock.close()

    row = _row(box, server, "held, at an agent's address", 0, meanwhile)
    return {**row, "connections": int(tops["connections"]), "server_rss_mib": round(tops["rss"] / 2**20, 1)}


def _begin_handshakes(hello: bytes, count: int) -> list[socket.socket]:
    """Connections on which a client's first message was sent."""
    sockets = []
    for _ in range(count):
        sock = socket.socket()
        sock.settimeout(0.5)
        try:
            sock.connect(("127.0.0.1", SERVER_PORT))
            sock.sendall(hello)
        except OSError:
            sock.close()
        else:
            sockets.append(sock)
    return sockets


def _client_hello() -> bytes:
    outward = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outward, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outward.read()


def _is_open(sock: socket.socket) -> bool:
    """Whether the server hasn't closed it."""
    sock.setblocking(False)
    try:
        while sock.recv(65536):
            pass
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _start(box: NodeInABox) -> tuple[float, float, float]:
    if box.server is not None:
        box.server.stop()
    started = time.monotonic()
    box.start_server(wait=False)
    handshake = box.node.call(_first, started, lambda: _handshake(box.pki.agent))
    settings = box.node.call(_first, started, lambda: _settings(box.pki.agent))
    answer = box.node.call(_first, started, lambda: _ask(box.pki.agent))
    return handshake, settings, answer


def _first(started: float, attempt: Callable[[], None]) -> float:
    while time.monotonic() - started < 30:
        with contextlib.suppress(OSError, grpc.RpcError):
            attempt()
            return time.monotonic() - started
        time.sleep(0.002)
    raise RuntimeError("the server didn't come up")


@contextlib.contextmanager
def _tls(files: TLSFiles) -> Iterator[ssl.SSLSocket]:
    context = ssl.create_default_context(cafile=str(files.ca))
    context.load_cert_chain(files.cert, files.key)
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", SERVER_PORT), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        yield connection


def _handshake(files: TLSFiles) -> None:
    with _tls(files):
        pass


def _settings(files: TLSFiles) -> None:
    """Both prefaces (RFC 9113, 3.4)."""
    with _tls(files) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + FIRST_SETTINGS)
        header = connection.recv(9)
        # The type of the frame.
        if header[3:4] != b"\4":
            raise OSError(f"the server began with {header!r}")


def _ask(files: TLSFiles) -> None:
    """GetHealth; an error that a server answers is an answer."""
    with _channel(files) as channel:
        _health(kiam_pb2_grpc.KiamServiceStub(channel))


def _channel(files: TLSFiles) -> grpc.Channel:
    credentials = grpc.ssl_channel_credentials(files.ca.read_bytes(), files.key.read_bytes(), files.cert.read_bytes())
    return grpc.secure_channel(f"localhost:{SERVER_PORT}", credentials)


def _health(stub: Any) -> None:
    try:
        stub.GetHealth(kiam_pb2.GetHealthRequest(), timeout=5)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
            raise


def _row(
    box: NodeInABox, server: Process, strangers: str, connections: int, meanwhile: Callable[[], None] | None = None
) -> dict[str, Any]:
    before = server.cpu_seconds()
    latencies = box.node.call(_latencies, box.pki.agent, meanwhile)
    return {
        "strangers": strangers,
        "connections": connections,
        "server_rss_mib": round(server.rss_bytes() / 2**20, 1),
        "server_cpu_s": round(server.cpu_seconds() - before, 2),
        "agent_calls": len(latencies),
        "call_p50_ms": round(statistics.median(latencies) * 1000, 2),
        "call_max_ms": round(max(latencies) * 1000, 2),
    }


def _latencies(files: TLSFiles, meanwhile: Callable[[], None] | None) -> list[float]:
    """Of GetHealth on a connection that was there before, and of one new connection for each fiftieth call."""
    latencies = []
    with _channel(files) as channel:
        stub = kiam_pb2_grpc.KiamServiceStub(channel)
        _health(stub)
        if meanwhile is not None:
            meanwhile()
        for number in range(CALLS):
            started = time.monotonic()
            if number % 50 == 49:
                _ask(files)
            else:
                _health(stub)
            latencies.append(time.monotonic() - started)
    return latencies


@contextlib.contextmanager
def _held(box: NodeInABox) -> Iterator[list[socket.socket]]:
    sockets = box.node.call(_connect, HELD)
    try:
        yield sockets
    finally:
        for sock in sockets:
            sock.close()


def _connect(count: int) -> list[socket.socket]:
    """As many connections as the server takes; those it refuses aren't counted."""
    sockets = []
    for number in range(count):
        sock = socket.socket()
        sock.settimeout(0.5)
        try:
            sock.bind((f"127.1.{number % LOOPBACKS}.1", 0))
            sock.connect(("127.0.0.1", SERVER_PORT))
        except OSError:
            sock.close()
        else:
            sockets.append(sock)
    return sockets


def _churn(box: NodeInABox) -> None:
    for number in range(HELD):
        with contextlib.suppress(OSError), socket.socket() as sock:
            sock.settimeout(0.5)
            sock.bind((f"127.1.{number % LOOPBACKS}.1", 0))
            sock.connect(("127.0.0.1", SERVER_PORT))
