"""Who calls: the names in the certificate that the front has verified."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc import aio

from kiam.server.grpc.joined import JoinedClients

Context = aio.ServicerContext[Any, Any]


class Callers:
    """Looks callers up, and refuses those that no certificate stands behind."""

    def __init__(self, joined: JoinedClients) -> None:
        """``joined``: those whom the front has let through."""
        self._joined = joined

    def address(self, context: Context) -> str:
        """The address that the caller connects from."""
        return self._joined.address(context.peer())

    def dns_names(self, context: Context) -> frozenset[str]:
        """The DNS SANs of the caller's certificate."""
        return self._joined.names(context.peer()) or frozenset()

    def guard(self, service: ServiceDescriptor, servicer: Any) -> Any:
        """A servicer that refuses calls over a connection that the front didn't make.

        Which attack: on gRPC's Unix socket no TLS asks for a certificate, so whoever gets at it, another process of
        this user or, where no folder could be made, of this network namespace, could ask for any pod's credentials.
        """
        guarded = SimpleNamespace()
        for method in service.methods:
            wrap = self._guard_stream if method.server_streaming else self._guard_unary
            setattr(guarded, method.name, wrap(getattr(servicer, method.name)))
        return guarded

    async def _check(self, context: Context) -> None:
        if self._joined.names(context.peer()) is None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "come through the server's port, with a certificate")

    def _guard_unary(self, behaviour: Callable[[Any, Context], Any]) -> Callable[[Any, Context], Any]:
        async def guarded(request: Any, context: Context) -> Any:
            await self._check(context)
            return await behaviour(request, context)

        return guarded

    def _guard_stream(self, behaviour: Callable[[Any, Context], Any]) -> Callable[[Any, Context], Any]:
        async def guarded(request: Any, context: Context) -> Any:
            await self._check(context)
            async for message in behaviour(request, context):
                yield message

        return guarded
