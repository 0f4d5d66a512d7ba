"""One tenant has 1,500 roles fetched; how long another tenant's new pod waits for its own credentials."""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from grpc import aio

from kiam.rpc import kiam_pb2, kiam_pb2_grpc
from tests.sandbox.aws import ROLE_BASE_ARN, AwsProcess
from tests.sandbox.kubeapi import KubeApiProcess, namespace, pod, write_kubeconfig
from tests.sandbox.pki import Pki, make_pki
from tests.sandbox.process import Process

ROLES = 1500
STS_SECONDS = 0.2
ROUNDS = 5
WAITING = 200
"""Pods of the greedy tenant that wait themselves, in the second row."""


class Cluster:
    """A server, its Kubernetes API and STS."""

    def __init__(self, kube: KubeApiProcess, aws: AwsProcess, server: Process, channel: aio.Channel) -> None:
        self.kube, self.aws, self.server = kube, aws, server
        self._stub: Any = kiam_pb2_grpc.KiamServiceStub(channel)

    async def credentials(self, address: str, role: str) -> float:
        """Ask as an agent does whose pod waits; the moment of the answer (monotonic)."""
        request = kiam_pb2.GetPodCredentialsRequest(ip=address, role=role)
        await self._stub.GetPodCredentials(request, timeout=120)
        return time.monotonic()

    async def pushed(self, node: str, role: str) -> float:
        """Wait for a role's credentials as an agent does whose pod hasn't asked; the moment of their arrival."""
        call = self._stub.WatchNode(kiam_pb2.WatchNodeRequest(node_name=node), timeout=120)
        async for update in call:
            if update.credentials.identity.role_arn == ROLE_BASE_ARN + role:
                break
        call.cancel()
        return time.monotonic()


async def measure(say: Callable[[str], None], roles: int = ROLES, rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """Without the burst and in it, for a pod that asks and one that doesn't; then while others wait too."""
    rows = []
    cases = (
        ("asks, alone", 0, 0, True),
        ("asks, in the burst", roles, 0, True),
        ("is pushed, in the burst", roles, 0, False),
        ("asks, and 200 of the burst", roles, WAITING, True),
    )
    for name, burst, waiting, asks in cases:
        say(f"fairness: {name}")
        async with _cluster() as cluster:
            figures = await _row(cluster, burst, waiting, rounds, asks)
        rows.append({"other_pod": name, "roles": burst, "waiting": waiting, **figures})
    return rows


async def _row(cluster: Cluster, burst: int, waiting: int, rounds: int, asks: bool) -> dict[str, Any]:
    cluster.aws.faults(sts_delay=STS_SECONDS)
    greedy = [_address(10, number) for number in range(burst)]
    if burst:
        bodies = [pod(f"greedy-{n}", greedy[n], f"g{n}", namespace="greedy", uid=f"g{n}") for n in range(burst)]
        await asyncio.to_thread(cluster.kube.apply, *bodies)
    asking = [asyncio.create_task(cluster.credentials(greedy[n], f"g{n}")) for n in range(burst - waiting, burst)]
    await asyncio.sleep(2 * STS_SECONDS)
    times = []
    for number in range(rounds):
        address, role, node = _address(11, number), f"m{number}", f"modest-{number}"
        asked = asyncio.create_task(cluster.credentials(address, role) if asks else cluster.pushed(node, role))
        body = pod(f"modest-{number}", address, role, namespace="modest", uid=role, node=node)
        appeared = await asyncio.to_thread(cluster.kube.apply, body)
        times.append(await asked - appeared)
    calls = cluster.aws.calls()
    took = statistics.median(call.ended - call.started for call in calls)
    left = burst - sum(call.role_arn.startswith(f"{ROLE_BASE_ARN}g") for call in calls)
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    return {
        "sts_ms": round(took * 1000),
        "wait_ms_p50": round(statistics.median(times) * 1000),
        "wait_ms_max": round(max(times) * 1000),
        "sts_times_max": round(max(times) / took, 2),
        "left_of_the_burst": left,
    }


def _address(net: int, number: int) -> str:
    return f"10.{net}.{number // 250}.{number % 250 + 1}"


@asynccontextmanager
async def _cluster() -> AsyncIterator[Cluster]:
    with (
        tempfile.TemporaryDirectory(prefix="kiam-bench-") as name,
        AwsProcess(Path(name, "aws")) as aws,
        KubeApiProcess(Path(name, "kube")) as kube,
    ):
        kube.apply(namespace("greedy", ".*"), namespace("modest", ".*"))
        pki = make_pki(Path(name, "pki"))
        with _server(Path(name), kube, aws, pki) as server:
            port = server.wait_for_output(r"\(port (\d+)\)").group(1)
            await asyncio.to_thread(server.wait_for_output, r"ready pods=\d+", 60)
            files = pki.agent
            credentials = grpc.ssl_channel_credentials(
                files.ca.read_bytes(), files.key.read_bytes(), files.cert.read_bytes()
            )
            async with aio.secure_channel(f"localhost:{port}", credentials) as channel:
                yield Cluster(kube, aws, server, channel)


def _server(directory: Path, kube: KubeApiProcess, aws: AwsProcess, pki: Pki) -> Process:
    kubeconfig = write_kubeconfig(directory / "kubeconfig", kube.url)
    files = pki.server
    return Process(
        [
            *(sys.executable, "-m", "kiam", "server", "--bind", "localhost:0", "--kubeconfig", str(kubeconfig)),
            *("--cert", str(files.cert), "--key", str(files.key), "--ca", str(files.ca)),
            *("--role-base-arn", ROLE_BASE_ARN),
        ],
        directory / "server.log",
        env=aws.environment,
    )
