"""A server in this process, against the sandbox's Kubernetes API, STS and PKI."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio
from prometheus_client import CollectorRegistry

from kiam.rpc import kiam_pb2, kiam_pb2_grpc
from kiam.server.grpc.port import listen
from kiam.server.run import Server
from kiam.server.serve import make_server, open_front
from kiam.server.settings import PolicySettings, ServerSettings, SessionSettings
from kiam.tls import TLSFiles
from tests.sandbox.aws import ROLE_BASE_ARN, AwsProcess
from tests.sandbox.kubeapi import KubeApi, write_kubeconfig
from tests.sandbox.pki import Pki, make_pki


@pytest.fixture(scope="session")
def aws_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AwsProcess]:
    with AwsProcess(tmp_path_factory.mktemp("aws")) as process:
        yield process


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return make_pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def aws(aws_process: AwsProcess, monkeypatch: pytest.MonkeyPatch) -> Iterator[AwsProcess]:
    for name, value in aws_process.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", aws_process.imds_url)
    aws_process.forget_calls()
    yield aws_process
    aws_process.faults()
    for thread in threading.enumerate():
        # A server that ended with a call to STS under way doesn't wait for it; the next test must not see it.
        if thread.name.startswith("sts"):
            thread.join(60)


@pytest.fixture(autouse=True)
def short_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls without a deadline are held for a moment only; then no answer depends on who is quicker at a deadline."""
    monkeypatch.setattr("kiam.server.grpc.calls.LONGEST_HOLD", 0.3)


@pytest.fixture
async def kube() -> AsyncIterator[KubeApi]:
    async with KubeApi() as api:
        yield api


Early = Callable[[int], Awaitable[None]]


class Client:
    """An agent's end."""

    def __init__(self, channel: aio.Channel) -> None:
        self.channel = channel
        self.stub: Any = kiam_pb2_grpc.KiamServiceStub(channel)

    async def role(self, ip: str, seconds: float | None = 5) -> str:
        request = kiam_pb2.GetPodRoleRequest(ip=ip)
        return str((await self.stub.GetPodRole(request, timeout=seconds, wait_for_ready=True)).name)

    async def credentials(self, ip: str, role: str, seconds: float | None = 5) -> kiam_pb2.Credentials:
        request = kiam_pb2.GetPodCredentialsRequest(ip=ip, role=role)
        answer: kiam_pb2.Credentials = await self.stub.GetPodCredentials(request, timeout=seconds, wait_for_ready=True)
        return answer

    async def health(self, seconds: float = 5) -> str:
        """``ok``, or what the server says it waits for."""
        request = kiam_pb2.GetHealthRequest()
        try:
            return str((await self.stub.GetHealth(request, timeout=seconds, wait_for_ready=True)).message)
        except aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                raise
            return error.details() or ""

    def watch(self, **request: Any) -> Watch:
        return Watch(self.stub.WatchNode(kiam_pb2.WatchNodeRequest(**request), wait_for_ready=True))


class Watch:
    """A node's stream, and what an agent would know by it."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.pods: dict[str, kiam_pb2.Pod] = {}
        self.credentials: dict[str, kiam_pb2.Credentials] = {}
        self.failures: dict[str, kiam_pb2.CredentialsFailed] = {}
        self.log: list[str] = []

    async def next(self, seconds: float = 10) -> kiam_pb2.NodeUpdate:
        async with asyncio.timeout(seconds):
            update: kiam_pb2.NodeUpdate = await self.call.read()
        assert isinstance(update, kiam_pb2.NodeUpdate), "the stream ended"
        kind = str(update.WhichOneof("update"))
        self.log.append(kind)
        if kind == "pod":
            self.pods[update.pod.name] = update.pod
        elif kind == "pod_withdrawn":
            self.pods = {name: pod for name, pod in self.pods.items() if pod.uid != update.pod_withdrawn.uid}
        elif kind == "credentials":
            self.credentials[update.credentials.identity.role_arn.rpartition("/")[2]] = update.credentials.credentials
        elif kind == "credentials_failed":
            self.failures[update.credentials_failed.identity.role_arn.rpartition("/")[2]] = update.credentials_failed
        return update

    async def until(self, condition: Callable[[], Any]) -> None:
        while not condition():
            await self.next()

    async def snapshot(self) -> None:
        await self.until(lambda: "snapshot_complete" in self.log)

    async def quiet(self, trigger: Callable[[], Any]) -> None:
        """Nothing is sent between now and what the trigger causes, which is the next update of all."""
        before = len(self.log)
        trigger()
        await self.next()
        assert len(self.log) == before + 1


class Sandbox:
    """Starts servers; each is ended with the test."""

    def __init__(self, stack: AsyncExitStack, pki: Pki, kube: KubeApi, directory: Path) -> None:
        self._stack = stack
        self.pki, self.kube = pki, kube
        self.registry = CollectorRegistry()
        self.config = ServerSettings(
            tls=pki.server,
            bind="localhost:0",
            kubeconfig=str(write_kubeconfig(directory / "kubeconfig", kube.url)),
            sync=timedelta(minutes=1),
            fetchers=8,
            role_base_arn=ROLE_BASE_ARN,
            disable_strict_namespace_regexp=False,
            sessions=SessionSettings(),
            policy=PolicySettings(),
            session_tags_transitive=False,
            session_duration=timedelta(minutes=15),
            session_refresh=timedelta(minutes=5),
            assume_role_arn="",
            region="",
            grpc_keepalive_time_duration=timedelta(seconds=10),
            grpc_keepalive_timeout_duration=timedelta(seconds=2),
            grpc_max_connection_idle_duration=timedelta(minutes=15),
            grpc_max_connection_age_duration=timedelta(minutes=15),
            grpc_max_connection_age_grace_duration=timedelta(minutes=15),
            node_authorization=False,
            container_credentials=False,
            container_credentials_webhook=None,
            stale_after=timedelta(minutes=3),
            prometheus_listen_addr=None,
            pprof_listen_addr=None,
        )

    async def start(self, early: Early | None = None, **changes: Any) -> Server:
        """``early``: called with the port when that is all there is of the server."""
        self.registry = CollectorRegistry()
        config = replace(self.config, **changes)
        return await self._stack.enter_async_context(_running(config, self.registry, early))

    async def connect(self, server: Server | int, tls: TLSFiles | None = None) -> Client:
        files = tls or self.pki.agent
        credentials = grpc.ssl_channel_credentials(
            files.ca.read_bytes(), files.key.read_bytes(), files.cert.read_bytes()
        )
        options = [("grpc.use_local_subchannel_pool", 1)]
        port = server if isinstance(server, int) else server.port
        channel = aio.secure_channel(f"localhost:{port}", credentials, options=options)
        return Client(await self._stack.enter_async_context(channel))

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


class _EndedError(Exception):
    pass


@asynccontextmanager
async def _running(
    config: ServerSettings, registry: CollectorRegistry, early: Early | None = None
) -> AsyncIterator[Server]:
    tls, front = open_front(config, lambda: listen(config.bind), registry)
    server: Server | None = None
    try:
        front.start()
        if early is not None:
            await early(front.port)
        server = await make_server(config, tls, front, registry)
        async with asyncio.TaskGroup() as tasks:
            await server.start(tasks)
            try:
                yield server
            finally:
                await server.drain(0)
            raise _EndedError
    except* _EndedError:
        pass
    finally:
        if server is not None:
            await server.close()
        front.close()


@pytest.fixture
async def sandbox(aws: AwsProcess, kube: KubeApi, pki: Pki, tmp_path: Path) -> AsyncIterator[Sandbox]:
    async with AsyncExitStack() as stack:
        yield Sandbox(stack, pki, kube, tmp_path)
