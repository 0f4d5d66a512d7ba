"""What the kernel's word and session tokens cost a pod, and how much sooner a new pod has its credentials by them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

from tests.bench import dataplanes, wrk
from tests.sandbox.aws import ROLE_BASE_ARN
from tests.sandbox.netns import METADATA_IPV4
from tests.sandbox.node import CREDENTIALS, NodeInABox, Pod, fetch
from tests.sandbox.process import wait_until

STARTS = 20
ANNOUNCED_AFTER = 0.3
"""Seconds from a pod's first request until the API has its address, which kubelet reports some time after the start."""
CLIENTS = (1, 16, 64)
ROUNDS = 3
SECONDS = 3.0
AGENT_CPU, CLIENT_CPU = 0, 1
ROLE = "bench"
URL = f"http://{METADATA_IPV4}{CREDENTIALS}{ROLE}"
TOKEN, TOKEN_TTL = "X-aws-ec2-metadata-token", "X-aws-ec2-metadata-token-ttl-seconds"
UID = ("--pod-uid=check", "--node-name=node-1")
VARIANTS: dict[str, tuple[str, ...]] = {
    "off": (),
    "UID check": UID,
    "tokens": ("--imds-tokens=required",),
    "both": (*UID, "--imds-tokens=required"),
}
"""Flags of the agent. Without ``required`` the clients send no token."""


def pod_starts(box: NodeInABox, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """A row for each ``--pod-uid``; milliseconds from a pod's first request to its credentials.

    The pod was scheduled before, as the API always has it, and each has a role of its own.
    """
    rows = []
    for mode in ("off", "check"):
        box.start_agent(f"--pod-uid={mode}", "--node-name=node-1")
        times = []
        for number in range(STARTS):
            say(f"pod start to first credentials, --pod-uid={mode}, pod {number + 1} of {STARTS}")
            times.append(_start(box, f"start-{mode}-{number}"))
        rows.append(
            {
                "pod_uid": mode,
                "address_reported_after_ms": round(ANNOUNCED_AFTER * 1000),
                "starts": STARTS,
                "first_credentials_ms_p50": round(statistics.median(times) * 1000, 1),
                "first_credentials_ms_max": round(max(times) * 1000, 1),
            }
        )
    return rows


def _start(box: NodeInABox, role: str) -> float:
    pod = box.add_pod(role, namespace="open", known=False)
    box.schedule(pod, role)
    # It takes kubelet longer than this to make a pod's sandbox and start a container.
    wait_until(partial(box.aws.count, ROLE_BASE_ARN + role), "the credentials of a scheduled pod to be fetched")
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(pod.net.netns.call, _first_credentials, role, cgroup=box.pod_cgroup(pod))
        time.sleep(ANNOUNCED_AFTER)
        box.announce(pod, role)
        took = answer.result()
    box.remove_pod(pod)
    return took


def _first_credentials(role: str) -> float:
    started = time.monotonic()
    answer = fetch(str(METADATA_IPV4), 80, CREDENTIALS + role)
    if answer.status != 200:
        raise RuntimeError(f"no credentials for {role}: {answer.status} {answer.text}")
    return time.monotonic() - started


def hot_path(say: Callable[[str], None], rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """Rows for numbers of keep-alive clients, and for a connection of its own for each request; a row for each variant.

    A node for each variant, all at once and measured by turns, so that the ratios are of the same minute.
    """
    with ExitStack() as stack:
        pods = {
            name: _ready(stack.enter_context(NodeInABox("iptables", needs_cgroups=True)), flags)
            for name, flags in VARIANTS.items()
        }
        headers = {name: {TOKEN: _token(pods[name])} if "required" in str(VARIANTS[name]) else {} for name in pods}
        rows = []
        for clients in CLIENTS:
            runs: dict[str, list[wrk.Run]] = {name: [] for name in VARIANTS}
            for number in range(rounds):
                say(f"UID check and tokens: {clients} clients, round {number + 1} of {rounds}")
                # Whoever goes second finds the machine as the first has left it, so they take turns at that, too.
                for name in list(VARIANTS)[:: -1 if number % 2 else 1]:
                    agent = pods[name].box.agent
                    assert agent is not None
                    run = wrk.measure(pods[name], URL, clients, SECONDS, agent, CLIENT_CPU, headers[name])
                    runs[name].append(run)
            rows += [_row(clients, name, runs) for name in VARIANTS]
        say("UID check: a connection for each request")
        connections: dict[str, list[float]] = {"off": [], "UID check": []}
        for _ in range(rounds):
            for name, times in connections.items():
                times.append(dataplanes.compare(pods[name])["through_us"])
        return rows + [_connections_row(name, connections) for name in connections]


def _token(pod: Pod) -> str:
    return pod.ask("/latest/api/token", "PUT", {TOKEN_TTL: "21600"}).text


def _ready(box: NodeInABox, flags: tuple[str, ...]) -> Pod:
    box.add_namespace("open")
    box.start_server()
    box.start_agent(*flags, cpus={AGENT_CPU})
    pod = box.add_pod(ROLE, ROLE, "open")
    answer = pod.ask(CREDENTIALS + ROLE, headers={TOKEN: _token(pod)})
    if answer.status != 200:
        raise RuntimeError(f"no credentials for the benchmark's pod: {answer.status} {answer.text}")
    return pod


def _row(clients: int, name: str, runs: dict[str, list[wrk.Run]]) -> dict[str, Any]:
    def ratio(figure: str) -> float:
        pairs = zip(runs[name], runs["off"], strict=True)
        return round(float(statistics.median(getattr(run, figure) / getattr(off, figure) for run, off in pairs)), 3)

    return {
        "clients": str(clients),
        "agent": name,
        "rate_ratio": ratio("rate"),
        "p50_ratio": ratio("p50_us"),
        "cpu_ratio": ratio("cpu_per_thousand"),
        "requests_per_s": round(statistics.median(run.rate for run in runs[name])),
        "p50_us": round(statistics.median(run.p50_us for run in runs[name])),
        "failed": sum(run.failed for run in runs[name]),
    }


def _connections_row(name: str, connections: dict[str, list[float]]) -> dict[str, Any]:
    ratio = statistics.median(on / off for on, off in zip(connections[name], connections["off"], strict=True))
    return {
        "clients": "1, connecting anew",
        "agent": name,
        "rate_ratio": "",
        "p50_ratio": round(ratio, 3),
        "cpu_ratio": "",
        "requests_per_s": "",
        "p50_us": round(statistics.median(connections[name])),
        "failed": 0,
    }


def measure(say: Callable[[str], None]) -> dict[str, list[dict[str, Any]]]:
    """Both tables."""
    with NodeInABox("iptables", needs_cgroups=True) as box:
        box.add_namespace("open")
        box.start_server()
        starts = pod_starts(box, say)
    return {"pod start": starts, "identity": hot_path(say)}
