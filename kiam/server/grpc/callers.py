"""Who calls: the names in the certificate, whichever way the connection came."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc import aio

from kiam.addresses import unmapped

Context = aio.ServicerContext[Any, Any]

_DNS_SANS = "peer_dns"
"""gRPC's name for them in the authentication context (src/core/tsi/ssl_transport_security.cc)."""
_UNIX = "unix"
"""How gRPC's names of peers on Unix sockets begin."""


def peer_address(peer: str) -> str:
    """The address in gRPC's name of a TCP peer, such as ``ipv4:192.0.2.1:50000`` or ``ipv6:%5B::1%5D:50000``."""
    host = unquote(peer.partition(":")[2]).rpartition(":")[0].strip("[]")
    try:
        return str(unmapped(host))
    except ValueError:
        return host


class Callers:
    """Looks callers up, and refuses those that no certificate stands behind."""

    def __init__(self, joined: Callable[[str], frozenset[str] | None], address: Callable[[str], str]) -> None:
        """``joined``: the DNS names of a client that the front joined, by gRPC's name for the peer; None: it didn't.

        ``address``: where such a client connects from.
        """
        self._joined = joined
        self._address = address

    def address(self, context: Context) -> str:
        """The address that the caller connects from."""
        peer = context.peer()
        return self._address(peer) if peer.startswith(_UNIX) else peer_address(peer)

    def dns_names(self, context: Context) -> frozenset[str]:
        """The DNS SANs of the caller's certificate."""
        peer = context.peer()
        if peer.startswith(_UNIX):
            return self._joined(peer) or frozenset()
        return frozenset(name.decode("ascii", "replace") for name in context.auth_context().get(_DNS_SANS, ()))

    def guard(self, service: ServiceDescriptor, servicer: Any) -> Any:
        """A servicer that refuses calls over a Unix connection that the front didn't make.

        Which attack: on gRPC's Unix socket no TLS asks for a certificate, so whoever gets at it, another process of
        this user or, where no folder could be made, of this network namespace, could ask for any pod's credentials.
        """
        guarded = SimpleNamespace()
        for method in service.methods:
            wrap = self._guard_stream if method.server_streaming else self._guard_unary
            setattr(guarded, method.name, wrap(getattr(servicer, method.name)))
        return guarded

    async def _check(self, context: Context) -> None:
        peer = context.peer()
        if peer.startswith(_UNIX) and self._joined(peer) is None:
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
