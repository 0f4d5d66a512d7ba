"""The agent with each dataplane: the time from its start to its first answer, its weight, its CPU time when idle."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable
from typing import Any

from kiam.dataplane.registry import DATAPLANES
from tests.bench import wrk
from tests.sandbox.netns import METADATA_IPV4, NODE_IPV4
from tests.sandbox.node import AGENT_PORT, CREDENTIALS, NodeInABox, Pod

ROLE = "bench"
STARTS = 5
LOAD_SECONDS = 3.0
IDLE_SECONDS = 30.0


def measure(say: Callable[[str], None]) -> list[dict[str, Any]]:
    """A row for each dataplane."""
    return [_measure(name, say) for name in DATAPLANES]


def _measure(dataplane: str, say: Callable[[str], None]) -> dict[str, Any]:
    with NodeInABox(dataplane) as box:
        box.add_namespace("open")
        box.start_server()
        box.start_agent()
        pod = box.add_pod(ROLE, ROLE, "open")
        if pod.credentials(ROLE).status != 200:
            raise RuntimeError("no credentials for the benchmark's pod")
        say(f"agent: {dataplane}: {STARTS} starts")
        starts = sorted(_start(box, pod) for _ in range(STARTS))
        box.wait_for_agent()
        assert box.agent is not None
        say(f"agent: {dataplane}: load")
        url = f"http://{METADATA_IPV4}{CREDENTIALS}{ROLE}"
        for clients in (1, 16, 64):
            wrk.measure(pod, url, clients, LOAD_SECONDS, box.agent, cpu=1)
        weight = box.agent.rss_bytes() / 2**20
        say(f"agent: {dataplane}: idle for {IDLE_SECONDS:g} s")
        before = box.agent.cpu_seconds()
        time.sleep(IDLE_SECONDS)
        idle = (box.agent.cpu_seconds() - before) * 60 / IDLE_SECONDS
        return {
            "dataplane": dataplane,
            "first_answer_s": round(starts[STARTS // 2], 3),
            "first_answer_max_s": round(starts[-1], 3),
            "rss_after_load_mib": round(weight, 1),
            "idle_cpu_s_per_min": round(idle, 3),
            "threads": len(list_threads(box.agent.pid)),
        }


def list_threads(pid: int) -> list[str]:
    """The names of a process's threads."""
    done = subprocess.run(["ps", "-L", "-o", "comm=", "-p", str(pid)], capture_output=True, text=True, check=True)
    return done.stdout.split()


def _start(box: NodeInABox, pod: Pod) -> float:
    """Seconds from the agent's start to a pod's credentials; the redirection of the run before is in place."""
    assert box.agent is not None
    box.agent.kill()
    started = time.monotonic()
    box.start_agent(wait=False)
    while time.monotonic() - started < 30:
        with contextlib.suppress(OSError):
            if pod.ask(f"{CREDENTIALS}{ROLE}").status == 200:
                return time.monotonic() - started
        time.sleep(0.002)
    raise RuntimeError(f"no answer from the agent at {NODE_IPV4}:{AGENT_PORT}")
