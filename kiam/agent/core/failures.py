"""Why a pod isn't given what it asked for. Each failure is an HTTP status and one line for whoever reads the pod's log.

The lines name neither other pods nor secrets: the reader is the pod, which may be hostile.
"""

from __future__ import annotations

import re


class RequestFailure(Exception):
    """Answered with ``status``, the message as the body and, where ``retry_after`` is set, so many seconds to wait."""

    status = 500
    retry_after: int | None = None

    @property
    def line(self) -> str:
        """The body, without its newline."""
        return str(self)


class Unparsable(RequestFailure):
    """The request can't be understood, or is spelt in a way that could mean two things."""

    status = 400


class Unauthorized(RequestFailure):
    """An IMDSv2 session token is missing, wrong or has expired; SDKs then ask for another one."""

    status = 401


class UnusableRole(Unparsable):
    """The path names a role that can't be any, which may well be what the pod is annotated with."""

    def __init__(self, line: str, role: str) -> None:
        super().__init__(line)
        self.role = role


class Forbidden(RequestFailure):
    """The policy's word; asking again doesn't help."""

    status = 403


class Impostor(Forbidden):
    """The kernel says that who asks is another pod than the one whose address it uses."""


class NoRole(RequestFailure):
    """The pod has no role annotation, or the path is nothing the agent serves."""

    status = 404


class MethodNotAllowed(RequestFailure):
    """The path exists for other methods."""

    status = 405

    def __init__(self, allowed: str) -> None:
        super().__init__(f"method not allowed; use {allowed}")
        self.allowed = allowed


class TooLarge(RequestFailure):
    """The request's body is over the limit."""

    status = 413


class UpstreamFailed(RequestFailure):
    """The instance metadata service didn't answer, or not in a way that can be passed on."""

    status = 502


class TryAgain(RequestFailure):
    """Not now, but perhaps in a moment."""

    status = 503
    retry_after = 1


class NotYetKnown(TryAgain):
    """No pod is known at the address so far."""


class ServerAway(TryAgain):
    """The kiam server can't be reached, and memory may not answer."""


class CredentialsUnavailable(TryAgain):
    """The pod is known and allowed, but AWS gave no credentials."""


class TooManyWaiting(TryAgain):
    """The pod keeps too many requests waiting at once."""


# "AccessDenied: User: arn:… is not authorized …": the code says enough, the rest names the server's own identity.
_AWS_ERROR = re.compile(r"(?:.*?\b)?([A-Z][A-Za-z0-9.]{2,63}): ", re.DOTALL)


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


def impostor() -> Impostor:
    """The address is another pod's."""
    return Impostor("forbidden: your address is another pod's")


def not_yet_certain() -> NotYetKnown:
    """The kernel's word and the server's don't fit together (yet), or the kernel has none where one is required."""
    return NotYetKnown("it isn't certain yet which pod you are; try again")


def server_away() -> ServerAway:
    """The server can't be reached."""
    return ServerAway("the kiam server is away; try again")


def credentials_unavailable(message: str, retry_after: int = 1) -> CredentialsUnavailable:
    """AWS gave no credentials; of its message only the code is told. ``retry_after`` is in seconds."""
    found = _AWS_ERROR.match(message)
    failure = CredentialsUnavailable(f"no credentials from AWS: {found[1]}" if found else "no credentials from AWS yet")
    failure.retry_after = max(1, retry_after)
    return failure
