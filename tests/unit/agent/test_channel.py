"""How the agent watches its connection to the server."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from unittest.mock import Mock

import grpc
import pytest

from kiam.agent.control import channel
from kiam.agent.settings import ServerSettings
from kiam.tls import TLSFiles
from tests.sandbox.certificates import Authority, write
from tests.sandbox.process import until

AUTHORITY = Authority.make()


class Watched:
    """A channel whose state is what a test says, and which counts the watches that it was asked for."""

    def __init__(self, state: grpc.ChannelConnectivity) -> None:
        self.state = state
        self.looks = self.watches = 0
        self.changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        self.looks += 1
        return self.state

    async def wait_for_state_change(self, last: grpc.ChannelConnectivity) -> None:
        self.watches += 1
        if last is self.state:
            await asyncio.shield(self.changed)

    def turn(self, state: grpc.ChannelConnectivity) -> None:
        changed, self.changed = self.changed, asyncio.get_running_loop().create_future()
        self.state = state
        changed.set_result(None)


def settings(files: TLSFiles) -> ServerSettings:
    second = timedelta(seconds=1)
    return ServerSettings("localhost:1", files, second, second, second, keepalive_without_calls=False)


async def test_a_state_is_watched_once_however_long_it_lasts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """gRPC has no end of a watch but the state's: each further one is memory that stays."""
    caplog.set_level("INFO")
    monkeypatch.setattr(channel, "_EXPLAIN_AFTER", 0.001)
    monkeypatch.setattr(channel, "explain_failure", lambda *_: None)
    files = write(tmp_path, AUTHORITY.sign("agent"), AUTHORITY.pem)
    client = channel.ServerClient(settings(files), Mock(material=files.read()))
    await client.channel.close()
    watched = Watched(grpc.ChannelConnectivity.CONNECTING)
    client.channel = watched  # type: ignore[assignment]  # all that is asked of it here
    reporting = asyncio.create_task(client._report())
    await until(lambda: watched.looks > 20)
    assert watched.watches == 1
    watched.turn(grpc.ChannelConnectivity.READY)
    await until(lambda: "connected to the server" in caplog.text)
    watched.turn(grpc.ChannelConnectivity.IDLE)
    await until(lambda: "connection to the server at localhost:1 lost" in caplog.text)
    looks = watched.looks
    await until(lambda: watched.looks > looks + 3)
    looks, watches = watched.looks, watched.watches
    await until(lambda: watched.looks > looks + 20)
    assert watched.watches == watches
    reporting.cancel()
