"""Starting in any order, certificates that change or are wrong, stopping, and one agent taking over from another."""

from __future__ import annotations

import http.client
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from kiam.tls import TLSFiles
from tests.integration.agent.conftest import CREDENTIALS, running_agent
from tests.sandbox.certificates import MountedSecret
from tests.sandbox.conventional_server import conventional_server
from tests.sandbox.pki import Pki, make_pki
from tests.sandbox.process import free_port, wait_until

POD = "127.0.0.11"


def kiam(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    base = {name: value for name, value in os.environ.items() if name not in ("HOST_IP", "NODE_NAME")}
    return subprocess.run(
        [sys.executable, "-m", "kiam", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=base | (environment or {}),
    )


def tls_flags(tls: TLSFiles) -> list[str]:
    return [f"--cert={tls.cert}", f"--key={tls.key}", f"--ca={tls.ca}"]


def test_agent_starts_without_a_server_and_answers_as_soon_as_there_is_one(tmp_path: Path, pki: Pki) -> None:
    port = free_port()
    with running_agent(tmp_path, f"localhost:{port}", pki.agent) as agent:
        with agent.connect(POD) as waiting:
            waiting.sendall(f"GET {CREDENTIALS} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            with conventional_server(pki.server, port) as server:
                server.pods.roles[POD] = "app"
                assert waiting.recv(65536).endswith(b"\r\n\r\napp")
        answer = agent.ask(CREDENTIALS, POD)
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert "server is away" in answer.text
        with conventional_server(pki.server, port) as server:
            server.pods.roles[POD] = "again"
            wait_until(lambda: agent.ask(CREDENTIALS, POD).body == b"again", "the restarted server's answer")


def test_pods_are_let_in_before_there_is_a_server(tmp_path: Path, pki: Pki) -> None:
    """However long the agent would wait for one: what asks meanwhile is held, and not refused a connection."""
    port = free_port()
    with running_agent(tmp_path, f"localhost:{port}", pki.agent, "--gateway-timeout-creation=90s") as agent:
        assert "starting without the server" not in agent.process.output()
        with agent.connect(POD) as waiting, conventional_server(pki.server, port) as server:
            waiting.sendall(f"GET {CREDENTIALS} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            server.pods.roles[POD] = "app"
            assert waiting.recv(65536).endswith(b"\r\n\r\napp")


def test_certificates_are_replaced_without_a_failed_call(tmp_path: Path, pki: Pki) -> None:
    volume = MountedSecret.of(tmp_path / "secret", pki.agent)
    failures: list[int] = []
    stop = threading.Event()
    with (
        conventional_server(pki.server) as server,
        running_agent(tmp_path, f"localhost:{server.port}", volume.files) as agent,
    ):
        server.pods.roles[POD] = "app"

        def more_calls(than: int) -> bool:
            return server.calls["GetPodRole"] > than + 50

        def load() -> None:
            while not stop.is_set():
                status = agent.ask(CREDENTIALS, POD).status
                if status != 200:
                    failures.append(status)

        threads = [threading.Thread(target=load) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for name in ("agent-1", "agent-2"):
                calls = server.calls["GetPodRole"]
                volume.swap_for(pki.issue(name, [name]))
                agent.process.wait_for_output(f"TLS certificate '{name}' loaded")
                wait_until(partial(more_calls, calls), "calls with the new certificate")
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert failures == []


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        ("wrong-host", "elsewhere.invalid"),
        ("expired", "expired"),
        ("other-ca", "was issued by"),
        ("agent-other-ca", "refused our certificate|closed the connection"),
    ],
)
def test_certificate_that_is_refused_is_said_clearly(tmp_path: Path, pki: Pki, variant: str, words: str) -> None:
    other = make_pki(tmp_path / "other")
    server_files, agent_files = pki.server, pki.agent
    if variant == "wrong-host":
        server_files = pki.wrong_host()
    elif variant == "expired":
        server_files = pki.expired()
    elif variant == "other-ca":
        server_files = TLSFiles(other.server.cert, other.server.key, pki.ca)
    else:
        agent_files = TLSFiles(other.agent.cert, other.agent.key, pki.ca)
    with (
        conventional_server(server_files) as server,
        running_agent(tmp_path, f"localhost:{server.port}", agent_files) as agent,
    ):
        found = agent.process.wait_for_output(rf"^.* ERROR .*no connection to the server at .*({words}).*$")
        health = kiam("health", f"--server-address=localhost:{server.port}", "--timeout=5s", *tls_flags(agent_files))
    assert "there is no connection available" not in found[0]
    assert health.returncode == 1
    assert health.stderr.count("\n") == 1
    assert health.stderr.startswith("kiam health: ")


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--allow-route-regexp=("], "--allow-route-regexp"),
        (["--host=::1", "--dataplane=nftables"], "IPv4"),
        (["--ready-file=/nowhere/ready", "--gateway-timeout-creation=0s"], "--ready-file"),
        (["--prometheus-listen-addr=x"], "--prometheus-listen-addr"),
    ],
)
def test_what_cannot_work_is_one_clear_line(pki: Pki, flags: Sequence[str], line: str) -> None:
    done = kiam("agent", "--host=127.0.0.1", f"--port={free_port()}", *tls_flags(pki.agent), *flags)
    assert done.returncode == 1
    assert line in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_port_in_use_is_one_clear_line(pki: Pki) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with conventional_server(pki.server) as server:
            done = kiam(
                "agent", "--host=127.0.0.1", f"--port={port}", f"--server-address=localhost:{server.port}",
                *tls_flags(pki.agent),
            )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"kiam agent: --port: port {port} is in use by another program; stop it or choose another"
    )


def test_sigterm_finishes_what_is_under_way_and_exits_0(tmp_path: Path, pki: Pki) -> None:
    ready = tmp_path / "ready"
    with (
        conventional_server(pki.server) as server,
        running_agent(tmp_path, f"localhost:{server.port}", pki.agent, f"--ready-file={ready}") as agent,
    ):
        assert ready.exists()
        with agent.connect(POD) as held:
            held.sendall(f"GET {CREDENTIALS} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            wait_until(lambda: server.calls["GetPodRole"], "the held request")
            agent.process.send_signal(signal.SIGTERM)
            agent.process.wait_for_output("stopping")
            assert not ready.exists()
            server.pods.roles[POD] = "app"
            answer = held.recv(65536)
        assert answer.endswith(b"\r\n\r\napp")
        assert b"Connection: close" in answer
        assert agent.process.wait() == 0


def test_sigterm_does_not_wait_for_ever(tmp_path: Path, pki: Pki) -> None:
    with (
        conventional_server(pki.server) as server,
        running_agent(tmp_path, f"localhost:{server.port}", pki.agent) as agent,
        agent.connect(POD) as idle,
    ):
        idle.sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
        assert idle.recv(65536).endswith(b"pong")
        agent.process.send_signal(signal.SIGTERM)
        assert agent.process.wait() == 0
        assert idle.recv(65536) == b""


class Load:
    """Clients that ask without a pause, half of them on connections they keep."""

    def __init__(self, port: int, path: str, clients: int = 6) -> None:
        self.port, self.path = port, path
        self.answers = 0
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(bool(number % 2),)) for number in range(clients)]

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def wait_for_more(self, answers: int = 200) -> None:
        before = self.answers
        wait_until(lambda: self.answers > before + answers, "load")

    def _run(self, keep: bool) -> None:
        connection: http.client.HTTPConnection | None = None
        while not self._stop.is_set():
            try:
                if connection is None:
                    connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=15, source_address=(POD, 0))
                connection.request("GET", self.path)
                response = connection.getresponse()
                response.read()
                if response.status != 200:
                    self.failures.append(f"{response.status}")
                self.answers += 1
                if not keep or response.will_close:
                    connection.close()
                    connection = None
            except OSError as error:
                self.failures.append(repr(error))
                connection = None
        if connection is not None:
            connection.close()


def test_new_agent_takes_over_from_the_old_without_a_failed_request(tmp_path: Path, pki: Pki) -> None:
    port = free_port()
    with conventional_server(pki.server) as server:
        server.pods.roles[POD] = "app"
        address = f"localhost:{server.port}"
        with ExitStack() as agents, Load(port, CREDENTIALS) as load:
            current = agents.enter_context(running_agent(tmp_path, address, pki.agent, port=port))
            load.start()
            load.wait_for_more()
            for _ in range(3):
                # As a DaemonSet with maxSurge does it: the new one is ready, then the old one is told to go.
                new = agents.enter_context(running_agent(tmp_path, address, pki.agent, port=port))
                current.process.send_signal(signal.SIGTERM)
                assert current.process.wait() == 0
                load.wait_for_more()
                current = new
        assert load.failures == []
        assert load.answers > 600


def test_new_agent_leaves_the_port_to_one_that_may_know_more(tmp_path: Path, pki: Pki) -> None:
    port = free_port()
    with conventional_server(pki.server) as server:
        server.pods.roles[POD] = "app"
        server_port = server.port
        with running_agent(tmp_path, f"localhost:{server_port}", pki.agent, port=port) as old:
            server.stop()
            with running_agent(tmp_path, f"localhost:{server_port}", pki.agent, port=port, serving=False) as new:
                # Past its patience, it still sees somebody on the port and no server.
                new.process.wait_for_output("no connection to the server")
                assert "serving pods" not in new.process.output()
                old.process.stop()
                new.process.wait_for_output("starting without the server")
                new.process.wait_for_output("serving pods")


def test_metrics_have_the_contracts_names(tmp_path: Path, pki: Pki) -> None:
    metrics_port = free_port()
    with (
        conventional_server(pki.server) as server,
        running_agent(
            tmp_path, f"localhost:{server.port}", pki.agent, f"--prometheus-listen-addr=127.0.0.1:{metrics_port}",
        ) as agent,
    ):  # fmt: skip
        server.pods.roles = {POD: "app", "127.0.0.12": ""}
        for path, pod in (
            (CREDENTIALS, POD), (CREDENTIALS + "app", POD), (CREDENTIALS + "no", POD), (CREDENTIALS, "127.0.0.12"),
            ("/nothing", POD),
        ):  # fmt: skip
            agent.ask(path, pod)
        connection = http.client.HTTPConnection("127.0.0.1", metrics_port)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
    for line in (
        'kiam_metadata_responses_total{code="200",handler="roleName"} 1.0',
        'kiam_metadata_responses_total{code="404",handler="roleName"} 1.0',
        'kiam_metadata_responses_total{code="200",handler="credentials"} 1.0',
        'kiam_metadata_responses_total{code="403",handler="credentials"} 1.0',
        'kiam_metadata_responses_total{code="404",handler="proxy"} 1.0',
        'kiam_metadata_success_total{handler="credentials"} 1.0',
        'kiam_metadata_empty_role_total{handler="roleName"} 1.0',
        'kiam_metadata_credential_fetch_errors_total{handler="credentials"} 1.0',
        'kiam_metadata_find_role_errors_total{handler="roleName"} 0.0',
        'kiam_metadata_credential_encode_errors_total{handler="credentials"} 0.0',
        "kiam_metadata_proxy_requests_blocked_total 1.0",
        'kiam_metadata_handler_latency_seconds_bucket{handler="credentials",le="0.001"}',
        'kiam_metadata_handler_latency_seconds_bucket{handler="credentials",le="4.096"} 2.0',
        'kiam_metadata_handler_latency_seconds_count{handler="health"} 0.0',
        "grpc_client_tls_certificate_expiry_seconds ",
    ):
        assert line in text, line
    assert 'grpc_client_handled_total{grpc_code="OK",grpc_method="GetPodRole",' in text


def test_deprecated_flag_is_warned_about(tmp_path: Path, pki: Pki) -> None:
    with (
        conventional_server(pki.server) as server,
        running_agent(tmp_path, f"localhost:{server.port}", pki.agent, "--server-address-refresh=10s") as agent,
    ):
        assert "--server-address-refresh has no effect" in agent.process.output()


def test_health_exit_codes(pki: Pki) -> None:
    with conventional_server(pki.server) as server:
        flags = (f"--server-address=localhost:{server.port}", "--timeout=5s", *tls_flags(pki.agent))
        assert kiam("health", *flags).returncode == 0
        server.pods.health = "waiting for pods"
        unwell = kiam("health", *flags)
        assert unwell.returncode == 1
        assert "waiting for pods" in unwell.stderr
    away = kiam("health", *flags)
    assert away.returncode == 1
    assert away.stderr.count("\n") == 1


@pytest.mark.serial
def test_health_costs_little(pki: Pki) -> None:
    """At most 0.15 CPU seconds, averaged over 10 runs: kubelet runs it every few seconds."""
    with conventional_server(pki.server) as server:
        argv = [
            *(sys.executable, "-m", "kiam", "health", f"--server-address=localhost:{server.port}", "--timeout=5s"),
            *tls_flags(pki.agent),
        ]
        subprocess.run(argv, check=True)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        for _ in range(10):
            subprocess.run(argv, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert cpu / 10 <= 0.15


def test_health_imports_next_to_nothing() -> None:
    program = (
        "import sys; from kiam.cli import build_parser; build_parser('health'); import grpc; "
        "print([name for name in ('asyncio', 'google.protobuf', 'cryptography', 'aiohttp', 'prometheus_client', 'rich',"
        " 'pyroute2') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    # grpc imports asyncio itself.
    assert done.stdout.strip() in ("[]", "['asyncio']")


def test_agent_process_has_neither_boto3_nor_kubernetes() -> None:
    program = "import sys, kiam.agent.run; print([n for n in ('boto3', 'botocore', 'kubernetes') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
