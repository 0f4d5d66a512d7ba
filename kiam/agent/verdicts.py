"""What the server's gRPC errors mean for a pod.

A conventional server sends UNKNOWN and a text for everything; ours sends the same texts with fitting codes. Both are
understood here, and nowhere else.
"""

from __future__ import annotations

import re

import grpc

from kiam.agent.failures import (
    CredentialsUnavailable,
    Forbidden,
    NoRole,
    NotYetKnown,
    RequestFailure,
    ServerAway,
    Unparsable,
)

Code = grpc.StatusCode

_NO_POD = frozenset({"no pod found", "pod not found"})
_SEVERAL_PODS = "multiple running pods found"
_FORBIDDEN = "forbidden by policy"
_EMPTY_ROLE = "role can't be empty"
# "AccessDenied: User: arn:… is not authorized …": the code says enough, the rest names the server's own identity.
_AWS_ERROR = re.compile(r"(?:.*?\b)?([A-Z][A-Za-z0-9.]{2,63}): ", re.DOTALL)
# Codes with which gRPC itself reports that a call didn't reach the server or didn't come back.
_TRANSPORT = frozenset({Code.UNAVAILABLE, Code.CANCELLED})


def forbidden() -> Forbidden:
    """The policy's no; who may have what is not the pod's business."""
    return Forbidden("forbidden by policy")


def empty_role() -> NoRole:
    """The pod has no role annotation."""
    return NoRole("empty role")


def not_yet_known() -> NotYetKnown:
    """No pod is known at the address."""
    return NotYetKnown("no pod is known at your address yet; try again")


def several_pods() -> NotYetKnown:
    """More than one active pod is known at the address, so none is believed."""
    return NotYetKnown("your address is not known to be yours alone yet; try again")


def server_away() -> ServerAway:
    """The server can't be reached."""
    return ServerAway("the kiam server is away; try again")


def credentials_unavailable(message: str, retry_after: int = 1) -> CredentialsUnavailable:
    """AWS gave no credentials; of its message only the code is told. ``retry_after`` is in seconds."""
    found = _AWS_ERROR.match(message)
    failure = CredentialsUnavailable(f"no credentials from AWS: {found[1]}" if found else "no credentials from AWS yet")
    failure.retry_after = max(1, retry_after)
    return failure


def understand(
    code: grpc.StatusCode, details: str, retry_after: int | None = None, server_reachable: bool = True
) -> RequestFailure:
    """Turn a gRPC error into what the pod is told.

    ``retry_after``: seconds, as our server sends them along when STS gave no credentials; a connection that broke,
    which has the same code UNAVAILABLE, brings none.
    """
    text = details.strip()
    if retry_after is not None:
        return credentials_unavailable(text, retry_after)
    if text == _FORBIDDEN:
        return forbidden()
    if text in _NO_POD or code is Code.NOT_FOUND:
        return not_yet_known()
    if text == _SEVERAL_PODS or code is Code.FAILED_PRECONDITION:
        return several_pods()
    if text == _EMPTY_ROLE:
        return empty_role()
    if code is Code.INVALID_ARGUMENT:
        return Unparsable("the server can't make sense of that role")
    if code is Code.DEADLINE_EXCEEDED:
        # A server of ours holds a call until the pod is known, so a call that ran out means it still isn't.
        return not_yet_known() if server_reachable else server_away()
    if code in _TRANSPORT or code is Code.UNAUTHENTICATED:
        return server_away()
    if code is Code.PERMISSION_DENIED:
        return forbidden()
    return credentials_unavailable(text)
