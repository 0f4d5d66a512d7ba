"""One pod can't starve the others: raw sockets against the limits, in this process and with small limits."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
from prometheus_client import CollectorRegistry

from kiam.agent.core.failures import NotYetKnown
from kiam.agent.core.identities import KnownPod
from kiam.agent.http.handlers import Handlers
from kiam.agent.http.instance_metadata import InstanceMetadata
from kiam.agent.http.messages import Plain, Request, Response
from kiam.agent.http.pod_server import PodServer
from kiam.agent.http.proxy import PassingOn, RouteFilter
from kiam.agent.http.reading import BodyUse
from kiam.agent.http.token_desk import TokenDesk
from kiam.agent.http.tokens import SessionTokens
from kiam.agent.metrics import AgentMetrics
from kiam.agent.settings import Limits, TokenMode
from tests.integration.agent.conftest import running_agent
from tests.sandbox.pki import Pki
from tests.sandbox.process import free_port, until

LIMITS = Limits(
    header_time=30,
    idle_time=30,
    stall_time=30,
    connections=4,
    all_connections=40,
    waiting=2,
    body=1000,
    passed_response=2000,
    passed_per_second=0.01,
    passed_burst=9,
)
HASTY = replace(LIMITS, header_time=0.3, idle_time=0.5, stall_time=0.3)
"""Only for what waits for them: on a busy machine a client may be slower than this."""
hasty = pytest.mark.parametrize("limits", [HASTY], indirect=True, ids=["hasty"])

PING = b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
ROLE = b"GET /latest/meta-data/iam/security-credentials/ HTTP/1.1\r\nHost: x\r\n\r\n"


class Held:
    """Pods of which one, 127.0.0.2, is never known."""

    def __init__(self) -> None:
        self.waiting = 0
        self.given_up = 0
        self.known = asyncio.Event()

    def known_pod(self, address: str, uid: str | None = None) -> KnownPod | None:
        return None

    def role_now(self, address: str, uid: str | None = None) -> tuple[KnownPod, bytes] | None:
        return (KnownPod("u1", "default", "app", "app"), b"app") if address == "127.0.0.1" else None

    def credentials_now(self, address: str, role: str, uid: str | None = None) -> tuple[KnownPod, bytes] | None:
        return None

    async def role(self, address: str, deadline: float, uid: str | None = None) -> bytes:
        self.waiting += 1
        try:
            await self.known.wait()
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        finally:
            self.waiting -= 1
        return b"late"

    async def credentials(self, address: str, role: str, deadline: float, uid: str | None = None) -> bytes:
        raise NotYetKnown("no")

    def refused(self, address: str, role: str) -> None:
        raise AssertionError("no such request is made here")

    async def server_health(self, deadline: float) -> str:
        return "ok"

    def alone_since(self) -> float | None:
        return None


class Bench:
    """An agent's HTTP side on loopback, with an upstream that answers what a test wants."""

    def __init__(
        self,
        registry: CollectorRegistry,
        port: int,
        held: Held,
        handlers: Handlers,
        pods: PodServer,
        seen: list[bytes],
    ) -> None:
        self.registry = registry
        self.port, self.held, self.handlers, self.pods, self.seen = port, held, handlers, pods, seen
        self.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"

    async def connect(self, pod: str = "127.0.0.1") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, local_addr=(pod, 0))

    async def send(self, request: bytes, pod: str = "127.0.0.1") -> bytes:
        """Send bytes and read to the end of the connection."""
        reader, writer = await self.connect(pod)
        writer.write(request)
        try:
            return await asyncio.wait_for(reader.read(), 30)
        except ConnectionResetError:
            return b""
        finally:
            writer.close()


@pytest.fixture
def limits(request: pytest.FixtureRequest) -> Limits:
    limits: Limits = getattr(request, "param", LIMITS)
    return limits


@pytest.fixture
async def bench(limits: Limits, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    # Pods have addresses of 127.0.0.0/8 here.
    monkeypatch.setattr("kiam.agent.http.messages.LOOPBACK", "none of these")
    loop = asyncio.get_running_loop()
    registry, held, seen, answering = CollectorRegistry(), Held(), list[bytes](), list[Bench]()
    metrics = AgentMetrics(registry)

    async def upstream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            seen.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(answering[0].answer)
            await writer.drain()
            await reader.read()
        writer.close()

    real = await asyncio.start_server(upstream, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{real.sockets[0].getsockname()[1]}"
    async with InstanceMetadata(url, timeout=2 * limits.idle_time) as service:
        passing_on = PassingOn(
            service, RouteFilter("^/latest/meta-data/(instance-id|slow|big)$"), limits, 2 * limits.idle_time
        )
        tokens = SessionTokens(lambda: b"key", "127.0.0.1")
        desk = TokenDesk(held, tokens, TokenMode.PASSED_ON, lambda address: address != "127.0.0.9", metrics)
        handlers = Handlers(held, desk, passing_on, service, metrics, limits, allow_ip_query=False)
        pods = PodServer(handlers, limits, metrics)
        server = await loop.create_server(pods, "127.0.0.1", 0)
        made = Bench(registry, server.sockets[0].getsockname()[1], held, handlers, pods, seen)
        answering.append(made)
        yield made
        held.known.set()
        server.close()
        await pods.drain(0)
    real.close()


@hasty
async def test_headers_that_come_too_slowly_are_cut_from_the_start_of_the_connection(bench: Bench) -> None:
    reader, writer = await bench.connect()

    async def trickle() -> None:
        with contextlib.suppress(ConnectionError):
            for byte in ROLE * 20:
                writer.write(bytes([byte]))
                await asyncio.sleep(0.02)

    task = asyncio.create_task(trickle())
    # A client that goes on sending may see the connection reset before it sees why.
    with contextlib.suppress(ConnectionResetError):
        assert (await asyncio.wait_for(reader.read(), 30)).startswith(b"HTTP/1.1 408 ")
    task.cancel()
    assert bench.registry.get_sample_value("kiam_agent_refused_connections_total", {"reason": "slow headers"}) == 1


@hasty
async def test_slow_headers_are_cut_on_a_connection_that_was_good_before(bench: Bench) -> None:
    reader, writer = await bench.connect()
    writer.write(ROLE)
    assert (await reader.readuntil(b"\r\n\r\napp")).startswith(b"HTTP/1.1 200 ")
    writer.write(ROLE[:20])
    assert (await asyncio.wait_for(reader.read(), 30)).startswith(b"HTTP/1.1 408 ")


@hasty
async def test_silent_connections_are_cut(bench: Bench) -> None:
    reader, _ = await bench.connect()
    assert (await asyncio.wait_for(reader.read(), 30)).startswith(b"HTTP/1.1 408 ")


@hasty
async def test_idle_connections_are_closed_later(bench: Bench) -> None:
    reader, writer = await bench.connect()
    writer.write(ROLE)
    answer = await asyncio.wait_for(reader.read(), 30)
    assert answer.endswith(b"\r\n\r\napp")


async def test_a_client_has_only_so_many_connections_and_others_are_not_hurt(bench: Bench) -> None:
    connections = [await bench.connect("127.0.0.2") for _ in range(LIMITS.connections)]
    reader, writer = await bench.connect("127.0.0.1")
    assert b"pong" in await bench.send(PING, "127.0.0.2")
    # Its oldest had to go for that, and nobody else's.
    with contextlib.suppress(ConnectionError):
        assert await asyncio.wait_for(connections[0][0].read(), 10) == b""
    writer.write(ROLE)
    assert (await reader.readuntil(b"app")).startswith(b"HTTP/1.1 200 ")
    for _, open_writer in connections:
        open_writer.close()
    await asyncio.gather(*(open_writer.wait_closed() for _, open_writer in connections), return_exceptions=True)
    bench.held.known.set()
    assert b"late" in await bench.send(ROLE.replace(b"Host", b"Connection: close\r\nHost"), "127.0.0.2")


async def test_a_client_has_only_so_many_requests_waiting(bench: Bench) -> None:
    once = ROLE.replace(b"Host", b"Connection: close\r\nHost")
    waiting = [asyncio.create_task(bench.send(once, "127.0.0.2")) for _ in range(LIMITS.waiting)]
    await until(lambda: bench.held.waiting == LIMITS.waiting)
    reader, writer = await bench.connect("127.0.0.2")
    writer.write(ROLE)
    answer = await reader.readuntil(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"Retry-After: 1" in answer
    bench.held.known.set()
    assert all(answer.endswith(b"late") for answer in await asyncio.gather(*waiting))


async def test_a_client_that_hangs_up_is_not_waited_for(bench: Bench) -> None:
    _, writer = await bench.connect("127.0.0.2")
    writer.write(ROLE)
    await until(lambda: bench.held.waiting == 1)
    writer.close()
    await until(lambda: bench.held.given_up == 1)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"a" * 9000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET http://evil.example/latest HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /a\x00b HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT evil.example:80 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    ],
)
async def test_what_cannot_be_parsed_is_400_and_the_end(bench: Bench, request_bytes: bytes) -> None:
    answer = await bench.send(request_bytes)
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 "))
    assert answer.count(b"\n", answer.index(b"\r\n\r\n") + 4) == 1
    assert bench.seen == []


async def test_pipelined_requests_are_answered_in_order(bench: Bench) -> None:
    reader, writer = await bench.connect()
    writer.write(b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n" + ROLE + b"GET /nope HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = await reader.readuntil(b"doesn't match this path\n")
    assert answer.index(b"pong") < answer.index(b"app") < answer.index(b"404 Not Found")


async def test_request_body_is_bounded(bench: Bench) -> None:
    head = b"PUT /latest/api/token HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    declared = await bench.send(head + b"Content-Length: 1001\r\n\r\n" + b"a" * 1001)
    assert declared.startswith(b"HTTP/1.1 413 ")
    chunks = b"".join(b"1f4\r\n" + b"a" * 500 + b"\r\n" for _ in range(3)) + b"0\r\n\r\n"
    chunked = await bench.send(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)
    assert chunked.startswith(b"HTTP/1.1 413 ")
    assert bench.seen == []


@hasty
async def test_body_that_never_comes_is_cut(bench: Bench) -> None:
    answer = await bench.send(b"PUT /latest/api/token HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert bench.seen == []


async def test_body_nobody_wants_does_not_hold_the_connection(bench: Bench) -> None:
    answer = await bench.send(ROLE.replace(b"Host", b"Content-Length: 999999\r\nHost"))
    assert answer.startswith(b"HTTP/1.1 200 ")


async def test_passed_request_is_what_was_matched_and_nothing_more(bench: Bench) -> None:
    await bench.send(
        b"GET /latest/meta-data/inst%61nce-id?a=%2F HTTP/1.1\r\nHost: evil\r\nConnection: close, X-Named\r\n"
        b"X-Named: 1\r\nX-Forwarded-For: 1.2.3.4\r\nForwarded: for=1\r\nKeep-Alive: 1\r\nTE: x\r\n"
        b"X-aws-ec2-metadata-token: tok\r\n\r\n"
    )
    (seen,) = bench.seen
    line, *fields = seen.decode().strip().split("\r\n")
    assert line == "GET /latest/meta-data/instance-id?a=%2F HTTP/1.1"
    names = {field.partition(":")[0].lower() for field in fields}
    assert names == {"host", "x-aws-ec2-metadata-token"}


async def test_pod_that_asks_without_end_does_not_use_up_the_service(bench: Bench) -> None:
    bench.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi"
    token = b"PUT /latest/api/token HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answers = [await bench.send(token, "127.0.0.2") for _ in range(LIMITS.passed_burst + 1)]
    assert [b" 200 " in answer for answer in answers] == [True] * LIMITS.passed_burst + [False]
    assert b" 503 " in answers[-1]
    assert b"Retry-After: 1" in answers[-1]
    assert len(bench.seen) == LIMITS.passed_burst
    assert b" 200 " in await bench.send(token, "127.0.0.3")


@hasty
async def test_answer_is_stripped_and_bounded(bench: Bench) -> None:
    request = b"GET /latest/meta-data/big HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    bench.answer = (
        b"HTTP/1.1 200 OK\r\nX-Kept: 1\r\nConnection: X-Named\r\nX-Named: 1\r\nX-Forwarded-For: 1\r\n"
        b"Content-Length: 2\r\n\r\nhi"
    )
    answer = await bench.send(request)
    assert b"X-Kept: 1" in answer
    assert b"X-Named" not in answer
    assert b"X-Forwarded-For" not in answer
    bench.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 3000\r\n\r\n" + b"a" * 3000
    assert (await bench.send(request)).startswith(b"HTTP/1.1 502 ")
    # Without a declared length the answer breaks off in the middle, and the pod can see that it did.
    bench.answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"3e8\r\n" + b"a" * 1000 + b"\r\n"
    bench.answer += (b"3e8\r\n" + b"b" * 1000 + b"\r\n") * 3 + b"0\r\n\r\n"
    assert not (await bench.send(request)).endswith(b"0\r\n\r\n")


async def test_redirects_of_the_service_are_not_followed(bench: Bench) -> None:
    bench.answer = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/x\r\nContent-Length: 0\r\n\r\n"
    answer = await bench.send(b"GET /latest/meta-data/instance-id HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 302 ")
    assert len(bench.seen) == 1


@hasty
async def test_service_that_says_nothing_is_given_up(bench: Bench) -> None:
    bench.answer = b""
    answer = await bench.send(b"GET /latest/meta-data/slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 502 ")


class Big:
    """Answers everything with more than any socket's buffers hold."""

    draining = False

    def at_once(self, address: str, plain: Plain, uid: str | None) -> bytes | None:
        return None

    def body_use(self, request: Request) -> BodyUse:
        return BodyUse.UNREAD

    async def respond(self, request: Request) -> Response:
        return Response(200, b"a" * 8_000_000)


async def test_client_that_reads_nothing_is_cut() -> None:
    registry = CollectorRegistry()
    metrics = AgentMetrics(registry)

    pods = PodServer(Big(), HASTY, metrics)
    server = await asyncio.get_running_loop().create_server(pods, "127.0.0.1", 0)
    with socket.create_connection(server.sockets[0].getsockname()) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(
            lambda: bool(
                registry.get_sample_value("kiam_agent_refused_connections_total", {"reason": "unread answers"})
            )
        )
    server.close()
    await pods.drain(1)


def enter(pods: PodServer, address: str, pod: str | None = None) -> Mock:
    """Connect from an address; the transport. The kernel says which pod it is."""
    transport = Mock(spec=asyncio.Transport)
    ends = {
        "peername": (address, 40000),
        "sockname": ("192.0.2.10", 8181),
        "socket": Mock(getsockopt=lambda *_: bytes(16)),
    }
    transport.get_extra_info.side_effect = ends.get
    pods.peers = Mock(uid_of=Mock(return_value=pod))
    connection = pods()
    transport.abort.side_effect = lambda: connection.connection_lost(None)
    connection.connection_made(transport)
    return transport


@pytest.fixture
def pods() -> PodServer:
    return PodServer(Big(), LIMITS, AgentMetrics(CollectorRegistry()))


async def test_pods_that_share_the_nodes_address_share_no_allowance(pods: PodServer) -> None:
    thiefs = [enter(pods, "192.0.2.10", "thief") for _ in range(20)]
    others = [enter(pods, "192.0.2.10", pod) for pod in ("victim", None)]
    thiefs += [enter(pods, "192.0.2.10", "thief") for _ in range(20)]
    assert sum(not thief.abort.called for thief in thiefs) == LIMITS.connections
    assert not any(other.abort.called for other in others)


async def test_all_loopback_addresses_are_one_client(pods: PodServer) -> None:
    opened = [enter(pods, f"127.0.{number}.1") for number in range(20)]
    assert sum(not transport.abort.called for transport in opened) == LIMITS.connections


async def test_of_too_many_connections_in_all_those_of_whoever_has_most_go(pods: PodServer) -> None:
    victims = [enter(pods, f"203.0.113.{number}") for number in range(20)]
    forged = [enter(pods, f"198.51.100.{number}") for number in range(8) for _ in range(5)]
    assert not any(victim.abort.called for victim in victims)
    open_now = [transport for transport in victims + forged if not transport.abort.called]
    assert len(open_now) == LIMITS.all_connections
    await pods.drain(0)
    assert all(transport.abort.called for transport in open_now)


def test_pods_with_many_connections_leave_descriptors_for_the_others(tmp_path: Path, pki: Pki) -> None:
    """Container runtimes start programs with 1,024 descriptors; here it is fewer, to need fewer connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        agent = stack.enter_context(running_agent(tmp_path, f"localhost:{free_port()}", pki.agent))
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for pod in ("127.0.0.2", "127.0.0.3"):
            for _ in range(70):
                stack.enter_context(agent.connect(pod))
        assert agent.ask("/ping", "127.0.0.4").status == 200


@pytest.mark.parametrize(
    ("address", "refused"), [("fe80::1", True), ("fe80::1%7", True), ("fd00::1", False), ("169.254.172.3", False)]
)
async def test_link_local_ipv6_client_is_refused(address: str, refused: bool) -> None:
    """Whoever may send raw packets has 2**64 of these addresses, with as many connections each as a pod may have."""

    pods = PodServer(Big(), LIMITS, AgentMetrics(CollectorRegistry()))
    transport = Mock(spec=asyncio.Transport)
    transport.get_extra_info.side_effect = lambda name: (address, 40000, 0, 7) if name == "peername" else None
    connection = pods()
    connection.connection_made(transport)
    assert transport.close.called is refused
    connection.connection_lost(None)
