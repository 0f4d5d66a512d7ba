"""gRPC's own metrics, with the names and labels of go-grpc-prometheus, as conventional kiam has them.

``grpc_{server,client}_{started,handled,msg_received,msg_sent}_total`` with the labels ``grpc_type``, ``grpc_service``,
``grpc_method``, and ``grpc_code`` on ``handled``. Codes are written as Go writes them: ``OK``, ``NotFound``,
``Canceled``.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc import aio
from prometheus_client import REGISTRY, CollectorRegistry, Counter

Unary = Callable[[Any, aio.ServicerContext[Any, Any]], Awaitable[Any]]
Stream = Callable[[Any, aio.ServicerContext[Any, Any]], AsyncGenerator[Any, None]]

_SPECIAL = {grpc.StatusCode.OK: "OK", grpc.StatusCode.CANCELLED: "Canceled"}
_NAMES = {
    code: _SPECIAL.get(code, "".join(word.capitalize() for word in code.name.split("_"))) for code in grpc.StatusCode
}


class _MethodMetrics:
    """The counters of one method, their children looked up once: labels() costs more than inc()."""

    __slots__ = ("_handled", "_handled_by_code", "_key", "received", "sent", "started")

    def __init__(self, counters: _Counters, kind: str, path: str) -> None:
        service, _, method = path.removeprefix("/").rpartition("/")
        self._key = (kind, service, method)
        self.started = counters.started.labels(*self._key)
        self.received = counters.received.labels(*self._key)
        self.sent = counters.sent.labels(*self._key)
        self._handled = counters.handled
        self._handled_by_code: dict[grpc.StatusCode, Counter] = {}
        self.handled_child(grpc.StatusCode.OK)

    def handled_child(self, code: grpc.StatusCode) -> Counter:
        child = self._handled_by_code.get(code)
        if child is None:
            child = self._handled_by_code[code] = self._handled.labels(*self._key, _NAMES[code])
        return child


class _Counters:
    """The four counters of one side."""

    def __init__(self, side: str, registry: CollectorRegistry) -> None:
        labels = ("grpc_type", "grpc_service", "grpc_method")

        def counter(name: str, what: str, *more: str) -> Counter:
            return Counter(f"grpc_{side}_{name}", what, (*labels, *more), registry=registry)

        self.started = counter("started", f"RPCs started on the {side}.")
        self.handled = counter("handled", f"RPCs completed on the {side}, whatever the outcome.", "grpc_code")
        self.received = counter("msg_received", f"Messages received on the {side}.")
        self.sent = counter("msg_sent", f"Messages sent by the {side}.")


class ServerMetrics:
    """Counts every call a grpc.aio server handles. Make one a process (or give it a registry of its own).

    Wraps the methods once instead of intercepting each call, which costs a tenth of a call. What nobody implements has
    no counters: any client could make up names without end.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        """Register the counters."""
        self._counters = _Counters("server", registry)

    def count(self, service: ServiceDescriptor, servicer: Any) -> Any:
        """A servicer that does what this one does, and counts it."""
        counted = SimpleNamespace()
        for method in service.methods:
            kind = "server_stream" if method.server_streaming else "unary"
            metrics = _MethodMetrics(self._counters, kind, f"/{service.full_name}/{method.name}")
            wrap = _count_stream if method.server_streaming else _count_unary
            setattr(counted, method.name, wrap(getattr(servicer, method.name), metrics))
        return counted


def _outcome(context: aio.ServicerContext[Any, Any], error: BaseException | None) -> grpc.StatusCode:
    """The code a call ended with; abort() sets it on the context and then raises."""
    if error is None:
        return grpc.StatusCode.OK
    code = context.code()
    if code and isinstance(code, grpc.StatusCode):
        return code
    # An int is grpc.aio's "not set": the handler was cancelled or raised something of its own.
    return grpc.StatusCode.UNKNOWN if isinstance(error, Exception) else grpc.StatusCode.CANCELLED


def _count_unary(behaviour: Unary, metrics: _MethodMetrics) -> Unary:
    started, received, sent = metrics.started, metrics.received, metrics.sent
    ok = metrics.handled_child(grpc.StatusCode.OK)

    async def counted(request: Any, context: aio.ServicerContext[Any, Any]) -> Any:
        started.inc()
        received.inc()
        try:
            response = await behaviour(request, context)
        except BaseException as error:
            metrics.handled_child(_outcome(context, error)).inc()
            raise
        sent.inc()
        ok.inc()
        return response

    return counted


def _count_stream(behaviour: Stream, metrics: _MethodMetrics) -> Stream:
    async def counted(request: Any, context: aio.ServicerContext[Any, Any]) -> AsyncGenerator[Any, None]:
        metrics.started.inc()
        metrics.received.inc()
        failure: BaseException | None = None
        try:
            async with aclosing(behaviour(request, context)) as messages:
                async for message in messages:
                    metrics.sent.inc()
                    yield message
        except BaseException as error:
            failure = error
            raise
        finally:
            metrics.handled_child(_outcome(context, failure)).inc()

    return counted


class _ClientMetrics:
    """What the two interceptors of one client share."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._counters = _Counters("client", registry)
        self._methods: dict[tuple[str, str], _MethodMetrics] = {}

    def of(self, kind: str, details: aio.ClientCallDetails) -> _MethodMetrics:
        method = details.method
        path = method.decode() if isinstance(method, bytes) else method
        metrics = self._methods.get((kind, path))
        if metrics is None:
            metrics = self._methods[kind, path] = _MethodMetrics(self._counters, kind, path)
        return metrics


class _UnaryClientInterceptor(aio.UnaryUnaryClientInterceptor):
    def __init__(self, metrics: _ClientMetrics) -> None:
        self._metrics = metrics

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        metrics = self._metrics.of("unary", client_call_details)
        metrics.started.inc()
        metrics.sent.inc()
        code = grpc.StatusCode.CANCELLED
        try:
            call = await continuation(client_call_details, request)
            code = await call.code()
        finally:
            if code is grpc.StatusCode.OK:
                metrics.received.inc()
            metrics.handled_child(code).inc()
        return call


class _StreamClientInterceptor(aio.UnaryStreamClientInterceptor):
    def __init__(self, metrics: _ClientMetrics) -> None:
        self._metrics = metrics

    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        metrics = self._metrics.of("server_stream", client_call_details)
        metrics.started.inc()
        metrics.sent.inc()
        call = await continuation(client_call_details, request)

        async def messages() -> AsyncIterator[Any]:
            code = grpc.StatusCode.CANCELLED
            try:
                async for message in call:
                    metrics.received.inc()
                    yield message
                code = grpc.StatusCode.OK
            except aio.AioRpcError as error:
                code = error.code()
                raise
            finally:
                metrics.handled_child(code).inc()

        return messages()


def client_interceptors(registry: CollectorRegistry = REGISTRY) -> list[aio.ClientInterceptor]:
    """Interceptors that count every call of a grpc.aio channel. Make them once a process (or a registry)."""
    metrics = _ClientMetrics(registry)
    return [_UnaryClientInterceptor(metrics), _StreamClientInterceptor(metrics)]
