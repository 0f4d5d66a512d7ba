"""A conventional agent's side of gRPC, as a program: calls come in as JSON lines and go out as they are answered.

It runs inside the node's network namespace. The message text is what a conventional agent goes by, so it is what this
reports, with the code beside it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from kiam.rpc import kiam_pb2, kiam_pb2_grpc
from kiam.tls import TLSFiles
from tests.sandbox.netns import NetNs


@dataclass(frozen=True, slots=True)
class Reply:
    """What a call came to; code is ``OK`` when it succeeded."""

    code: str
    details: str
    response: dict[str, str]


class ConventionalAgent:
    """Makes unary calls from inside a network namespace. A context manager."""

    def __init__(self, netns: NetNs, files: TLSFiles, address: str) -> None:
        self._process = netns.popen(
            [sys.executable, "-m", "tests.sandbox.conventional", address, *map(str, (files.cert, files.key, files.ca))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> ConventionalAgent:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def call(self, method: str, deadline: float = 5.0, **request: str) -> Reply:
        """Call ``GetPodRole``, ``GetPodCredentials`` or ``GetHealth``; ``deadline`` in seconds."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([method, deadline, request]) + "\n")
        self._process.stdin.flush()
        return Reply(**json.loads(self._process.stdout.readline()))


def _serve(address: str, files: TLSFiles) -> None:
    material = files.read()
    credentials = grpc.ssl_channel_credentials(material.ca, material.key, material.cert)
    with grpc.secure_channel(address, credentials) as channel:
        stub: Any = kiam_pb2_grpc.KiamServiceStub(channel)
        for line in sys.stdin:
            method, deadline, fields = json.loads(line)
            request = getattr(kiam_pb2, f"{method}Request")(**fields)
            try:
                answer = getattr(stub, method)(request, timeout=deadline, wait_for_ready=True)
            except grpc.RpcError as error:
                reply: dict[str, Any] = {"code": error.code().name, "details": error.details(), "response": {}}
            else:
                fields = {field.name: value for field, value in answer.ListFields()}
                reply = {"code": "OK", "details": "", "response": fields}
            print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1], TLSFiles(*map(Path, sys.argv[2:5])))
