"""wrk, run inside a pod."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.sandbox.node import Pod
from tests.sandbox.process import Process

SCRIPT = Path(__file__).with_name("report.lua")


@dataclass(frozen=True, slots=True)
class Run:
    """What wrk saw, and what the server under it used meanwhile."""

    requests: int
    seconds: float
    p50_us: int
    p99_us: int
    failed: int
    """Connection errors, time-outs and answers other than 2xx and 3xx."""
    cpu_seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds

    @property
    def cpu_per_thousand(self) -> float:
        """CPU seconds of the server for 1,000 requests."""
        return self.cpu_seconds / self.requests * 1000


def start(
    pod: Pod, url: str, clients: int, seconds: float, cpu: int, headers: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start wrk with so many keep-alive connections, one thread, on one processor."""
    command = ["taskset", "--cpu-list", str(cpu), "wrk", "-t1", f"-c{clients}", f"-d{seconds:g}s", "--timeout", "10s"]
    fields = [f"-H{name}: {value}" for name, value in (headers or {}).items()]
    return pod.net.netns.popen(
        [*command, *fields, "-s", str(SCRIPT), url], cgroup=pod.box.pod_cgroup(pod), stdout=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str], timeout: float) -> Run:
    """Wait for wrk's end and read its figures."""
    try:
        output, _ = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return Run(**json.loads(output.strip().splitlines()[-1]))


def measure(
    pod: Pod,
    url: str,
    clients: int,
    seconds: float,
    server: Process,
    cpu: int,
    headers: Mapping[str, str] | None = None,
) -> Run:
    """One run against a server of ours, with the CPU time that it used."""
    before = server.cpu_seconds()
    run = finish(start(pod, url, clients, seconds, cpu, headers), seconds + 30)
    figures = {name: getattr(run, name) for name in ("requests", "seconds", "p50_us", "p99_us", "failed")}
    return Run(**figures, cpu_seconds=server.cpu_seconds() - before)
