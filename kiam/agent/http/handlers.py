"""What is answered to which request."""

from __future__ import annotations

import asyncio
import logging
from time import perf_counter, time
from typing import TypeVar

from kiam.agent.core.failures import MethodNotAllowed, NoRole, RequestFailure, TooManyWaiting, UnusableRole
from kiam.agent.core.identities import REQUEST_BUDGET, PodIdentities
from kiam.agent.http.dates import DatedHeads
from kiam.agent.http.instance_metadata import InstanceMetadata
from kiam.agent.http.messages import SERVER, TEXT, Plain, Request, Response, target_of, text
from kiam.agent.http.paths import Target, normalise_address, query_value
from kiam.agent.http.proxy import PassingOn
from kiam.agent.http.rate import RequestRate
from kiam.agent.http.reading import BodyUse
from kiam.agent.http.request_log import RefusalLog, log_fields
from kiam.agent.http.token_desk import TokenDesk
from kiam.agent.http.waiting import Waiting
from kiam.agent.metrics import AgentMetrics, HandlerMetrics
from kiam.agent.settings import Limits

log = logging.getLogger(__name__)

T = TypeVar("T")

_READS = "GET, HEAD"
_HEAD = f"HTTP/1.1 200 OK\r\nServer: {SERVER}\r\nContent-Type: {TEXT}\r\nContent-Length: ".encode()


class Handlers:
    """The agent's HTTP surface: ``/ping``, ``/health``, credentials, session tokens, and passing on the rest."""

    def __init__(
        self,
        identities: PodIdentities,
        tokens: TokenDesk,
        passing_on: PassingOn,
        instance_metadata: InstanceMetadata,
        metrics: AgentMetrics,
        limits: Limits,
        allow_ip_query: bool,
    ) -> None:
        self._identities = identities
        self._tokens = tokens
        self._passing_on = passing_on
        self._instance_metadata = instance_metadata
        self._metrics = metrics
        self._limits = limits
        self._allow_ip_query = allow_ip_query
        self._waiting = Waiting(limits, metrics)
        self._passed_on = RequestRate(limits.passed_per_second, limits.passed_burst)
        self._head_of = DatedHeads(_HEAD).of
        self._refusals = RefusalLog()
        self.draining = False
        """Set when the agent stops: each connection is closed with its next answer."""

    def at_once(self, address: str, plain: Plain, uid: str | None) -> bytes | None:
        """The whole answer to a plain GET of a credential path, if memory has it; None: ask :meth:`respond`.

        Everything that is refused goes there, so that there is one place where failures become answers; and everything
        at all while each request is logged.
        """
        target = plain.target
        if not target.is_credentials or self.draining or self._allow_ip_query or log.isEnabledFor(logging.DEBUG):
            return None
        started = perf_counter()
        try:
            if role := target.role:
                meter = self._metrics.credentials
                found = self._identities.credentials_now(address, role, uid)
            else:
                meter = self._metrics.role_name
                found = self._identities.role_now(address, uid)
            if found is None:
                return None
            pod, body = found
            self._tokens.check(pod, address, plain.token, uid)
        except RequestFailure:
            return None
        answer = self._head_of(len(body)) + body
        meter.answered(200, perf_counter() - started)
        return answer

    def body_use(self, request: Request) -> BodyUse:
        """A body is read where it goes on to the real service, and thrown away where clients may send an empty one."""
        try:
            target = target_of(request.target)
        except RequestFailure:
            return BodyUse.UNREAD
        if self._tokens.issues(request, target):
            return BodyUse.IGNORED
        return BodyUse.UNREAD if self._passing_on.refuses(request.method, target) else BodyUse.KEPT

    async def respond(self, request: Request) -> Response:
        """Answer one request."""
        began = perf_counter()
        started = asyncio.get_running_loop().time()
        meter: HandlerMetrics | None = self._metrics.proxy
        try:
            target = target_of(request.target)
            if target.is_credentials:
                meter = self._metrics.credentials if target.role else self._metrics.role_name
                answer = await self._credential_path(request, target, started)
            elif target.path == "/ping":
                meter = None
                _require_read(request)
                answer = text("pong")
            elif target.path == "/health":
                meter = self._metrics.health
                _require_read(request)
                answer = await self._health(request, target, started)
            elif self._tokens.issues(request, target):
                answer = self._tokens.issue(request)
            else:
                answer = await self._pass_on(request, target)
        except RequestFailure as failure:
            if isinstance(failure, UnusableRole):
                self._identities.refused(request.client, failure.role)
            answer = self._refusal(request, failure, meter)
        if meter is not None:
            meter.answered(answer.status, perf_counter() - began)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("processed request", extra=log_fields(request, answer.status, self._identities))
        return answer

    async def _credential_path(self, request: Request, target: Target, started: float) -> Response:
        _require_read(request)
        self._tokens.check_request(request)
        role = target.role
        address = self._address(request, target)
        # Who says with ?ip= that it is another is believed, where that is allowed at all.
        uid = request.uid if address == request.client else None
        deadline = started + REQUEST_BUDGET
        identities = self._identities
        found = identities.credentials_now(address, role, uid) if role else identities.role_now(address, uid)
        if found is not None:
            _, body = found
        else:
            body = await self._waiting.wait(
                request.asker,
                lambda: (
                    identities.credentials(address, role, deadline, uid)
                    if role
                    else identities.role(address, deadline, uid)
                ),
            )
            # Which attack: a request without a token that comes before the pod, and so its annotation, is known.
            self._tokens.check_request(request)
        return Response(200, body, (("Content-Type", TEXT),))

    async def _health(self, request: Request, target: Target, started: float) -> Response:
        status, line = 200, ""
        try:
            async with asyncio.timeout_at(started + REQUEST_BUDGET):
                if query_value(target.query, "deep"):
                    message = await self._waiting.wait(
                        request.asker, lambda: self._identities.server_health(started + REQUEST_BUDGET)
                    )
                    if message != "ok":
                        status, line = 500, f"the server says: {message}"
                if status == 200:
                    line = await self._instance_metadata.instance_id()
        except RequestFailure as failure:
            status, line = 500, failure.line
        except TimeoutError:
            status, line = 500, "not checked in time"
        alone = self._identities.alone_since()
        # The body is the conventional agent's; whether we are on our own goes beside it.
        server = "connected" if alone is None else f"away for {time() - alone:.0f} s"
        return text(line, status, ("Kiam-Server", server))

    async def _pass_on(self, request: Request, target: Target) -> Response:
        own_token = False
        if self._passing_on.refuses(request.method, target):
            self._metrics.proxy_blocked.inc()
        else:
            self._tokens.require_ours(request)
            own_token = self._tokens.replaces(request, target)
            self._limit_rate(request)
        return await self._waiting.wait(
            request.asker, lambda: self._passing_on.handle(request, target, own_token=own_token)
        )

    def _address(self, request: Request, target: Target) -> str:
        """Whose credentials: the peer's of the TCP connection. A pod can't forge it without owning the address."""
        if self._allow_ip_query and target.query and (address := query_value(target.query, "ip")):
            return normalise_address(address)
        return request.client

    def _limit_rate(self, request: Request) -> None:
        """Which attack: the real service drops packets above some 1,000 a second, whoever of the node sent them, so a
        pod that asks without end would keep the others from theirs, and /health from the instance's id."""
        if not self._passed_on.admit(request.asker, asyncio.get_running_loop().time()):
            self._metrics.refused_connections.labels("too many passed on").inc()
            raise TooManyWaiting("too many requests of yours for the instance metadata service; try again")

    def _refusal(self, request: Request, failure: RequestFailure, meter: HandlerMetrics | None) -> Response:
        metrics = self._metrics
        if meter is metrics.credentials:
            meter.fetch_error.inc()
        elif meter is metrics.role_name:
            (meter.empty_role if isinstance(failure, NoRole) else meter.find_role_error).inc()
        fields = []
        if failure.retry_after is not None:
            fields.append(("Retry-After", str(failure.retry_after)))
        if isinstance(failure, MethodNotAllowed):
            fields.append(("Allow", failure.allowed))
        self._refusals.tell(request, failure, self._identities)
        return text(failure.line + "\n", failure.status, *fields)


def _require_read(request: Request) -> None:
    if request.method not in ("GET", "HEAD"):
        raise MethodNotAllowed(_READS)
