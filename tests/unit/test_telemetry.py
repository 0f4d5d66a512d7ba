"""The metrics and profile listeners."""

from __future__ import annotations

import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from prometheus_client import CollectorRegistry, Counter

from kiam.errors import UserError
from kiam.telemetry import CLIENT_TIMEOUT_SECONDS, MOST_CONNECTIONS, parse_listen_address, serve_telemetry
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
