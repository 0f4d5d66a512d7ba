"""What gRPC errors of both kinds of server mean for a pod."""

from __future__ import annotations

import grpc
import pytest

from kiam.agent.control.grpc_errors import understand
from kiam.agent.core.failures import credentials_unavailable

Code = grpc.StatusCode


@pytest.mark.parametrize(
    ("code", "text", "status"),
    [
        # The conventional server: UNKNOWN and a text.
        (Code.UNKNOWN, "no pod found", 503),
        (Code.UNKNOWN, "pod not found", 503),
        (Code.UNKNOWN, "multiple running pods found", 503),
        (Code.UNKNOWN, "forbidden by policy", 403),
        (Code.UNKNOWN, "role can't be empty", 404),
        (Code.UNKNOWN, "error finding role: role can't be empty", 404),
        (Code.UNKNOWN, "AccessDenied: User: arn:aws:iam::1:user/x is not authorized", 503),
        # Ours: fitting codes.
        (Code.NOT_FOUND, "no pod found", 503),
        (Code.FAILED_PRECONDITION, "multiple running pods found", 503),
        (Code.PERMISSION_DENIED, "forbidden by policy", 403),
        (Code.PERMISSION_DENIED, "this certificate is for another node", 403),
        (Code.INVALID_ARGUMENT, "role can't be empty", 404),
        (Code.INVALID_ARGUMENT, "role is longer than 2048 characters", 400),
        (Code.UNAVAILABLE, "waiting for pods", 503),
        # gRPC itself.
        (Code.UNAVAILABLE, "failed to connect to all addresses", 503),
        (Code.CANCELLED, "Channel closed!", 503),
        (Code.DEADLINE_EXCEEDED, "Deadline Exceeded", 503),
    ],
)
def test_status(code: grpc.StatusCode, text: str, status: int) -> None:
    failure = understand(code, text)
    assert failure.status == status
    assert "\n" not in failure.line
    assert (failure.retry_after is not None) == (status == 503)


def test_a_deadline_without_a_connection_means_the_server_is_away() -> None:
    assert "server is away" in understand(Code.DEADLINE_EXCEEDED, "", server_reachable=False).line
    assert "no pod is known" in understand(Code.DEADLINE_EXCEEDED, "", server_reachable=True).line


def test_what_sts_said_comes_with_when_to_ask_again() -> None:
    failure = understand(Code.UNAVAILABLE, "Throttling: Rate exceeded", retry_after=7)
    assert (failure.status, failure.retry_after) == (503, 7)
    assert failure.line == "no credentials from AWS: Throttling"


@pytest.mark.parametrize(
    "message",
    [
        "AccessDenied: User: arn:aws:sts::123456789012:assumed-role/kiam-server/i-1 is not authorized to perform: "
        "sts:AssumeRole on resource: arn:aws:iam::123456789012:role/other",
        "could not reach sts.amazonaws.com from 10.1.2.3",
    ],
)
def test_pods_are_not_told_whose_identity_the_server_has(message: str) -> None:
    line = credentials_unavailable(message).line
    assert "arn:" not in line
    assert "10.1.2.3" not in line
