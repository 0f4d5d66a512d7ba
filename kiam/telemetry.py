"""What agent and server show of themselves: Prometheus metrics and, on demand, a profile of the running process.

Both are served from threads of their own, so that they answer while the event loop is busy: that is when one looks.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from types import FrameType
from typing import Any
from urllib.parse import parse_qs, urlsplit

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.exposition import choose_encoder

from kiam.errors import UserError

PROFILE_SECONDS = 30.0
"""Length of a profile when none is asked for, as in Go's net/http/pprof."""
LONGEST_PROFILE_SECONDS = 300.0
SAMPLES_PER_SECOND = 100
CLIENT_TIMEOUT_SECONDS = 10
"""A client that hasn't sent its request by then is cut."""
MOST_CONNECTIONS = 32
"""Open at a time to one listener; each has a thread."""


@contextmanager
def serve_telemetry(
    prometheus: str | None, pprof: str | None, registry: CollectorRegistry = REGISTRY, *, reuse_port: bool = False
) -> Iterator[None]:
    """Serve ``/metrics`` and ``/debug/pprof/profile`` on these addresses (HOST:PORT; None: off) until the block ends.

    With ``reuse_port`` (SO_REUSEPORT) an old and a new process can overlap. Raises UserError that names the flag.
    """
    with ExitStack() as stack:
        if prometheus is not None:
            stack.enter_context(_serve("--prometheus-listen-addr", prometheus, _metrics_handler(registry), reuse_port))
        if pprof is not None:
            stack.enter_context(_serve("--pprof-listen-addr", pprof, _ProfileHandler, reuse_port))
        yield


def parse_listen_address(text: str) -> tuple[str, int]:
    """Split HOST:PORT, [IPv6]:PORT or :PORT (every address) as Go's net.Listen takes them.

    Raises ValueError with a line that names the form.
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(
            f"'{text}' is not an address to listen on; write it like localhost:9620, 0.0.0.0:9620 or :9620"
        )
    return host, int(port)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler], family: int, reuse_port: bool
    ) -> None:
        self.address_family = family
        self.allow_reuse_port = reuse_port
        self._connections: dict[object, None] = {}
        self._counting = threading.Lock()
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own; the connection that has been open for longest goes when there are too many.

        Which attack: metrics are reachable from pods, and one that opens connections by the thousand, and sends a byte
        now and then, would have as many threads fill the process's memory.
        """
        oldest: Any = None
        with self._counting:
            if len(self._connections) >= MOST_CONNECTIONS:
                oldest = next(iter(self._connections))
                del self._connections[oldest]
            self._connections[request] = None
        if oldest is not None:
            with suppress(OSError):  # its own thread was quicker
                oldest.shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """End a connection."""
        with self._counting:
            self._connections.pop(request, None)
        super().shutdown_request(request)

    def server_bind(self) -> None:
        # HTTPServer's own asks DNS for this host's full name, which nobody here wants to know or wait for.
        TCPServer.server_bind(self)


@contextmanager
def _serve(flag: str, text: str, handler: type[BaseHTTPRequestHandler], reuse_port: bool) -> Iterator[None]:
    try:
        host, port = parse_listen_address(text)
        server = _listen(host, port, handler, reuse_port)
    except ValueError as error:
        raise UserError(f"{flag}: {error}") from error
    except OSError as error:
        raise UserError(f"{flag}: can't listen on {text}: {error.strerror}; choose another address or port") from error
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), name=flag.removeprefix("--"), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _listen(host: str, port: int, handler: type[BaseHTTPRequestHandler], reuse_port: bool) -> _Server:
    if not host:
        # Every address, as Go means by ":9620": an IPv6 socket takes IPv4 too, where the node has IPv6 at all.
        host = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"  # noqa: S104  # the user's own wish
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return _Server((str(address[0]), port), handler, family, reuse_port)


class _Handler(BaseHTTPRequestHandler):
    timeout = CLIENT_TIMEOUT_SECONDS
    server_version = "kiam"
    sys_version = ""

    def answer(self, status: HTTPStatus, body: bytes, content_type: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Scrapes aren't news."""


def _metrics_handler(metrics: CollectorRegistry) -> type[BaseHTTPRequestHandler]:
    class MetricsHandler(_Handler):
        def do_GET(self) -> None:
            if urlsplit(self.path).path != "/metrics":
                self.answer(HTTPStatus.NOT_FOUND, b"metrics are at /metrics\n")
                return
            encoder, content_type = choose_encoder(self.headers.get("Accept", ""))
            self.answer(HTTPStatus.OK, encoder(metrics), content_type)

    return MetricsHandler


_profiling = threading.Lock()


class _ProfileHandler(_Handler):
    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path != "/debug/pprof/profile":
            self.answer(HTTPStatus.NOT_FOUND, b"a profile is at /debug/pprof/profile?seconds=30\n")
            return
        try:
            seconds = float(parse_qs(url.query).get("seconds", [str(PROFILE_SECONDS)])[0])
        except ValueError:
            seconds = -1.0
        if not 0 < seconds <= LONGEST_PROFILE_SECONDS:
            self.answer(
                HTTPStatus.BAD_REQUEST, f"seconds must be a number up to {LONGEST_PROFILE_SECONDS:.0f}\n".encode()
            )
            return
        if not _profiling.acquire(blocking=False):
            self.answer(HTTPStatus.CONFLICT, b"another profile is being taken; ask again when it is done\n")
            return
        try:
            stacks = sample_stacks(seconds)
        finally:
            _profiling.release()
        self.answer(HTTPStatus.OK, "".join(f"{stack} {count}\n" for stack, count in stacks.most_common()).encode())


def sample_stacks(seconds: float) -> Counter[str]:
    """How often each stack of each thread was seen in that time, SAMPLES_PER_SECOND times a second of wall time.

    Keys are folded stacks (``thread;outermost;...;innermost``), which flamegraph.pl, speedscope and inferno read.
    """
    stacks: Counter[str] = Counter()
    own = threading.get_ident()
    end = time.monotonic() + seconds
    while (now := time.monotonic()) < end:
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        for identity, frame in sys._current_frames().items():  # noqa: SLF001  # its documented name
            if identity != own:
                stacks[f"{names.get(identity, identity)};{_fold(frame)}"] += 1
        time.sleep(min(1 / SAMPLES_PER_SECOND, max(end - now, 0)))
    return stacks


def _fold(frame: FrameType | None) -> str:
    calls = []
    while frame is not None:
        code = frame.f_code
        calls.append(f"{code.co_qualname} ({code.co_filename}:{frame.f_lineno})".replace(";", ","))
        frame = frame.f_back
    return ";".join(reversed(calls))
