"""Passing a pod's request on to the real instance metadata service."""

from __future__ import annotations

import asyncio
from typing import Any

from kiam.agent.core.failures import NoRole, Unparsable, UpstreamFailed
from kiam.agent.http.headers import passed_headers
from kiam.agent.http.instance_metadata import InstanceMetadata
from kiam.agent.http.messages import TOKEN_FIELD, Request, Response
from kiam.agent.http.paths import Target, gives_node_credentials, is_token_path
from kiam.agent.settings import Limits
from kiam.errors import UserError

# TRACE would show a pod the headers we add; CONNECT would open a tunnel.
_NOTHING = "^$"
_METHODS = frozenset({"GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS", "PATCH"})


class RouteFilter:
    """Decides what is passed on: the token endpoint always, the node's credentials never, the rest by the flag."""

    def __init__(self, allow_route_regexp: str) -> None:
        """Raises UserError for an expression that RE2 can't read."""
        self._allowed: Any = None
        if allow_route_regexp == _NOTHING:
            return
        # The library is 2 MiB of memory that most nodes do without.
        import re2

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
        return self._allowed is not None and self._allowed.search(path) is not None


class PassingOn:
    """Sends what the filter allows to the real service, and the answer back."""

    def __init__(self, upstream: InstanceMetadata, filter: RouteFilter, limits: Limits, budget: float) -> None:
        """``budget`` is in seconds, for the whole exchange with the service."""
        self._upstream = upstream
        self._filter = filter
        self._limits = limits
        self._budget = budget

    def refuses(self, method: str, target: Target) -> bool:
        """Whether a request is not passed on."""
        return target.is_credentials or not self._filter.allows(method, target.path)

    async def handle(self, request: Request, target: Target, *, own_token: bool) -> Response:
        """Pass on one request; with ``own_token`` the agent's own session token goes along in place of the pod's.

        Raises RequestFailure.
        """
        if self.refuses(request.method, target):
            raise NoRole("not found; --allow-route-regexp of the kiam agent doesn't match this path")
        if request.method not in _METHODS:
            raise Unparsable("that method can't be passed on")
        fields = list(passed_headers(request.fields))
        send = self._upstream.send
        if own_token:
            fields = [(name, value) for name, value in fields if name != TOKEN_FIELD]
            send = self._upstream.send_with_token
        try:
            async with asyncio.timeout(self._budget):
                answer = await send(
                    request.method, target.path, target.query, fields, request.body, self._limits.passed_response
                )
        except TimeoutError:
            raise UpstreamFailed("the instance metadata service doesn't answer in time") from None
        length = None
        if request.method == "HEAD":
            declared = [value for name, value in answer.fields if name.casefold() == "content-length"]
            length = int(declared[0]) if declared and declared[0].isdecimal() else None
        return Response(answer.status, answer.body, tuple(passed_headers(answer.fields)), length)
