"""The one thing the agent's handlers ask: who is at this address, and what are its credentials?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

REQUEST_BUDGET = 5.0
"""Seconds a pod's request may take as a whole, as in the conventional agent."""


@dataclass(frozen=True, slots=True)
class KnownPod:
    """Who a pod is, for logs and for decisions that aren't about credentials."""

    uid: str
    namespace: str
    name: str
    role: str
    """As annotated; empty: it isn't."""
    imds_tokens: str = ""
    """What it or its namespace is annotated with about session tokens; empty: nothing."""


class PodIdentities(Protocol):
    """Answers for pods, which are known by the address their connection comes from.

    ``uid`` is the kernel's word on the connection's pod, where it has one (:mod:`kiam.agent.core.askers`).

    All methods raise :class:`kiam.agent.core.failures.RequestFailure` when the answer is no. Deadlines are in seconds
    of the event loop's clock; an answer that isn't there yet is waited for until then.
    """

    def known_pod(self, address: str, uid: str | None = None) -> KnownPod | None:
        """The one pod that memory believes to have the address; None: none, or there is no memory."""

    def role_now(self, address: str, uid: str | None = None) -> tuple[KnownPod, bytes] | None:
        """Who asks, and its role exactly as annotated, if memory may answer; None: ask :meth:`role`."""

    def credentials_now(self, address: str, role: str, uid: str | None = None) -> tuple[KnownPod, bytes] | None:
        """Who asks, and the credentials document, if memory may answer; None: ask :meth:`credentials`."""

    async def role(self, address: str, deadline: float, uid: str | None = None) -> bytes:
        """The pod's role, exactly as annotated."""

    async def credentials(self, address: str, role: str, deadline: float, uid: str | None = None) -> bytes:
        """The credentials document for the role, which must be the pod's own."""

    def refused(self, address: str, role: str) -> None:
        """A request for a role was refused before anybody was asked: let the server know, for the pod's Event."""

    async def server_health(self, deadline: float) -> str:
        """What the server says of itself; "ok" when it is well."""

    def alone_since(self) -> float | None:
        """When the server went away, in seconds since the epoch; None: it is there, or was never needed."""
