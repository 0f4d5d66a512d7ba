"""What is answered to which request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from functools import lru_cache
from time import perf_counter, time
from typing import TypeVar

from aiohttp import web

from kiam.agent.core.failures import MethodNotAllowed, NoRole, RequestFailure, TooManyWaiting
from kiam.agent.core.identities import REQUEST_BUDGET, PodIdentities
from kiam.agent.http.connection import Connection
from kiam.agent.http.instance_metadata import InstanceMetadata
from kiam.agent.http.paths import Target, normalise_address, parse_target, query_value
from kiam.agent.http.proxy import PassingOn
from kiam.agent.http.rate import RequestRate
from kiam.agent.http.request_log import request_fields
from kiam.agent.metrics import AgentMetrics, HandlerMetrics
from kiam.agent.settings import Limits

log = logging.getLogger(__name__)

T = TypeVar("T")

_READS = "GET, HEAD"
_TEXT = "text/plain; charset=utf-8"
_SERVER = "kiam"
_LOG_EVERY = 1.0
_HEAD = f"HTTP/1.1 200 OK\r\nServer: {_SERVER}\r\nContent-Type: {_TEXT}\r\nContent-Length: ".encode()
# Targets repeat: every SDK of every pod asks the same few. Refusals raise, and are not kept.
_parse = lru_cache(maxsize=1024)(parse_target)


class Handlers:
    """The agent's HTTP surface: ``/ping``, ``/health``, the credential paths, and passing on the rest."""

    def __init__(
        self,
        identities: PodIdentities,
        passing_on: PassingOn,
        instance_metadata: InstanceMetadata,
        metrics: AgentMetrics,
        limits: Limits,
        allow_ip_query: bool,
    ) -> None:
        self._identities = identities
        self._passing_on = passing_on
        self._instance_metadata = instance_metadata
        self._metrics = metrics
        self._limits = limits
        self._allow_ip_query = allow_ip_query
        self._waiting: dict[str, int] = {}
        self._passed_on = RequestRate(limits.passed_per_second, limits.passed_burst)
        self._date = (0, b"")
        self._logged: dict[str, float] = {}
        self.draining = False
        """Set when the agent stops: each connection is closed with its next answer."""

    def at_once(self, address: str, raw_target: str) -> bytes | None:
        """The whole answer to a plain GET of a credential path, if memory has it; None: go the long way.

        Everything that is refused goes the long way, so that there is one place where failures become answers; and
        everything at all while each request is logged.
        """
        if self.draining or self._allow_ip_query or log.isEnabledFor(logging.DEBUG):
            return None
        started = perf_counter()
        try:
            target = _parse(raw_target)
            if not target.is_credentials:
                return None
            if role := target.role:
                meter = self._metrics.credentials
                body = self._identities.credentials_now(address, role)
            else:
                meter = self._metrics.role_name
                body = self._identities.role_now(address)
        except RequestFailure:
            return None
        if body is None:
            return None
        now = int(time())
        if now != self._date[0]:
            self._date = (now, formatdate(now, usegmt=True).encode())
        answer = b"%b%d\r\nDate: %b\r\n\r\n%b" % (_HEAD, len(body), self._date[1], body)
        meter.answered(200, perf_counter() - started)
        return answer

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        began = perf_counter()
        started = asyncio.get_running_loop().time()
        meter: HandlerMetrics | None = self._metrics.proxy
        try:
            target = _parse(request._message.path)
            if target.is_credentials:
                meter = self._metrics.credentials if target.role else self._metrics.role_name
                answer = await self._credential_path(request, target, started)
            elif target.path == "/ping":
                meter = None
                _require_read(request)
                answer = _text("pong")
            elif target.path == "/health":
                meter = self._metrics.health
                _require_read(request)
                answer = await self._health(request, target, started)
            else:
                if self._passing_on.refuses(request, target):
                    self._metrics.proxy_blocked.inc()
                else:
                    self._limit_rate(request)
                answer = await self._queue(request, lambda: self._passing_on.handle(request, target))
        except RequestFailure as failure:
            answer = self._refusal(request, failure, meter)
        if meter is not None:
            meter.answered(answer.status, perf_counter() - began)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("processed request", extra=self._log_fields(request, answer.status))
        if not answer.prepared:
            answer.headers["Server"] = _SERVER
            if self.draining:
                answer.force_close()
        return answer

    async def _credential_path(self, request: web.BaseRequest, target: Target, started: float) -> web.StreamResponse:
        _require_read(request)
        role = target.role
        address = self._client(request, target)
        deadline = started + REQUEST_BUDGET
        identities = self._identities
        if role:
            body = identities.credentials_now(address, role)
            if body is None:
                body = await self._queue(request, lambda: identities.credentials(address, role, deadline))
        else:
            body = identities.role_now(address)
            if body is None:
                body = await self._queue(request, lambda: identities.role(address, deadline))
        return web.Response(body=body, headers={"Content-Type": _TEXT})

    async def _health(self, request: web.BaseRequest, target: Target, started: float) -> web.StreamResponse:
        try:
            async with asyncio.timeout_at(started + REQUEST_BUDGET):
                if query_value(target.query, "deep"):
                    message = await self._queue(
                        request, lambda: self._identities.server_health(started + REQUEST_BUDGET)
                    )
                    if message != "ok":
                        return _text(f"the server says: {message}", 500)
                answer = _text(await self._instance_metadata.instance_id())
        except RequestFailure as failure:
            answer = _text(failure.line, 500)
        except TimeoutError:
            answer = _text("not checked in time", 500)
        alone = self._identities.alone_since()
        # The body is the conventional agent's; whether we are on our own goes beside it.
        answer.headers["Kiam-Server"] = "connected" if alone is None else f"away for {time() - alone:.0f} s"
        return answer

    def _client(self, request: web.BaseRequest, target: Target) -> str:
        """Who asks: the peer of the TCP connection. A pod can't forge it without owning the address."""
        if self._allow_ip_query and target.query and (address := query_value(target.query, "ip")):
            return normalise_address(address)
        connection = request.protocol
        assert isinstance(connection, Connection)
        return connection.client_address

    def _limit_rate(self, request: web.BaseRequest) -> None:
        """Which attack: the real service drops packets above some 1,000 a second, whoever of the node sent them, so a
        pod that asks for tokens without end would keep the others from theirs, and /health from the instance's id."""
        connection = request.protocol
        assert isinstance(connection, Connection)
        if not self._passed_on.admit(connection.client_address, asyncio.get_running_loop().time()):
            self._metrics.refused_connections.labels("too many passed on").inc()
            raise TooManyWaiting("too many requests of yours for the instance metadata service; try again")

    async def _queue(self, request: web.BaseRequest, ask: Callable[[], Awaitable[T]]) -> T:
        """Have a request wait for its answer, unless too many of the same client do."""
        connection = request.protocol
        assert isinstance(connection, Connection)
        client = connection.client_address
        waiting = self._waiting.get(client, 0)
        if waiting >= self._limits.waiting:
            self._metrics.refused_connections.labels("too many waiting").inc()
            raise TooManyWaiting("too many requests of yours are waiting; try again")
        self._waiting[client] = waiting + 1
        try:
            return await ask()
        finally:
            if self._waiting[client] == 1:
                del self._waiting[client]
            else:
                self._waiting[client] -= 1

    def _refusal(self, request: web.BaseRequest, failure: RequestFailure, meter: HandlerMetrics | None) -> web.Response:
        metrics = self._metrics
        if meter is metrics.credentials:
            meter.fetch_error.inc()
        elif meter is metrics.role_name:
            (meter.empty_role if isinstance(failure, NoRole) else meter.find_role_error).inc()
        answer = _text(failure.line + "\n", failure.status)
        if failure.retry_after is not None:
            answer.headers["Retry-After"] = str(failure.retry_after)
        if isinstance(failure, MethodNotAllowed):
            answer.headers["Allow"] = failure.allowed
        client = getattr(request.protocol, "client_address", "")
        level = (
            logging.WARNING if failure.status != 404 and self._is_news(f"{client} {failure.status}") else logging.DEBUG
        )
        if log.isEnabledFor(level):
            log.log(level, "request refused: %s", failure, extra=self._log_fields(request, failure.status))
        return answer

    def _log_fields(self, request: web.BaseRequest, status: int) -> dict[str, object]:
        """The request and its pod, in the fields of conventional kiam's log."""
        client = getattr(request.protocol, "client_address", "")
        fields = request_fields(
            request.transport and request.transport.get_extra_info("peername"),
            request.method,
            request._message.path,
            request.headers.items(),
            status,
        )
        fields["pod.ip"] = client
        pod = self._identities.known_pod(client)
        if pod is not None:
            fields |= {"pod.namespace": pod.namespace, "pod.name": pod.name, "pod.iam.role": pod.role}
        return fields

    def _is_news(self, kind: str) -> bool:
        """Whether a refusal is worth a line: one a second for each client and status, so that no pod floods the log."""
        now = asyncio.get_running_loop().time()
        if now - self._logged.get(kind, -_LOG_EVERY) < _LOG_EVERY:
            return False
        if len(self._logged) > 4096:
            self._logged.clear()
        self._logged[kind] = now
        return True


def _text(line: str, status: int = 200) -> web.Response:
    return web.Response(status=status, body=line.encode(), headers={"Content-Type": _TEXT})


def _require_read(request: web.BaseRequest) -> None:
    if request.method not in ("GET", "HEAD"):
        raise MethodNotAllowed(_READS)
