"""What agent and server show of themselves: Prometheus metrics and, on demand, a profile of the running process.

Both are served from threads of their own, so that they answer while the event loop is busy: that is when one looks.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http import HTTPStatus
from types import FrameType
from urllib.parse import parse_qs, urlsplit

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.exposition import choose_encoder

from kiam.addresses import parse_listen_address
from kiam.errors import UserError
from kiam.threaded_http import Answer, Asked, ThreadedServer

PROFILE_SECONDS = 30.0
"""Length of a profile when none is asked for, as in Go's net/http/pprof."""
LONGEST_PROFILE_SECONDS = 300.0
SAMPLES_PER_SECOND = 100
_BACKLOG = 128


@contextmanager
def serve_telemetry(
    prometheus: str | None, pprof: str | None, registry: CollectorRegistry = REGISTRY, *, reuse_port: bool = False
) -> Iterator[None]:
    """Serve ``/metrics`` and ``/debug/pprof/profile`` on these addresses (HOST:PORT; None: off) until the block ends.

    With ``reuse_port`` (SO_REUSEPORT) an old and a new process can overlap. Raises UserError that names the flag.
    """
    with ExitStack() as stack:
        if prometheus is not None:
            stack.enter_context(_serve("--prometheus-listen-addr", prometheus, _metrics_of(registry), reuse_port))
        if pprof is not None:
            stack.enter_context(_serve("--pprof-listen-addr", pprof, _profile, reuse_port))
        yield


@contextmanager
def _serve(flag: str, text: str, answer: Callable[[Asked], Answer], reuse_port: bool) -> Iterator[None]:
    try:
        sock = _listen(*parse_listen_address(text), reuse_port)
    except ValueError as error:
        raise UserError(f"{flag}: {error}") from error
    except OSError as error:
        raise UserError(f"{flag}: can't listen on {text}: {error.strerror}; choose another address or port") from error
    server = ThreadedServer(sock, answer, flag.removeprefix("--"))
    try:
        yield
    finally:
        server.close()


def _listen(host: str, port: int, reuse_port: bool) -> socket.socket:
    if not host:
        # Every address, as Go means by ":9620": an IPv6 socket takes IPv4 too, where the node has IPv6 at all.
        host = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"  # noqa: S104  # the user's own wish
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _metrics_of(registry: CollectorRegistry) -> Callable[[Asked], Answer]:
    def answer(asked: Asked) -> Answer:
        if urlsplit(asked.target).path != "/metrics":
            return Answer(HTTPStatus.NOT_FOUND, b"metrics are at /metrics\n")
        encoder, content_type = choose_encoder(asked.accept)
        return Answer(HTTPStatus.OK, encoder(registry), content_type)

    return answer


_profiling = threading.Lock()


def _profile(asked: Asked) -> Answer:
    url = urlsplit(asked.target)
    if url.path != "/debug/pprof/profile":
        return Answer(HTTPStatus.NOT_FOUND, b"a profile is at /debug/pprof/profile?seconds=30\n")
    try:
        seconds = float(parse_qs(url.query).get("seconds", [str(PROFILE_SECONDS)])[0])
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= LONGEST_PROFILE_SECONDS:
        line = f"seconds must be a number up to {LONGEST_PROFILE_SECONDS:.0f}\n"
        return Answer(HTTPStatus.BAD_REQUEST, line.encode())
    if not _profiling.acquire(blocking=False):
        return Answer(HTTPStatus.CONFLICT, b"another profile is being taken; ask again when it is done\n")
    try:
        stacks = sample_stacks(seconds)
    finally:
        _profiling.release()
    return Answer(HTTPStatus.OK, "".join(f"{stack} {count}\n" for stack, count in stacks.most_common()).encode())


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
