"""The container credentials endpoint, as EKS Pod Identity's agent has it: ``GET /v1/credentials`` with a token.

SDKs ask it when ``AWS_CONTAINER_CREDENTIALS_FULL_URI`` and ``AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE`` are set (AWS SDKs
and Tools reference, "Container credential provider"). The token is the pod's projected service account token. It says
more than an address, but only to the Kubernetes API, so the server is asked each time; nothing is remembered here.
"""

from __future__ import annotations

import asyncio
import logging
from time import perf_counter
from typing import Protocol

from kiam.agent.core.askers import PodUidMode
from kiam.agent.core.failures import MethodNotAllowed, NoRole, RequestFailure, Unauthorized, not_yet_certain
from kiam.agent.core.identities import REQUEST_BUDGET, PodIdentities
from kiam.agent.http.messages import Plain, Request, Response, target_of, text
from kiam.agent.http.reading import BodyUse
from kiam.agent.http.request_log import RefusalLog
from kiam.agent.http.token_desk import require_direct
from kiam.agent.http.waiting import Waiting
from kiam.agent.metrics import AgentMetrics
from kiam.agent.settings import Limits

log = logging.getLogger(__name__)

PATH = "/v1/credentials"
_JSON = (("Content-Type", "application/json"),)


class TokenCalls(Protocol):
    """What decides on tokens."""

    async def container_credentials(self, token: str, address: str, uid: str, deadline: float) -> bytes:
        """The document for the pod a token is bound to. Raises RequestFailure."""


class ContainerAnswers:
    """Answers the requests; an :class:`kiam.agent.http.pod_server.Answering`."""

    def __init__(
        self,
        calls: TokenCalls,
        identities: PodIdentities,
        limits: Limits,
        metrics: AgentMetrics,
        pod_uid: PodUidMode = PodUidMode.OFF,
    ) -> None:
        self._calls = calls
        self._identities = identities
        self._needs_uid = pod_uid is PodUidMode.REQUIRE
        self._waiting = Waiting(limits, metrics)
        self._meter = metrics.container_credentials
        self._refusals = RefusalLog()
        self.draining = False

    def at_once(self, address: str, plain: Plain, uid: str | None) -> bytes | None:
        """Nothing is at hand."""

    def body_use(self, request: Request) -> BodyUse:
        """No request here has a body."""
        return BodyUse.UNREAD

    async def respond(self, request: Request) -> Response:
        """Answer one request."""
        began = perf_counter()
        try:
            body = await self._document(request)
        except RequestFailure as failure:
            self._meter.fetch_error.inc()
            self._refusals.tell(request, failure, self._identities)
            fields = () if failure.retry_after is None else (("Retry-After", str(failure.retry_after)),)
            answer = text(failure.line + "\n", failure.status, *fields)
        else:
            answer = Response(200, body, _JSON)
        self._meter.answered(answer.status, perf_counter() - began)
        return answer

    async def _document(self, request: Request) -> bytes:
        if target_of(request.target).path != PATH:
            raise NoRole(f"only {PATH} is served here")
        if request.method != "GET":
            raise MethodNotAllowed("GET")
        # Which attack: a reverse proxy in a pod that adds a token of its own to whatever it is asked for.
        require_direct(request)
        tokens = request.values("authorization")
        if len(tokens) != 1 or not tokens[0].strip():
            raise Unauthorized("send the service account token, once, in Authorization")
        if self._needs_uid and request.uid is None:
            raise not_yet_certain()
        deadline = asyncio.get_running_loop().time() + REQUEST_BUDGET
        return await self._waiting.wait(
            request.asker,
            lambda: self._calls.container_credentials(tokens[0].strip(), request.client, request.uid or "", deadline),
        )
