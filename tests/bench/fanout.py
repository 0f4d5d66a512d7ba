"""The server with a large cluster: memory by pods, the longest its loop is busy, and the lag of 1,000 streams.

Run with ``python -m tests.bench.fanout``; the defaults are 100,000 pods on 1,000 nodes and 100 pod changes a second
for 30 s. Everything is real but the cluster: ``kiam server`` as a process with mutual TLS, the sandbox's Kubernetes
API and STS, and an agent's end of WatchNode for each node, each with a connection of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import uvloop
from grpc import aio
from prometheus_client import CollectorRegistry

from kiam.cli import server as command
from kiam.rpc import kiam_pb2, kiam_pb2_grpc
from kiam.server.grpc.port import listen
from kiam.server.run import Server as InProcess
from kiam.server.serve import open_front
from kiam.server.settings import ServerSettings
from tests.sandbox.aws import ROLE_BASE_ARN, AwsProcess
from tests.sandbox.kubeapi import KubeApiProcess, pod, write_kubeconfig
from tests.sandbox.pki import Pki, make_pki
from tests.sandbox.process import Process

PER_NODE = 100


class Server:
    """``kiam server`` as a process."""

    def __init__(self, directory: Path, pki: Pki, aws: AwsProcess, kube: KubeApiProcess) -> None:
        kubeconfig = write_kubeconfig(directory / "kubeconfig", kube.url)
        files = pki.server
        self.started = time.monotonic()
        self.process = Process(
            [
                *(sys.executable, "-m", "kiam", "server", "--bind", "localhost:0", "--kubeconfig", str(kubeconfig)),
                *("--cert", str(files.cert), "--key", str(files.key), "--ca", str(files.ca)),
                *("--role-base-arn", ROLE_BASE_ARN),
                # All agents share one process here, which can't answer a thousand pings within two seconds.
                *("--grpc-keepalive-timeout-duration", "20s"),
            ],
            directory / "server.log",
            env=aws.environment,
        )
        self.port = int(self.process.wait_for_output(r"\(port (\d+)\)").group(1))

    def wait_ready(self) -> float:
        """Seconds from the start until ready."""
        self.process.wait_for_output(r"ready pods=\d+", 300)
        return time.monotonic() - self.started

    def rss(self) -> float:
        """MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    def cpu(self) -> float:
        """Seconds used so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Agents:
    """The agents' ends of the streams."""

    def __init__(self, pki: Pki, port: int) -> None:
        files = pki.agent
        self._credentials = grpc.ssl_channel_credentials(
            files.ca.read_bytes(), files.key.read_bytes(), files.cert.read_bytes()
        )
        self._target = f"localhost:{port}"
        self._tasks: set[asyncio.Task[None]] = set()
        self.complete = 0
        self.pods = 0
        self.credentials = 0
        self._wanted = sys.maxsize
        self._reached = asyncio.Event()
        self.lags: list[float] = []

    async def watch(self, node: int) -> None:
        """One node's stream, for ever."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with aio.secure_channel(self._target, self._credentials, options=options) as channel:
            stub: Any = kiam_pb2_grpc.KiamServiceStub(channel)
            request = kiam_pb2.WatchNodeRequest(node_name=f"node-{node}")
            async for update in stub.WatchNode(request, wait_for_ready=True):
                kind = update.WhichOneof("update")
                if kind == "pod":
                    self.pods += 1
                    if update.pod.name.startswith("churn-") and update.pod.addresses:
                        self.lags.append(time.monotonic() - float(update.pod.name.split("-")[1]) / 1e6)
                elif kind == "credentials":
                    self.credentials += 1
                    if self.credentials >= self._wanted:
                        self._reached.set()
                elif kind == "snapshot_complete":
                    self.complete += 1

    async def start(self, nodes: int) -> None:
        """Open all streams and wait until every snapshot is complete."""
        for node in range(nodes):
            self._tasks.add(asyncio.create_task(self.watch(node)))
        while self.complete < nodes:
            await asyncio.sleep(0.05)
            for task in self._tasks:
                if task.done():
                    task.result()

    async def wait_for_credentials(self, count: int) -> None:
        """Until so many were pushed, over all streams."""
        self._wanted = count
        if self.credentials >= count:
            return
        async with asyncio.timeout(300):
            await self._reached.wait()

    async def stop(self) -> None:
        """Cancel all streams."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def churn(kube: KubeApiProcess, nodes: int, rate: int, seconds: float) -> int:
    """Create and delete pods on random-like nodes, half and half; how many changes were made."""
    made: list[str] = []
    changes, start = 0, time.monotonic()
    while (elapsed := time.monotonic() - start) < seconds:
        due = int(elapsed * rate) - changes
        bodies = []
        for _ in range(max(due // 2, 0)):
            name = f"churn-{int(time.monotonic() * 1e6)}-{changes}"
            node = changes * 7919 % nodes
            address = f"10.250.{changes >> 8 & 255}.{changes & 255}"
            host = f"172.{16 + (node >> 16)}.{node >> 8 & 255}.{node & 255}"
            role = f"role-{changes % 100}"
            bodies.append(pod(name, address, role, namespace="team-0", node=f"node-{node}", host_address=host))
            made.append(name)
            changes += 1
        if bodies:
            await asyncio.to_thread(kube.apply, *bodies)
            for _ in range(len(bodies)):
                await asyncio.to_thread(kube.delete, "pods", made.pop(0), "team-0") if len(made) > 200 else None
                changes += 1
        await asyncio.sleep(0.01)
    return changes


async def longest_turn(kube: KubeApiProcess, aws: AwsProcess, pki: Pki, directory: Path) -> dict[str, float]:
    """CPU milliseconds of the longest turns of the event loop, from start to ready.

    The whole server, but in this process. CPU time of the loop's thread, so that what other programs do on this
    machine doesn't count.
    """
    os.environ.update(aws.environment)
    turns: list[float] = []
    loop = asyncio.get_running_loop()
    config = make_config(pki, directory, kube)
    tls, front = open_front(config, lambda: listen(config.bind), CollectorRegistry())
    front.start()
    async with asyncio.TaskGroup() as tasks:
        server = InProcess(config, tls, front, CollectorRegistry())
        await server.start(tasks)
        last = time.thread_time()

        def turn() -> None:
            nonlocal last
            now = time.thread_time()
            turns.append(now - last)
            last = now
            if counting:
                loop.call_soon(turn)

        counting = True
        loop.call_soon(turn)
        await server.wait_ready()
        counting = False
        await server.drain(0)
        current = asyncio.current_task()
        for task in asyncio.all_tasks() - {current}:
            task.cancel()
    await server.close()
    front.close()
    turns.sort()
    return {"longest_ms": round(turns[-1] * 1000, 1), "p999_ms": round(turns[int(len(turns) * 0.999)] * 1000, 2)}


def make_config(pki: Pki, directory: Path, kube: KubeApiProcess) -> ServerSettings:
    """The server's defaults."""
    parser = argparse.ArgumentParser()
    command.configure(parser)
    files = pki.server
    flags = ["--bind=localhost:0", f"--role-base-arn={ROLE_BASE_ARN}"]
    flags += [f"--kubeconfig={write_kubeconfig(directory / 'kubeconfig-loop', kube.url)}"]
    flags += [f"--cert={files.cert}", f"--key={files.key}", f"--ca={files.ca}"]
    return command.make_config(parser.parse_args(flags))


@asynccontextmanager
async def cluster(pods: int) -> AsyncIterator[tuple[Path, AwsProcess, KubeApiProcess]]:
    """A Kubernetes API with so many pods, and an STS."""
    with tempfile.TemporaryDirectory(prefix="kiam-fanout-") as name:
        directory = Path(name)
        with AwsProcess(directory / "aws") as aws, KubeApiProcess(directory / "kube") as kube:
            if pods:
                await asyncio.to_thread(kube.load_many, pods)
            yield directory, aws, kube


async def measure_memory(sizes: list[int]) -> dict[str, Any]:
    """RSS and time until ready, by pods."""
    results: dict[str, Any] = {}
    for size in sizes:
        async with cluster(size) as (directory, aws, kube):
            server = Server(directory, make_pki(directory / "pki"), aws, kube)
            try:
                ready = await asyncio.to_thread(server.wait_ready)
                cpu = server.cpu()
                await asyncio.sleep(3)
                results[str(size)] = {"rss_mib": round(server.rss(), 1), "ready_s": round(ready, 2), "cpu_s": cpu}
            finally:
                server.process.stop()
            if size:
                results[str(size)]["loop"] = await longest_turn(kube, aws, make_pki(directory / "pki2"), directory)
        print(size, json.dumps(results[str(size)]), flush=True)
    return results


async def measure_fanout(pods: int, rate: int, seconds: float) -> dict[str, Any]:
    """Lag from the API's change to the agent, and what it costs the server."""
    nodes = pods // PER_NODE
    async with cluster(pods) as (directory, aws, kube):
        pki = make_pki(directory / "pki")
        server = Server(directory, pki, aws, kube)
        agents = Agents(pki, server.port)
        try:
            await asyncio.to_thread(server.wait_ready)
            before, began = server.cpu(), time.monotonic()
            await agents.start(nodes)
            snapshot = {"s": round(time.monotonic() - began, 1), "cpu_s": round(server.cpu() - before, 1)}
            await agents.wait_for_credentials(nodes * PER_NODE)
            quiet, began = server.cpu(), time.monotonic()
            await asyncio.sleep(5)
            idle = (server.cpu() - quiet) / (time.monotonic() - began)
            before, began, messages = server.cpu(), time.monotonic(), agents.pods
            changes = await churn(kube, nodes, rate, seconds)
            await asyncio.sleep(1)
            took = time.monotonic() - began
            lags = sorted(agents.lags)
            return {
                "agents": nodes,
                "pods": pods,
                "snapshot": snapshot,
                "idle_cpu_percent": round(idle * 100, 1),
                "changes_per_s": round(changes / took, 1),
                "churn_cpu_percent": round((server.cpu() - before) / took * 100, 1),
                "pods_pushed": agents.pods - messages,
                "lag_ms": {
                    "p50": round(statistics.median(lags) * 1000, 2),
                    "p99": round(lags[int(len(lags) * 0.99)] * 1000, 2),
                    "max": round(lags[-1] * 1000, 2),
                },
                "rss_mib": round(server.rss(), 1),
            }
        finally:
            await agents.stop()
            server.process.stop()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pods", type=int, default=100_000)
    parser.add_argument("--rate", type=int, default=100, help="pod changes a second")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--sizes", type=int, nargs="*", default=[0, 1_000, 10_000, 100_000], help="pods, for memory")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    arguments = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    results: dict[str, Any] = {}
    if arguments.sizes:
        results["memory"] = uvloop.run(measure_memory(arguments.sizes))
    if arguments.pods:
        results["fanout"] = uvloop.run(measure_fanout(arguments.pods, arguments.rate, arguments.seconds))
        print(json.dumps(results["fanout"], indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
