"""An agent process on loopback. Pods are addresses of 127.0.0.0/8, which clients bind to."""

from __future__ import annotations

import http.client
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from kiam.tls import TLSFiles
from tests.sandbox.node import Answer
from tests.sandbox.pki import Pki, make_pki
from tests.sandbox.process import Process, free_port, wait_until

CREDENTIALS = "/latest/meta-data/iam/security-credentials/"


@dataclass(slots=True)
class RunningAgent:
    """An agent process and a client for it."""

    process: Process
    port: int

    def ask(
        self,
        path: str,
        pod: str = "127.0.0.1",
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        timeout: float = 15.0,
    ) -> Answer:
        """One request on a connection of its own, from a pod's address."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout, source_address=(pod, 0))
        try:
            connection.request(method, path, body=body, headers=dict(headers or {}))
            response = connection.getresponse()
            named = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, named, response.read())
        finally:
            connection.close()

    def connect(self, pod: str = "127.0.0.1") -> socket.socket:
        """A raw connection from a pod's address."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=20, source_address=(pod, 0))

    def raw(self, request: bytes, pod: str = "127.0.0.1") -> bytes:
        """Send bytes, and read until the agent closes the connection."""
        with self.connect(pod) as sock:
            sock.sendall(request)
            answer = b""
            while chunk := sock.recv(65536):
                answer += chunk
            return answer


@contextmanager
def running_agent(
    directory: Path,
    server: str,
    tls: TLSFiles,
    *flags: str,
    port: int | None = None,
    serving: bool = True,
    environment: Mapping[str, str] | None = None,
) -> Iterator[RunningAgent]:
    """Start an agent, wait until it serves, and end it with the block."""
    port = port or free_port()
    argv = [
        *(sys.executable, "-m", "kiam", "agent", "--host=127.0.0.1", f"--port={port}", f"--server-address={server}"),
        *(f"--cert={tls.cert}", f"--key={tls.key}", f"--ca={tls.ca}", "--drain-time=2s", *flags),
    ]
    log = Path(tempfile.mkstemp(prefix="agent-", suffix=".log", dir=directory)[1])
    with Process(argv, log, env=environment) as process:
        agent = RunningAgent(process, port)
        if serving:
            process.wait_for_output(r"serving pods on port")
            wait_until(lambda: agent.ask("/ping").status == 200, "the agent's ping")
        yield agent


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """An authority with a server's and an agent's certificate."""
    return make_pki(tmp_path_factory.mktemp("pki"))
