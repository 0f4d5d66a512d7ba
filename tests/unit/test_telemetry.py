"""The metrics and profile listeners."""

from __future__ import annotations

import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from unittest.mock import Mock

import pytest
from prometheus_client import CollectorRegistry, Counter

from kiam.addresses import parse_listen_address
from kiam.errors import UserError
from kiam.telemetry import serve_telemetry
from kiam.threaded_http import CLIENT_TIMEOUT_SECONDS, MOST_CONNECTIONS
from tests.sandbox.process import free_port


@pytest.fixture
def ports() -> Iterator[tuple[int, int]]:
    registry = CollectorRegistry()
    Counter("kiam_test_things", "Things.", registry=registry).inc(3)
    prometheus, pprof = free_port(), free_port()
    with serve_telemetry(f"127.0.0.1:{prometheus}", f"localhost:{pprof}", registry):
        yield prometheus, pprof


def _get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("localhost:9620", ("localhost", 9620)),
        (":9620", ("", 9620)),
        ("[::1]:80", ("::1", 80)),
        ("0.0.0.0:0", ("0.0.0.0", 0)),
    ],
)
def test_listen_addresses_as_go_writes_them(text: str, address: tuple[str, int]) -> None:
    assert parse_listen_address(text) == address


@pytest.mark.parametrize(
    "text", ["", "9620", "localhost", "localhost:", "localhost:http", "localhost:70000", "a:-1", "a:²"]
)
def test_other_listen_addresses_are_refused_with_the_form_to_use(text: str) -> None:
    with pytest.raises(ValueError, match="write it like localhost:9620"):
        parse_listen_address(text)


def test_metrics_are_served_at_their_path_only(ports: tuple[int, int]) -> None:
    assert "kiam_test_things_total 3.0" in _get(f"http://127.0.0.1:{ports[0]}/metrics")[1]
    assert _get(f"http://127.0.0.1:{ports[0]}/")[0] == 404


def test_profile_shows_what_other_threads_are_doing(ports: tuple[int, int]) -> None:
    stop = threading.Event()

    def wait_for_the_end_of_the_test() -> None:
        stop.wait()

    thread = threading.Thread(target=wait_for_the_end_of_the_test, name="busy-thread")
    thread.start()
    try:
        status, body = _get(f"http://127.0.0.1:{ports[1]}/debug/pprof/profile?seconds=0.2")
    finally:
        stop.set()
        thread.join()
    assert status == 200
    line = next(line for line in body.splitlines() if line.startswith("busy-thread;"))
    assert "wait_for_the_end_of_the_test" in line
    assert int(line.rpartition(" ")[2]) > 1


@pytest.mark.parametrize("seconds", ["x", "0", "-1", "1e9", "nan", "inf"])
def test_profile_length_out_of_bounds_is_refused(ports: tuple[int, int], seconds: str) -> None:
    assert _get(f"http://127.0.0.1:{ports[1]}/debug/pprof/profile?seconds={seconds}")[0] == 400


def test_one_profile_at_a_time(ports: tuple[int, int]) -> None:
    url = f"http://127.0.0.1:{ports[1]}/debug/pprof/profile?seconds=1"
    statuses: list[int] = []
    threads = [threading.Thread(target=lambda: statuses.append(_get(url)[0])) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200, 409, 409]


def test_port_in_use_names_the_flag(ports: tuple[int, int]) -> None:
    with (
        pytest.raises(UserError, match=r"--prometheus-listen-addr: can't listen on .*: Address already in use"),
        serve_telemetry(f"127.0.0.1:{ports[0]}", None),
    ):
        pass


def test_nothing_listens_after_the_block() -> None:
    port = free_port()
    for _ in range(2):
        with serve_telemetry(f":{port}", None, CollectorRegistry()):
            assert _get(f"http://127.0.0.1:{port}/metrics")[0] == 200
    with pytest.raises(urllib.error.URLError):
        _get(f"http://127.0.0.1:{port}/metrics")


def test_connections_that_say_nothing_do_not_pile_up_threads(ports: tuple[int, int]) -> None:
    """A pod can reach the listener; whoever scrapes is answered all the same."""
    with ExitStack() as stack:
        silent = [
            stack.enter_context(socket.create_connection(("127.0.0.1", ports[0]))) for _ in range(MOST_CONNECTIONS + 8)
        ]
        assert _get(f"http://127.0.0.1:{ports[0]}/metrics")[0] == 200
        for cut in silent[:8]:
            # Long before a client that sends nothing is cut for that.
            cut.settimeout(CLIENT_TIMEOUT_SECONDS / 2)
            assert cut.recv(1) == b""


def _raw(port: int, request: bytes) -> tuple[bytes, bytes]:
    """Head and body of what is answered to these bytes."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.settimeout(CLIENT_TIMEOUT_SECONDS * 2)
        sock.sendall(request)
        head, _, body = b"".join(iter(lambda: sock.recv(65536), b"")).partition(b"\r\n\r\n")
    return head, body


def test_head_is_answered_without_a_body_and_other_methods_are_refused(ports: tuple[int, int]) -> None:
    head, body = _raw(ports[0], b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Connection: close" in head
    assert b"Content-Length: 0" not in head
    assert body == b""
    head, _ = _raw(ports[0], b"DELETE /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 405 ")
    assert b"Allow: GET, HEAD" in head


def test_openmetrics_are_given_to_who_accepts_them(ports: tuple[int, int]) -> None:
    request = b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: application/openmetrics-text; version=1.0.0\r\n\r\n"
    head, body = _raw(ports[0], request)
    assert b"Content-Type: application/openmetrics-text; version=1.0.0" in head
    assert body.endswith(b"# EOF\n")


@pytest.mark.parametrize("request_", [b"\x16\x03\x01\x00\x05hello\r\n\r\n", b"GET / HTTP/1.1\r\nno colon\r\n\r\n"])
def test_what_is_no_request_is_answered_so(ports: tuple[int, int], request_: bytes) -> None:
    assert _raw(ports[0], request_)[0].startswith(b"HTTP/1.1 400 ")


def test_a_second_request_behind_the_first_changes_nothing_of_it(ports: tuple[int, int]) -> None:
    one = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
    assert _raw(ports[0], one + one.replace(b"metrics", b"other"))[0].startswith(b"HTTP/1.1 200 ")


def test_headers_without_end_are_refused(ports: tuple[int, int]) -> None:
    with socket.create_connection(("127.0.0.1", ports[0])) as sock:
        sock.settimeout(CLIENT_TIMEOUT_SECONDS * 2)
        sock.sendall(b"GET /metrics HTTP/1.1\r\n")
        with suppress(OSError):
            for _ in range(100):
                sock.sendall(b"X-Field: " + b"a" * 1000 + b"\r\n")
        with suppress(ConnectionError):
            assert sock.recv(65536).startswith(b"HTTP/1.1 400 ")


def test_a_bug_in_an_answer_is_one_answer_and_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    registry, port = Mock(spec=CollectorRegistry), free_port()
    registry.collect.side_effect = ZeroDivisionError
    with serve_telemetry(f"127.0.0.1:{port}", None, registry):
        assert _get(f"http://127.0.0.1:{port}/metrics")[0] == 500
        assert _get(f"http://127.0.0.1:{port}/")[0] == 404
    assert "bug while answering '/metrics'" in caplog.text
