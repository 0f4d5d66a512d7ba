"""From a pod event to served credentials, and what pods notice of a server that is away."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from tests.bench import wrk
from tests.sandbox.aws import ROLE_BASE_ARN
from tests.sandbox.netns import METADATA_IPV4
from tests.sandbox.node import AGENT_PORT, CREDENTIALS, Answer, NodeInABox, Pod
from tests.sandbox.process import wait_until

EVENTS = 30
OUTAGES = (3.0, 10.0, 60.0)
CLIENTS = 16


def event_to_credentials(box: NodeInABox, say: Callable[[str], None], events: int = EVENTS) -> dict[str, Any]:
    """Milliseconds over STS's own time from the Pod's appearance in the API to credentials in the pod's hands.

    The pod asks first and is held; every pod has a role of its own, so that each waits for its own AssumeRole.
    """
    over: list[float] = []
    sts: list[float] = []
    with ThreadPoolExecutor(1) as pool:
        for number in range(events):
            say(f"pod event to served credentials, pod {number + 1} of {events}")
            role = f"event-{number}"
            pod = box.add_pod(role, namespace="open", known=False)
            answer = pool.submit(_timed, pod, role)
            wait_until(partial(_connected, box, pod), "the pod's request to reach the agent")
            appeared = box.announce(pod, role)
            arrived, result = answer.result()
            if result.status != 200:
                raise RuntimeError(f"no credentials for {role}: {result.status} {result.text}")
            call = next(call for call in box.aws.calls() if call.role_arn == ROLE_BASE_ARN + role)
            sts.append(call.ended - call.started)
            over.append(arrived - appeared - sts[-1])
            box.remove_pod(pod)
    return {
        "events": events,
        "over_sts_ms_p50": round(statistics.median(over) * 1000, 2),
        "over_sts_ms_max": round(max(over) * 1000, 2),
        "sts_ms_p50": round(statistics.median(sts) * 1000, 2),
    }


def _timed(pod: Pod, role: str) -> tuple[float, Answer]:
    answer = pod.credentials(role)
    return time.monotonic(), answer


def _connected(box: NodeInABox, pod: Pod) -> bool:
    listed = box.node.run("ss", "-Htn", "state", "established", "sport", f"= :{AGENT_PORT}").stdout
    return pod.address in listed


def outages(box: NodeInABox, say: Callable[[str], None], lengths: tuple[float, ...] = OUTAGES) -> list[dict[str, Any]]:
    """Failed requests of a known pod while the server is killed and away for so many seconds."""
    pod = box.add_pod("outage", "outage", "open")
    if pod.credentials("outage").status != 200:
        raise RuntimeError("no credentials for the outage's pod")
    rows = []
    for length in lengths:
        say(f"server away for {length:g} s under load")
        assert box.server is not None
        load = wrk.start(pod, f"http://{METADATA_IPV4}{CREDENTIALS}outage", CLIENTS, length + 4, cpu=1)
        try:
            started = time.monotonic()
            time.sleep(1)
            box.server.kill()
            time.sleep(length)
            box.start_server(wait=False)
            run = wrk.finish(load, length + 60)
        finally:
            load.kill()
        box.wait_for_server()
        rows.append({"away_s": length, "requests": run.requests, "failed": run.failed, "p99_us": run.p99_us})
        assert time.monotonic() - started > length
    return rows
