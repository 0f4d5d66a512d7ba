"""gRPC metrics: what each kind of call counts, on both sides."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc import aio
from prometheus_client import CollectorRegistry

from kiam.grpc_metrics import ServerMetrics, client_interceptors
from kiam.rpc import kiam_pb2, kiam_pb2_grpc
from tests.sandbox.process import until


class _Service(kiam_pb2_grpc.KiamServiceServicer):
    async def GetPodRole(self, request: kiam_pb2.GetPodRoleRequest, context: Any) -> kiam_pb2.Role:
        if request.ip == "broken":
            raise RuntimeError("a bug")
        if not request.ip:
            await context.abort(grpc.StatusCode.NOT_FOUND, "pod not found")
        return kiam_pb2.Role(name="app")

    async def WatchNode(self, request: kiam_pb2.WatchNodeRequest, context: Any) -> AsyncIterator[kiam_pb2.NodeUpdate]:
        for _ in range(3):
            yield kiam_pb2.NodeUpdate(hello=kiam_pb2.Hello())
        if request.node_name == "refused":
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "no")


class _Pair:
    def __init__(self, channel: aio.Channel, server: CollectorRegistry, client: CollectorRegistry) -> None:
        self.channel = channel
        self.stub: Any = kiam_pb2_grpc.KiamServiceStub(channel)
        self.registries = {"server": server, "client": client}

    def value(self, side: str, name: str, kind: str, method: str, **labels: str) -> float | None:
        return self.registries[side].get_sample_value(
            f"grpc_{side}_{name}_total",
            {"grpc_type": kind, "grpc_service": "kiam.KiamService", "grpc_method": method, **labels},
        )


@pytest.fixture
async def pair() -> AsyncIterator[_Pair]:
    registries = CollectorRegistry(), CollectorRegistry()
    server = aio.server()
    counted = ServerMetrics(registries[0]).count(kiam_pb2.DESCRIPTOR.services_by_name["KiamService"], _Service())
    kiam_pb2_grpc.add_KiamServiceServicer_to_server(counted, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with aio.insecure_channel(f"127.0.0.1:{port}", interceptors=client_interceptors(registries[1])) as channel:
        yield _Pair(channel, *registries)
    await server.stop(None)


@pytest.mark.parametrize("side", ["server", "client"])
async def test_unary_call_counts_one_message_each_way(pair: _Pair, side: str) -> None:
    for _ in range(2):
        assert (await pair.stub.GetPodRole(kiam_pb2.GetPodRoleRequest(ip="1.2.3.4"))).name == "app"
    for name in ("started", "msg_received", "msg_sent"):
        assert pair.value(side, name, "unary", "GetPodRole") == 2
    assert pair.value(side, "handled", "unary", "GetPodRole", grpc_code="OK") == 2


@pytest.mark.parametrize("side", ["server", "client"])
@pytest.mark.parametrize(("ip", "code"), [("", "NotFound"), ("broken", "Unknown")])
async def test_failed_call_is_handled_under_its_code_as_go_writes_it(
    pair: _Pair, side: str, ip: str, code: str
) -> None:
    with pytest.raises(aio.AioRpcError):
        await pair.stub.GetPodRole(kiam_pb2.GetPodRoleRequest(ip=ip))
    # The server counts a call when it is through with it, which the client may be before.
    await until(lambda: pair.value(side, "handled", "unary", "GetPodRole", grpc_code=code) == 1)
    assert pair.value(side, "handled", "unary", "GetPodRole", grpc_code="OK") == 0
    assert pair.value(side, "msg_sent" if side == "server" else "msg_received", "unary", "GetPodRole") == 0


@pytest.mark.parametrize("side", ["server", "client"])
async def test_stream_counts_each_message_and_one_end(pair: _Pair, side: str) -> None:
    assert len([m async for m in pair.stub.WatchNode(kiam_pb2.WatchNodeRequest())]) == 3
    assert pair.value(side, "started", "server_stream", "WatchNode") == 1
    assert pair.value(side, "msg_sent" if side == "server" else "msg_received", "server_stream", "WatchNode") == 3
    assert pair.value(side, "handled", "server_stream", "WatchNode", grpc_code="OK") == 1


@pytest.mark.parametrize("side", ["server", "client"])
async def test_refused_stream_is_handled_under_its_code(pair: _Pair, side: str) -> None:
    with pytest.raises(aio.AioRpcError):
        async for _ in pair.stub.WatchNode(kiam_pb2.WatchNodeRequest(node_name="refused")):
            pass
    await until(lambda: pair.value(side, "handled", "server_stream", "WatchNode", grpc_code="PermissionDenied") == 1)


async def test_method_nobody_implements_makes_no_counters(pair: _Pair) -> None:
    made_up: Any = pair.channel.unary_unary("/kiam.KiamService/MadeUp")
    with pytest.raises(aio.AioRpcError, match="UNIMPLEMENTED"):
        await made_up(b"")
    methods = {
        sample.labels.get("grpc_method") for metric in pair.registries["server"].collect() for sample in metric.samples
    }
    assert "MadeUp" not in methods
