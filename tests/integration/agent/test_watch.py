"""Following a stream, over a real channel: a scripted server says what a test wants, when it wants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio
from prometheus_client import CollectorRegistry

from kiam.agent.control import node_stream
from kiam.agent.control.answers import NodeIdentities
from kiam.agent.control.channel import ServerClient
from kiam.agent.control.unary import UnaryCalls
from kiam.agent.core.node import NodeCore
from kiam.agent.core.stream import Stream
from kiam.agent.metrics import AgentMetrics
from kiam.agent.settings import ServerSettings
from kiam.clocks import SystemClock
from kiam.rpc import kiam_pb2, kiam_pb2_grpc
from kiam.tls.inspection import load_summary
from kiam.tls.reload import TLSReloader
from kiam.tls.summary import Side
from tests.sandbox.certificates import MountedSecret
from tests.sandbox.pki import Pki
from tests.sandbox.process import until
from tests.unit.agent.test_answers import COMPLETE, Kernel
from tests.unit.agent.test_pods import BASE, A, credentials, pod, withdrawn

HELLO = kiam_pb2.NodeUpdate(hello=kiam_pb2.Hello(node_name="node-1", role_base_arn=BASE))


class Scripted(kiam_pb2_grpc.KiamServiceServicer):
    """Streams what is put into ``updates``; ``None`` ends a stream."""

    def __init__(self) -> None:
        self.requests: list[kiam_pb2.WatchNodeRequest] = []
        self.snapshot: list[kiam_pb2.NodeUpdate] = [HELLO, pod(), credentials(), COMPLETE]
        self.updates: asyncio.Queue[kiam_pb2.NodeUpdate | None] = asyncio.Queue()
        self.unimplemented = False
        self.open = 0
        self.answers = asyncio.Event()
        """Unset: a new stream isn't given its first word yet."""
        self.answers.set()

    async def WatchNode(self, request: kiam_pb2.WatchNodeRequest, context: Any) -> AsyncIterator[kiam_pb2.NodeUpdate]:
        self.requests.append(request)
        if self.unimplemented:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "unknown method WatchNode")
        await self.answers.wait()
        self.open += 1
        try:
            for update in self.snapshot:
                yield update
            while (update_or_end := await self.updates.get()) is not None:
                yield update_or_end
        finally:
            self.open -= 1


class World:
    """A scripted server and an agent's state that follows it."""

    def __init__(self, pki: Pki, files: Any) -> None:
        self.pki, self.script, self.port = pki, Scripted(), 0
        self.files = files
        self.clock, self.core = SystemClock(), NodeCore(outage_grace=60.0, confirm_after=0.05)
        self.kernel = Kernel(self.core, self.clock)
        self.kernel.plug(A)

    async def start_server(self) -> None:
        self.server = aio.server(options=[("grpc.so_reuseport", 0)])
        kiam_pb2_grpc.add_KiamServiceServicer_to_server(self.script, self.server)
        material = self.pki.server.read()
        self.port = self.server.add_secure_port(
            f"127.0.0.1:{self.port}",
            grpc.ssl_server_credentials([(material.key, material.cert)], material.ca, require_client_auth=True),
        )
        await self.server.start()

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[NodeIdentities]:
        seconds = timedelta(seconds=1)
        settings = ServerSettings(f"localhost:{self.port}", self.files, seconds, 10 * seconds, 2 * seconds, False)
        self.reloader = TLSReloader(self.files, Side.CLIENT, load_summary)
        self.client = ServerClient(settings, self.reloader)
        node = NodeIdentities(
            self.core, UnaryCalls(self.client, self.clock), self.kernel, self.clock, AgentMetrics(CollectorRegistry())
        )
        self.kernel.heard = node.heard
        self.follower = node_stream.StreamFollower(self.client, node, "node-1", "10.0.0.100")
        task = asyncio.create_task(self.follower.run())
        try:
            yield node
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await self.client.close()


@pytest.fixture
async def world(pki: Pki, tmp_path: Path) -> AsyncIterator[World]:
    world = World(pki, MountedSecret.of(tmp_path / "secret", pki.agent).files)
    await world.start_server()
    yield world
    await world.server.stop(None)


async def test_snapshot_and_changes_are_taken_in(world: World) -> None:
    async with world.agent() as node:
        await until(lambda: world.core.stream is Stream.LIVE)
        assert world.follower.settled.is_set()
        assert node.credentials_now(A, "app") is not None
        request = world.script.requests[0]
        assert (request.node_name, request.host_ip) == ("node-1", "10.0.0.100")
        world.script.updates.put_nowait(withdrawn())
        await until(lambda: node.credentials_now(A, "app") is None)


async def test_reconnect_says_what_is_held_and_gets_what_differs(world: World) -> None:
    async with world.agent() as node:
        await until(lambda: world.core.stream is Stream.LIVE)
        world.script.snapshot = [HELLO, pod("u2", ("10.0.0.2",)), COMPLETE]
        world.script.updates.put_nowait(None)
        await until(lambda: len(world.script.requests) == 2 and world.core.stream is Stream.LIVE)
        request = world.script.requests[1]
        assert [known.uid for known in request.known_pods] == ["u1"]
        assert [known.identity.role_arn for known in request.known_credentials] == [BASE + "app"]
        await until(lambda: len(world.core.pods.pods) == 2)
        assert node.credentials_now("10.0.0.2", "app") is not None


async def test_killed_server_is_noticed_and_its_return_too(world: World) -> None:
    async with world.agent() as node:
        await until(lambda: world.core.stream is Stream.LIVE)
        await world.server.stop(None)
        await until(lambda: world.core.stream is Stream.AWAY)
        assert node.credentials_now(A, "app") is not None
        await world.start_server()
        await until(lambda: world.core.stream is Stream.LIVE)


async def test_conventional_server_is_asked_again_later(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_stream, "_LOOK_AGAIN_SECONDS", 0.05)
    world.script.unimplemented = True
    async with world.agent():
        await until(lambda: len(world.script.requests) >= 2)
        assert world.core.stream is Stream.NONE
        assert world.follower.settled.is_set()
        world.script.unimplemented = False
        await until(lambda: world.core.stream is Stream.LIVE)
        # Back to a conventional one: nothing that is no longer kept up to date is remembered.
        world.script.unimplemented = True
        world.script.updates.put_nowait(None)
        await until(lambda: world.core.stream is Stream.NONE)
        assert world.core.pods.pods == {}


async def test_new_certificates_open_a_new_stream_before_the_old_one_goes(world: World) -> None:
    async with world.agent():
        await until(lambda: world.core.stream is Stream.LIVE)
        world.client.swap()
        await until(lambda: len(world.script.requests) == 2 and world.script.open == 1)
        assert world.core.stream is Stream.LIVE
        world.script.updates.put_nowait(withdrawn())
        await until(lambda: world.core.pods.pods == {})


async def test_stream_that_ends_while_a_new_one_is_opened_leaves_the_agent_alone(world: World) -> None:
    async with world.agent():
        await until(lambda: world.core.stream is Stream.LIVE)
        world.script.answers.clear()
        world.client.swap()
        await until(lambda: len(world.script.requests) == 2)
        world.script.updates.put_nowait(None)
        await until(lambda: world.core.stream is Stream.AWAY)
        world.script.answers.set()
        await until(lambda: world.core.stream is Stream.LIVE)


async def test_pod_pushed_while_a_new_stream_is_opened_is_not_kept_for_ever(world: World) -> None:
    """The new stream's server wasn't told of it, so it would never withdraw it."""
    async with world.agent():
        await until(lambda: world.core.stream is Stream.LIVE)
        world.script.answers.clear()
        world.client.swap()
        await until(lambda: len(world.script.requests) == 2)
        world.script.updates.put_nowait(pod("u2", ("10.0.0.2",)))
        await until(lambda: "u2" in world.core.pods.pods)
        world.script.answers.set()
        await until(lambda: len(world.script.requests) == 3 and world.script.open == 1)
        assert [known.uid for known in world.script.requests[2].known_pods] == ["u1", "u2"]
        assert world.core.stream is Stream.LIVE


async def test_changed_route_asks_the_server_anew(world: World) -> None:
    async with world.agent() as node:
        await until(lambda: world.core.stream is Stream.LIVE)
        world.kernel.unplug(A)
        world.kernel.plug(A)
        assert node.credentials_now(A, "app") is None
        await until(lambda: node.credentials_now(A, "app") is not None)
        assert len(world.script.requests) == 2
        assert world.core.addresses.is_bound(A)


async def test_server_that_is_cut_off_is_asked_until_its_word_is_new_enough(world: World) -> None:
    stale = kiam_pb2.NodeUpdate()
    stale.CopyFrom(HELLO)
    stale.hello.watch_age_milliseconds = 3_600_000
    async with world.agent() as node:
        await until(lambda: world.core.stream is Stream.LIVE)
        world.script.snapshot = [stale, pod(), credentials(), COMPLETE]
        world.kernel.unplug(A)
        world.kernel.plug(A)
        await until(lambda: len(world.script.requests) >= 3)
        assert node.credentials_now(A, "app") is None
        world.script.snapshot = [HELLO, pod(), credentials(), COMPLETE]
        await until(lambda: node.credentials_now(A, "app") is not None)


async def test_second_changed_route_is_waited_for_without_spinning(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pod that makes interfaces come and go would keep the agent's processor busy."""
    rounds = 0
    wait = asyncio.wait

    async def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal rounds
        rounds += 1
        return await wait(*arguments, **options)

    world.kernel.plug("10.0.0.2")
    world.script.snapshot = [HELLO, pod(), pod("u2", ("10.0.0.2",)), credentials(), COMPLETE]
    async with world.agent() as node:
        await until(lambda: world.core.stream is Stream.LIVE)
        monkeypatch.setattr(asyncio, "wait", counted)
        for address in (A, "10.0.0.2"):
            world.kernel.unplug(address)
        world.script.answers.clear()
        await until(lambda: len(world.script.requests) == 2)
        world.kernel.plug("10.0.0.2")
        world.script.answers.set()
        await until(lambda: node.credentials_now("10.0.0.2", "app") is not None)
        assert rounds < 20


async def test_pushed_credentials_are_served_within_milliseconds_not_at_a_tick(world: World) -> None:
    world.script.snapshot = [HELLO, COMPLETE]
    async with world.agent() as node:
        await until(lambda: world.core.stream is Stream.LIVE)
        deadline = asyncio.get_running_loop().time() + 5
        asking = asyncio.create_task(node.credentials(A, "app", deadline))
        await asyncio.sleep(0)
        world.script.updates.put_nowait(pod())
        world.script.updates.put_nowait(credentials())
        assert b"ASIA1" in await asking
