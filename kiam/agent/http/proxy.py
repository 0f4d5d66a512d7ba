"""Passing a pod's request on to the real instance metadata service."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import re2
from aiohttp import web

from kiam.agent.core.failures import Forbidden, NoRole, TooLarge, Unparsable, UpstreamFailed
from kiam.agent.http.headers import passed_headers, was_forwarded
from kiam.agent.http.instance_metadata import InstanceMetadata
from kiam.agent.http.paths import Target, gives_node_credentials, is_token_path
from kiam.agent.settings import Limits
from kiam.errors import UserError

_CHUNK = 65536
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
# TRACE would show a pod the headers we add; CONNECT would open a tunnel.
_METHODS = frozenset({"GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS", "PATCH"})


class RouteFilter:
    """Decides what is passed on: the token endpoint always, the node's credentials never, the rest by the flag."""

    def __init__(self, allow_route_regexp: str) -> None:
        """Raises UserError for an expression that RE2 can't read."""
        options = re2.Options()
        options.log_errors = False
        try:
            self._allowed = re2.compile(allow_route_regexp, options)
        except re2.error as error:
            reason = error.args[0] if error.args else ""
            text = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
            raise UserError(
                f"--allow-route-regexp: '{allow_route_regexp}' is not a regular expression in RE2 syntax: {text}"
            ) from error

    def allows(self, method: str, path: str) -> bool:
        """Whether a request for a canonical path goes on. The expression is searched for, as Go's MatchString does."""
        if gives_node_credentials(path):
            return False
        if method == "PUT" and is_token_path(path):
            return True
        return self._allowed.search(path) is not None


class PassingOn:
    """Sends what the filter allows to the real service, and the answer back."""

    def __init__(self, upstream: InstanceMetadata, filter: RouteFilter, limits: Limits, budget: float) -> None:
        """``budget`` is in seconds, for everything from the request's body to the answer's last byte."""
        self._upstream = upstream
        self._filter = filter
        self._limits = limits
        self._budget = budget

    def refuses(self, request: web.BaseRequest, target: Target) -> bool:
        """Whether the request is not passed on."""
        return target.is_credentials or not self._filter.allows(request.method, target.path)

    async def handle(self, request: web.BaseRequest, target: Target) -> web.StreamResponse:
        """Pass on one request. Raises RequestFailure as long as nothing has been sent back."""
        if self.refuses(request, target):
            raise NoRole("not found; --allow-route-regexp of the kiam agent doesn't match this path")
        if request.method not in _METHODS:
            raise Unparsable("that method can't be passed on")
        if request.method == "PUT" and is_token_path(target.path) and was_forwarded(request.headers):
            # Which attack: a reverse proxy in a pod that forwards whatever path it is asked for. The real service
            # refuses tokens to it (Amazon EC2 user guide, "How Instance Metadata Service Version 2 works").
            raise Forbidden("a token isn't given to a request that a proxy has forwarded")
        answer: web.StreamResponse | None = None
        try:
            async with asyncio.timeout(self._budget):
                body = await self._read_body(request)
                headers = list(passed_headers(request.headers.items()))
                upstream = await self._upstream.send(request.method, target.path, target.query, headers, body)
                async with upstream:
                    answer = _head(upstream)
                    await self._copy(request, upstream, answer)
        except (TimeoutError, aiohttp.ClientError):
            if answer is None or not answer.prepared:
                raise UpstreamFailed("the instance metadata service doesn't answer in time") from None
            _cut(request)
        except UpstreamFailed:
            if answer is None or not answer.prepared:
                raise
            _cut(request)
        assert answer is not None
        return answer

    async def _read_body(self, request: web.BaseRequest) -> bytes:
        if not request.body_exists:
            return b""
        if (request.content_length or 0) > self._limits.body:
            raise TooLarge("the request's body is too large")
        if request.headers.get("Expect", "").casefold() == "100-continue" and request.transport is not None:
            # Whoever asks so waits a second or more for this before it sends its body (RFC 9110, section 10.1.1).
            request.transport.write(_CONTINUE)
        body = bytearray()
        while chunk := await request.content.readany():
            body += chunk
            if len(body) > self._limits.body:
                raise TooLarge("the request's body is too large")
        return bytes(body)

    async def _copy(
        self, request: web.BaseRequest, upstream: aiohttp.ClientResponse, answer: web.StreamResponse
    ) -> None:
        if (upstream.content_length or 0) > self._limits.passed_response:
            raise UpstreamFailed("the instance metadata service's answer is too large")
        if upstream.content_length is not None:
            answer.content_length = upstream.content_length
        await answer.prepare(request)
        sent = 0
        async for chunk in upstream.content.iter_chunked(_CHUNK):
            sent += len(chunk)
            if sent > self._limits.passed_response:
                raise UpstreamFailed("the instance metadata service's answer is too large")
            await answer.write(chunk)
        await answer.write_eof()


def _head(upstream: aiohttp.ClientResponse) -> web.StreamResponse:
    answer = web.StreamResponse(status=upstream.status, reason=upstream.reason)
    for name, value in passed_headers(upstream.headers.items()):
        answer.headers.add(name, value)
    return answer


def _cut(request: web.BaseRequest) -> None:
    """Close the connection, so that the pod doesn't take half an answer for a whole one."""
    protocol: Any = request.protocol
    protocol.force_close()
