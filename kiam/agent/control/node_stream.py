"""Following the server's stream of what concerns this node."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from grpc import aio

from kiam import __version__
from kiam.agent.control.answers import NodeIdentities
from kiam.agent.control.channel import ServerClient, is_cancelled
from kiam.pauses import scattered
from kiam.rpc import kiam_pb2

log = logging.getLogger(__name__)

_HELLO_SECONDS = 10.0
"""How long a server may take for its first word. It waits for its own lists first."""
_LOOK_AGAIN_SECONDS = 30.0
"""How often a server without streams is asked again: another replica may have them, as during a migration."""
_FIRST_RETRY = 0.1
_LONGEST_RETRY = 2.0
_RETRY_BESIDE = 1.0
"""Seconds until a stream that couldn't be opened beside another one is tried again."""

_Known = tuple[list[kiam_pb2.KnownPod], list[kiam_pb2.KnownCredentials]]


class NoStreamsError(Exception):
    """The server answers WatchNode with UNIMPLEMENTED: a conventional one."""


class StreamLostError(Exception):
    """The stream, or the attempt to open it, failed."""


class _Stream:
    """One open stream, its first update read."""

    def __init__(
        self,
        call: Any,
        updates: AsyncIterator[kiam_pb2.NodeUpdate],
        hello: kiam_pb2.NodeUpdate,
        asked_at: float,
        known: _Known,
    ) -> None:
        self._call = call
        self.updates = updates
        self.hello = hello
        self.asked_at = asked_at
        self.known = known
        """What its server was told is held."""

    def cancel(self) -> None:
        """Tell the server to stop."""
        self._call.cancel()


class StreamFollower:
    """Keeps :class:`NodeIdentities` fed, over one stream after another."""

    def __init__(
        self,
        client: ServerClient,
        identities: NodeIdentities,
        node_name: str,
        host_ip: str,
        *,
        host_network_pods: bool = False,
        own_pod: Callable[[], kiam_pb2.AgentPod | None] = lambda: None,
    ) -> None:
        """``host_network_pods``: whether pods on the host network can be told apart, and so are to be pushed too.

        ``own_pod``: the agent's, with its certificate of the moment.
        """
        self._client = client
        self._identities = identities
        self._pods = identities.core.pods
        self._node_name = node_name
        self._host_ip = host_ip
        self._host_network_pods = host_network_pods
        self._own_pod = own_pod
        self._told: str | None = None
        self.settled = asyncio.Event()
        """Set once it is known how pods are to be answered: a complete snapshot, or a server without streams."""

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            try:
                stream = await self._open_at_last()
            except NoStreamsError:
                self._identities.no_stream()
                self.settled.set()
                await asyncio.wait({self._client.swapped}, timeout=_LOOK_AGAIN_SECONDS)
                continue
            await self._follow(stream)

    async def _open_at_last(self) -> _Stream:
        """Try until a stream is open. Raises NoStreamsError."""
        for pause in scattered(_FIRST_RETRY, _LONGEST_RETRY):
            with contextlib.suppress(StreamLostError):
                return await self._open()
            await asyncio.sleep(pause)
        raise AssertionError("pauses have no end")

    async def _open(self) -> _Stream:
        """Open a stream and read its Hello. Raises NoStreamsError and StreamLostError."""
        pods, credentials = known = self._pods.known()
        asked_at = self._identities.asked()
        request = kiam_pb2.WatchNodeRequest(
            node_name=self._node_name,
            host_ip=self._host_ip,
            known_pods=pods,
            known_credentials=credentials,
            host_network_pods=self._host_network_pods,
            agent_version=__version__,
            agent_pod=self._own_pod(),
        )
        call = self._client.stub.WatchNode(request, wait_for_ready=True)
        updates = aiter(call)
        try:
            async with asyncio.timeout(_HELLO_SECONDS if self._client.reachable else None):
                hello = await anext(updates)
        except (aio.AioRpcError, StopAsyncIteration, TimeoutError) as error:
            call.cancel()
            if isinstance(error, aio.AioRpcError) and error.code() is grpc.StatusCode.UNIMPLEMENTED:
                self._tell("the server has no streams: pods are answered by unary calls", logging.INFO)
                raise NoStreamsError from None
            self._tell(f"no stream from the server: {_reason(error)}", logging.WARNING)
            raise StreamLostError from error
        except asyncio.CancelledError as error:
            call.cancel()
            if is_cancelled():
                raise
            raise StreamLostError from error
        self._judge_node(hello.hello)
        return _Stream(call, updates, hello, asked_at, known)

    async def _follow(self, stream: _Stream) -> None:
        """Take in a stream until it ends, changing over to a new one where that is called for."""
        reader = asyncio.create_task(self._read(stream))
        swapped = self._client.swapped
        try:
            while await self._is_to_change_over(reader, swapped):
                # The new stream is open before the old one goes: pods notice nothing.
                newest = self._client.swapped
                fresh = await self._open_beside(reader)
                if fresh is None:
                    await asyncio.wait({reader}, timeout=_RETRY_BESIDE)
                    continue
                await _stop(reader)
                stream.cancel()
                stream, swapped = fresh, newest
                reader = asyncio.create_task(self._read(stream))
        finally:
            await _stop(reader)
            stream.cancel()
        self._identities.stream_lost()

    async def _is_to_change_over(self, reader: asyncio.Task[None], swapped: asyncio.Future[None]) -> bool:
        """Wait until new certificates or a question call for a new stream. False: this one ended."""
        asking = asyncio.create_task(self._identities.wait_to_ask())
        try:
            await asyncio.wait({reader, swapped, asking}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            asking.cancel()
        return not reader.done()

    async def _open_beside(self, reader: asyncio.Task[None]) -> _Stream | None:
        """Open a stream while another is read. None: that didn't work, or the other one ended meanwhile.

        Which attack: opening can take as long as the server is away. Waiting for it alone, the agent would take a
        picture that nobody keeps up to date for a live one, and answer strangers from it.
        """
        while True:
            opening = asyncio.create_task(self._open())
            try:
                await asyncio.wait({opening, reader}, return_when=asyncio.FIRST_COMPLETED)
                if not opening.done():
                    return None
                fresh = opening.result()
            except (StreamLostError, NoStreamsError):
                return None
            finally:
                opening.cancel()
            if self._pods.known() == fresh.known:
                return fresh
            # The old stream brought news meanwhile. The new one's server would never withdraw a pod that it wasn't told
            # is held, nor send again what it believes is.
            fresh.cancel()

    async def _read(self, stream: _Stream) -> None:
        self._identities.stream_opened(stream.hello, stream.asked_at)
        try:
            async for update in stream.updates:
                self._identities.apply(update)
                if update.HasField("snapshot_complete"):
                    self.settled.set()
        except aio.AioRpcError as error:
            self._tell(f"the stream from the server ended: {_reason(error)}", logging.WARNING)

    def _judge_node(self, hello: kiam_pb2.Hello) -> None:
        """Say whether the server knows the node; if not, its pods are answered by one call each."""
        known = hello.node_known if hello.HasField("node_known") else bool(hello.node_name)
        self._identities.node_is_known(known)
        if known:
            self._tell(f"the server streams node {hello.node_name}", logging.INFO)
            return
        asked_for = f"'{self._node_name}' (--node-name)" if self._node_name else f"at {self._host_ip} (--host)"
        understood = f"'{hello.node_name}'" if hello.node_name else "none"
        self._tell(
            f"the server knows no pod of this node: it was asked for the node {asked_for} and understood {understood}; "
            "pods are answered by unary calls, and not while the server is away; if this stays so, set NODE_NAME to "
            "the node's name (spec.nodeName)",
            logging.WARNING,
        )

    def _tell(self, line: str, level: int) -> None:
        """Log what is news; retries of the same failure are not."""
        log.log(level if line != self._told else logging.DEBUG, line)
        self._told = line


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _reason(error: BaseException) -> str:
    if isinstance(error, aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return "it said nothing in time" if isinstance(error, TimeoutError) else "it was closed at once"
