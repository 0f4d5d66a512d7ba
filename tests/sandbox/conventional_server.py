"""A stand-in for the conventional (Go) kiam server: its three unary methods, UNKNOWN and a text for every error.

WatchNode isn't there, so a caller gets UNIMPLEMENTED, as from the real one. What it knows is changed from the test that
runs it, in the same process.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

import grpc

from kiam.rpc import kiam_pb2
from kiam.tls import TLSFiles

BASE_ARN = "arn:aws:iam::123456789012:role/"


@dataclass(slots=True)
class ConventionalPods:
    """What the server knows: the role of the pod at each address, and what goes wrong."""

    roles: dict[str, str] = field(default_factory=dict)
    """By address; an empty role is a pod without the annotation."""
    twins: set[str] = field(default_factory=set)
    """Addresses that two running pods have."""
    aws_error: str = ""
    """What STS says instead of giving credentials."""
    health: str = "ok"


def _abort(context: grpc.ServicerContext, text: str) -> NoReturn:
    # The conventional server returns plain Go errors, which gRPC sends as UNKNOWN.
    context.abort(grpc.StatusCode.UNKNOWN, text)
    raise AssertionError("abort raises")


def _arn(role: str) -> str:
    return role if role.startswith("arn:") else BASE_ARN + role.removeprefix("/")


class ConventionalServer:
    """Runs on 127.0.0.1; ``port`` says where. ``calls`` counts by method."""

    def __init__(self, tls: TLSFiles, port: int = 0, pods: ConventionalPods | None = None) -> None:
        self.pods = pods or ConventionalPods()
        self.calls: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._server = grpc.server(ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
        methods = {
            "GetPodRole": _handler(self._role, kiam_pb2.GetPodRoleRequest),
            "GetPodCredentials": _handler(self._credentials, kiam_pb2.GetPodCredentialsRequest),
            "GetHealth": _handler(self._health, kiam_pb2.GetHealthRequest),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("kiam.KiamService", methods),))
        material = tls.read()
        credentials = grpc.ssl_server_credentials(
            [(material.key, material.cert)], root_certificates=material.ca, require_client_auth=True
        )
        self.port = self._server.add_secure_port(f"127.0.0.1:{port}", credentials)
        self._server.start()

    def stop(self) -> None:
        """Go away at once, as when killed."""
        self._server.stop(None).wait()

    def _count(self, method: str) -> None:
        with self._lock:
            self.calls[method] += 1

    def _role(self, request: kiam_pb2.GetPodRoleRequest, context: grpc.ServicerContext) -> kiam_pb2.Role:
        self._count("GetPodRole")
        if request.ip in self.pods.twins:
            _abort(context, "multiple running pods found")
        if request.ip not in self.pods.roles:
            _abort(context, "pod not found")
        return kiam_pb2.Role(name=self.pods.roles[request.ip])

    def _credentials(
        self, request: kiam_pb2.GetPodCredentialsRequest, context: grpc.ServicerContext
    ) -> kiam_pb2.Credentials:
        self._count("GetPodCredentials")
        if request.ip in self.pods.twins:
            _abort(context, "multiple running pods found")
        annotated = self.pods.roles.get(request.ip)
        if annotated is None:
            _abort(context, "no pod found")
        if not annotated:
            _abort(context, "role can't be empty")
        if _arn(request.role) != _arn(annotated):
            _abort(context, "forbidden by policy")
        if self.pods.aws_error:
            _abort(context, self.pods.aws_error)
        return issue(_arn(request.role))

    def _health(self, request: kiam_pb2.GetHealthRequest, context: grpc.ServicerContext) -> kiam_pb2.HealthStatus:
        self._count("GetHealth")
        return kiam_pb2.HealthStatus(message=self.pods.health)


def issue(role_arn: str, lifetime: timedelta = timedelta(minutes=15)) -> kiam_pb2.Credentials:
    """Made-up credentials that tell which role they are for."""
    now = datetime.now(UTC)
    return kiam_pb2.Credentials(
        code="Success",
        type="AWS-HMAC",
        access_key_id="ASIA" + role_arn.rpartition("/")[2],
        secret_access_key=f"secret+of/{role_arn}",
        token=f"token=={role_arn}",
        expiration=(now + lifetime).strftime("%Y-%m-%dT%H:%M:%SZ"),
        last_updated=now.strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def _handler(method: Callable[..., Any], request: Any) -> grpc.RpcMethodHandler[Any, Any]:
    return grpc.unary_unary_rpc_method_handler(
        method, request_deserializer=request.FromString, response_serializer=lambda answer: answer.SerializeToString()
    )


@contextmanager
def conventional_server(tls: TLSFiles, port: int = 0) -> Iterator[ConventionalServer]:
    """A server for the length of the block."""
    server = ConventionalServer(tls, port)
    try:
        yield server
    finally:
        server.stop()
