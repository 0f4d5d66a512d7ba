"""What the server's gRPC errors mean for a pod.

A conventional server sends UNKNOWN and a text for everything; ours sends the same texts with fitting codes. Both are
understood here, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable

import grpc

from kiam.agent.core.failures import (
    NoRole,
    RequestFailure,
    Unauthorized,
    Unparsable,
    credentials_unavailable,
    empty_role,
    forbidden,
    not_yet_known,
    server_away,
    several_pods,
)

Code = grpc.StatusCode

_NO_POD = frozenset({"no pod found", "pod not found"})
_SEVERAL_PODS = "multiple running pods found"
_FORBIDDEN = "forbidden by policy"
_EMPTY_ROLE = "role can't be empty"
# Codes with which gRPC itself reports that a call didn't reach the server or didn't come back.
_TRANSPORT = frozenset({Code.UNAVAILABLE, Code.CANCELLED})

ANSWERED_NOT_READY = frozenset({Code.FAILED_PRECONDITION, Code.UNKNOWN})
"""With these GetHealth says that a server isn't ready: ours, and a conventional one."""


Understand = Callable[[grpc.StatusCode, str, int | None, bool], RequestFailure]
"""Like :func:`understand`."""


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
    if text.endswith(_EMPTY_ROLE):
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


def understand_token_error(
    code: grpc.StatusCode, details: str, retry_after: int | None = None, server_reachable: bool = True
) -> RequestFailure:
    """As :func:`understand`, for calls that bring a pod's service account token."""
    if code is Code.UNAUTHENTICATED:
        return Unauthorized(details)
    if code is Code.UNIMPLEMENTED:
        return NoRole("the kiam server takes no service account tokens; start it with --container-credentials")
    return understand(code, details, retry_after, server_reachable)
