"""Keepalive pings on a stream that says nothing, and what becomes of it when the server falls silent."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio

from kiam.agent.control.channel import channel_options
from kiam.agent.settings import ServerSettings
from kiam.cli.agent import configure
from kiam.rpc import kiam_pb2, kiam_pb2_grpc
from kiam.tls import TLSFiles
from tests.integration.server.conftest import Sandbox
from tests.sandbox.aws import ROLE_BASE_ARN, AwsProcess
from tests.sandbox.kubeapi import KubeApi, namespace, pod, write_kubeconfig
from tests.sandbox.pki import Pki
from tests.sandbox.process import Process, until

IDLE_SECONDS = 62.0


def _settings(files: TLSFiles, port: int) -> ServerSettings:
    """With the keepalive durations that are an agent's default."""
    parser = argparse.ArgumentParser()
    configure(parser)
    arguments = parser.parse_args([f"--cert={files.cert}", f"--key={files.key}", f"--ca={files.ca}"])
    return ServerSettings(
        address=f"localhost:{port}",
        tls=files,
        creation_timeout=timedelta(seconds=1),
        keepalive_time=arguments.grpc_keepalive_time_duration,
        keepalive_timeout=arguments.grpc_keepalive_timeout_duration,
        keepalive_without_calls=False,
    )


def _channel(settings: ServerSettings) -> aio.Channel:
    material = settings.tls.read()
    credentials = grpc.ssl_channel_credentials(material.ca, material.key, material.cert)
    return aio.secure_channel(settings.address, credentials, options=channel_options(settings))


async def _open(channel: aio.Channel) -> Any:
    call = kiam_pb2_grpc.KiamServiceStub(channel).WatchNode(
        kiam_pb2.WatchNodeRequest(node_name="n1"), wait_for_ready=True
    )
    while not (await call.read()).HasField("snapshot_complete"):
        pass
    return call


async def _read_to_the_end(call: Any) -> None:
    while True:
        await call.read()


@pytest.mark.long
@pytest.mark.xdist_group("idle stream")
@pytest.mark.timeout(180)
async def test_idle_stream_with_a_ping_every_second_outlives_a_minute(
    sandbox: Sandbox, kube: KubeApi, pki: Pki
) -> None:
    kube.load([namespace("default", ".*")])
    server = await sandbox.start(grpc_keepalive_time_duration=timedelta(hours=1))
    # The server is asked for patience with pings; how soon it answers them isn't what counts here.
    patient = replace(_settings(pki.agent, server.port), keepalive_timeout=timedelta(seconds=30))
    often = replace(patient, keepalive_time=timedelta(seconds=1))
    async with _channel(often) as channel:
        call = await _open(channel)
        # Nothing is sent on it for the whole time, so the read can only end with the stream itself.
        reading = asyncio.ensure_future(call.read())
        await asyncio.wait({reading}, timeout=IDLE_SECONDS)
        assert not reading.done(), "the stream ended"
        kube.apply(pod("a", "10.0.0.1", "role-a", node="n1"))
        assert (await asyncio.wait_for(reading, 10)).pod.name == "a"


async def test_server_that_falls_silent_is_noticed_after_the_keepalive_durations(
    aws: AwsProcess, kube: KubeApi, pki: Pki, tmp_path: Path
) -> None:
    kube.load([namespace("default", ".*")])
    files = pki.server
    command = [
        *(sys.executable, "-m", "kiam", "server", "--bind=localhost:0", f"--role-base-arn={ROLE_BASE_ARN}"),
        f"--kubeconfig={write_kubeconfig(tmp_path / 'kubeconfig', kube.url)}",
        *(f"--cert={files.cert}", f"--key={files.key}", f"--ca={files.ca}"),
    ]
    with Process(command, tmp_path / "log", env=aws.environment) as process:
        found = await until(lambda: "(port " in process.output() and process.wait_for_output(r"\(port (\d+)\)"))
        settings = _settings(pki.agent, int(found.group(1)))
        async with _channel(settings) as channel:
            call = await _open(channel)
            # Frozen, not killed: the kernel still acknowledges what arrives, and nothing ever answers.
            process.send_signal(signal.SIGSTOP)
            try:
                with pytest.raises(aio.AioRpcError) as error:
                    await asyncio.wait_for(_read_to_the_end(call), 40)
            finally:
                process.send_signal(signal.SIGCONT)
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "ping timeout" in (error.value.details() or "").lower()
