"""Why a pod isn't given what it asked for. Each failure is an HTTP status and one line for whoever reads the pod's log.

The lines name neither other pods nor secrets: the reader is the pod, which may be hostile.
"""

from __future__ import annotations


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


class Forbidden(RequestFailure):
    """The policy's word; asking again doesn't help."""

    status = 403


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
