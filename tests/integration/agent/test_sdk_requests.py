"""The requests that unmodified AWS clients send are answered, byte for byte as they were seen."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pytest

from tests.integration.agent.conftest import CREDENTIALS, RunningAgent, running_agent
from tests.sandbox.aws import AwsProcess
from tests.sandbox.conventional_server import conventional_server
from tests.sandbox.pki import Pki

POD = "127.0.0.31"


@dataclass(frozen=True, slots=True)
class Sent:
    """One request of a client."""

    client: str
    method: str
    path: str
    fields: tuple[str, ...]

    def head(self, token: str) -> bytes:
        lines = (f"{self.method} {self.path} HTTP/1.1", *(field.replace("<token>", token) for field in self.fields))
        return "".join(f"{line}\r\n" for line in (*lines, "")).encode()


def _read() -> dict[str, list[Sent]]:
    lines = (Path(__file__).parent / "data" / "sdk-requests.tsv").read_text().splitlines()
    sent = [
        Sent(client, method, path, tuple(fields.split(" | ")))
        for client, method, path, fields in (line.split("\t") for line in lines if not line.startswith("#"))
    ]
    sent.sort(key=lambda request: request.client)
    return {client: list(requests) for client, requests in groupby(sent, key=lambda request: request.client)}


REQUESTS = _read()


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory, pki: Pki) -> Iterator[RunningAgent]:
    with (
        AwsProcess(tmp_path_factory.mktemp("aws")) as aws,
        conventional_server(pki.server) as server,
        running_agent(
            tmp_path_factory.mktemp("agent"),
            f"localhost:{server.port}",
            pki.agent,
            f"--instance-metadata-url={aws.imds_url}",
        ) as agent,
    ):
        server.pods.roles[POD] = "cart"
        yield agent


def _exchange(sock: socket.socket, request: Sent, token: str) -> tuple[int, bytes]:
    """Send a request and read its answer; what waits for leave to send a body gets it before the answer."""
    sock.sendall(request.head(token))
    received = b""
    if any(field.startswith("Expect:") for field in request.fields):
        while b"\r\n\r\n" not in received:
            received += _receive(sock)
        assert received.startswith(b"HTTP/1.1 100 ")
        received = received.partition(b"\r\n\r\n")[2]
        sock.sendall(b"0\r\n\r\n")
    while b"\r\n\r\n" not in received:
        received += _receive(sock)
    head, _, body = received.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
    assert length is not None, head
    while len(body) < int(length[1]):
        body += _receive(sock)
    assert len(body) == int(length[1])
    return int(head.split()[1]), body


def _receive(sock: socket.socket) -> bytes:
    data = sock.recv(65536)
    assert data, "the agent closed the connection"
    return data


@pytest.mark.parametrize("client", REQUESTS)
def test_client_is_answered_over_one_connection(agent: RunningAgent, client: str) -> None:
    token = ""
    sock = agent.connect(POD)
    try:
        for request in REQUESTS[client]:
            status, body = _exchange(sock, request, token)
            if request.method == "PUT":
                assert status == 200, request
                token = body.decode()
            elif request.path.rstrip("/") + "/" == CREDENTIALS:
                assert (status, body) == (200, b"cart"), request
            elif request.path.startswith(CREDENTIALS):
                assert status == 200, request
                assert json.loads(body)["Code"] == "Success"
            else:
                # --allow-route-regexp lets nothing through here.
                assert status == 404, request
            if any(field.casefold() == "connection: close" for field in request.fields):
                assert sock.recv(1) == b""
                sock.close()
                sock = agent.connect(POD)
    finally:
        sock.close()


def test_every_kind_of_client_is_here() -> None:
    assert len(REQUESTS) >= 33
    for ending in (CREDENTIALS[:-1], f"{CREDENTIALS}/cart"):
        assert any(request.path == ending for requests in REQUESTS.values() for request in requests)
