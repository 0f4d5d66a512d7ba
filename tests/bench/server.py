"""The server with pods: memory, time until ready, and GetPodCredentials."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kiam.tls import TLSFiles
from tests.sandbox.aws import ROLE_BASE_ARN, AwsProcess
from tests.sandbox.kubeapi import KubeApiProcess, many_pods, namespace, pod, write_kubeconfig
from tests.sandbox.pki import make_pki
from tests.sandbox.process import Process

SIZES = (0, 1_000, 10_000)
CALLED_PODS = 50
SERVER_CPU, CLIENT_CPU = 0, 1


def measure(say: Callable[[str], None], sizes: tuple[int, ...] = SIZES) -> list[dict[str, Any]]:
    """A row for each number of pods. The calls are for a few further pods that share a role."""
    return [_measure(say, size) for size in sizes]


def _measure(say: Callable[[str], None], size: int) -> dict[str, Any]:
    with (
        tempfile.TemporaryDirectory(prefix="kiam-bench-") as name,
        AwsProcess(Path(name, "aws")) as aws,
        KubeApiProcess(Path(name, "kube")) as kube,
    ):
        files = make_pki(Path(name, "pki")).server
        say(f"server: loading {size:,} pods of {_size():.1f} KB")
        if size:
            kube.load_many(size)
        say(f"server: starting with {size:,} pods")
        started = time.monotonic()
        with running_server(Path(name, "server"), aws, kube, files) as (server, port):
            ready = time.monotonic() - started
            cpu = server.cpu_seconds()
            rss = server.rss_bytes()
            addresses = called_pods(kube)
            say(f"server: GetPodCredentials with {size:,} pods")
            before = server.cpu_seconds()
            calls = call(files, port, addresses)
            used = server.cpu_seconds() - before
        return {
            "pods": size,
            "rss_mib": round(rss / 2**20, 1),
            "ready_s": round(ready, 2),
            "ready_cpu_s": round(cpu, 2),
            **calls,
            "cpu_s_calls": round(used, 2),
        }


@contextlib.contextmanager
def running_server(
    directory: Path, aws: AwsProcess, kube: KubeApiProcess, files: TLSFiles
) -> Iterator[tuple[Process, int]]:
    """A server on a processor of its own, ready, and its port."""
    directory.mkdir()
    kubeconfig = write_kubeconfig(directory / "kubeconfig", kube.url)
    server = Process(
        [
            *(sys.executable, "-m", "kiam", "server", "--bind", "localhost:0", "--kubeconfig", str(kubeconfig)),
            *(*_flags(files), "--role-base-arn", ROLE_BASE_ARN),
        ],
        directory / "server.log",
        env=aws.environment,
        cpus={SERVER_CPU},
    )
    with server:
        port = int(server.wait_for_output(r"\(port (\d+)\)").group(1))
        server.wait_for_output(r"ready pods=\d+", timeout=120)
        yield server, port


def called_pods(kube: KubeApiProcess) -> list[str]:
    """Pods that share a role, by address."""
    addresses = [f"10.250.0.{number}" for number in range(1, CALLED_PODS + 1)]
    bodies = [pod(f"called-{address}", address, "called", namespace="called") for address in addresses]
    kube.apply(namespace("called", ".*"), *bodies)
    return addresses


def call(files: TLSFiles, port: int, addresses: list[str], *flags: str) -> dict[str, Any]:
    """Figures of :mod:`tests.bench.calls`, on the other processor."""
    done = subprocess.run(
        [
            *("taskset", "--cpu-list", str(CLIENT_CPU), sys.executable, "-m", "tests.bench.calls", *_flags(files)),
            *("--server", f"localhost:{port}", "--addresses", ",".join(addresses), "--role", "called", *flags),
        ],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=120,
    )
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def _flags(files: TLSFiles) -> list[str]:
    return ["--cert", str(files.cert), "--key", str(files.key), "--ca", str(files.ca)]


def _size() -> float:
    return len(json.dumps(next(many_pods(1)))) / 1000
