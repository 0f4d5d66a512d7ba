"""The credential path: a bare aiohttp handler and nginx with the same body, the agent directly, and redirected."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from typing import Any

from tests.bench import nginx as limit
from tests.bench import wrk
from tests.sandbox.netns import METADATA_IPV4, NODE_IPV4
from tests.sandbox.node import AGENT_PORT, CREDENTIALS, NodeInABox, Pod
from tests.sandbox.process import Process

CLIENTS = (1, 16, 64)
ROUNDS = 3
SECONDS = 3.0
BARE_PORT = 8190
SERVER_CPU, CLIENT_CPU = 0, 1
ROLE = "bench"


def measure(box: NodeInABox, say: Callable[[str], None], rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """A row for each number of clients and target; medians of the rounds, which go round the targets."""
    pod = _pod(box)
    body = box.directory / "body"
    body.write_bytes(pod.credentials(ROLE).body)
    bare = Process(
        [sys.executable, "-m", "tests.bench.bare_handler", "--port", str(BARE_PORT), "--body", str(body)],
        box.directory / "bare.log",
        netns=box.node.name,
        cgroup=box.cgroup.system,
        cpus={SERVER_CPU},
    )
    nginx = limit.start(box, ROLE, body.read_bytes(), {SERVER_CPU})
    with bare, nginx:
        bare.wait_for_output("listening")
        limit.wait(box, ROLE)
        assert box.agent is not None
        path = f"{CREDENTIALS}{ROLE}"
        targets = {
            "bare": (f"http://{NODE_IPV4}:{BARE_PORT}{path}", bare),
            "nginx": (f"http://{NODE_IPV4}:{limit.PORT}{path}", nginx),
            "direct": (f"http://{NODE_IPV4}:{AGENT_PORT}{path}", box.agent),
            "redirected": (f"http://{METADATA_IPV4}{path}", box.agent),
        }
        rows = []
        for clients in CLIENTS:
            runs: dict[str, list[wrk.Run]] = {name: [] for name in targets}
            for number in range(rounds):
                for name, (url, server) in targets.items():
                    say(f"credentials: {clients} clients, {name}, round {number + 1} of {rounds}")
                    runs[name].append(wrk.measure(pod, url, clients, SECONDS, server, CLIENT_CPU))
            rows += [_row(clients, name, runs, targets[name][1]) for name in targets]
    return rows


def _pod(box: NodeInABox) -> Pod:
    pod = box.add_pod(ROLE, ROLE, "open")
    answer = pod.credentials(ROLE)
    if answer.status != 200:
        raise RuntimeError(f"no credentials for the benchmark's pod: {answer.status} {answer.text}")
    return pod


def _row(clients: int, name: str, runs: dict[str, list[wrk.Run]], server: Process) -> dict[str, Any]:
    def median(figure: str) -> float:
        return float(statistics.median(getattr(run, figure) for run in runs[name]))

    def ratio(figure: str, to: str = "bare") -> float:
        # Within a round, so that what else the machine does from round to round cancels out.
        pairs = zip(runs[name], runs[to], strict=True)
        return round(float(statistics.median(getattr(run, figure) / getattr(other, figure) for run, other in pairs)), 3)

    return {
        "clients": clients,
        "target": name,
        "rate_to_nginx": ratio("rate", "nginx"),
        "rate_ratio": ratio("rate"),
        "p50_ratio": ratio("p50_us"),
        "cpu_ratio": ratio("cpu_per_thousand"),
        "requests_per_s": round(median("rate")),
        "p50_us": round(median("p50_us")),
        "p99_us": round(median("p99_us")),
        "cpu_s_per_1000": round(median("cpu_per_thousand"), 4),
        "rss_mib": round(server.rss_bytes() / 2**20, 1),
        "failed": sum(run.failed for run in runs[name]),
    }
