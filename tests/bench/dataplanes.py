"""What a redirected connection costs beside a direct one to the agent, under the same rules."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from kiam.dataplane.registry import DATAPLANES
from tests.sandbox.netns import METADATA_IPV4, NODE_IPV4
from tests.sandbox.node import AGENT_PORT, NodeInABox, Pod

FOREIGN_RULES = (0, 1_000, 10_000)
CONNECTIONS = 1_000
ROUNDS = 3
AGENT_CPU, CLIENT_CPU = 0, 1


def kube_proxy_rules(count: int) -> str:
    """So many Services as kube-proxy's iptables mode writes them, for iptables-restore; packets pass them all."""
    lines = ["*nat", ":KUBE-SERVICES - [0:0]", ":KUBE-SVC-NOWHERE - [0:0]"]
    for number in range(count):
        address = f"10.{96 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"
        lines.append(f"-A KUBE-SERVICES -d {address}/32 -p tcp -m tcp --dport 443 -j KUBE-SVC-NOWHERE")
    # Without a rule that translates, the kernel doesn't track connections, and then passes over nat chains altogether.
    lines.append("-A KUBE-SVC-NOWHERE -p tcp -m tcp -j DNAT --to-destination 10.42.255.254:8443")
    lines += ["-A PREROUTING -j KUBE-SERVICES", "-A OUTPUT -j KUBE-SERVICES", "COMMIT", ""]
    return "\n".join(lines)


def measure(say: Callable[[str], None], rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """A row for each dataplane and number of foreign rules."""
    rows = []
    for dataplane in DATAPLANES:
        for count in FOREIGN_RULES:
            say(f"dataplane {dataplane}, {count:,} foreign rules")
            with NodeInABox(dataplane) as box:
                if count:
                    box.node.run("iptables-restore", "--noflush", stdin=kube_proxy_rules(count))
                agent = box.start_agent(cpus={AGENT_CPU})
                pod = box.add_pod("client", known=False)
                measured = [compare(pod) for _ in range(rounds)]
                ratios = sorted(row["ratio"] for row in measured)
                row = min(measured, key=lambda row: abs(row["ratio"] - statistics.median(ratios)))
                rows.append(
                    {
                        "dataplane": dataplane,
                        "foreign_rules": count,
                        **row,
                        "ratios": ratios,
                        "agent_rss_mib": round(agent.rss_bytes() / 2**20, 1),
                    }
                )
    return rows


def compare(pod: Pod) -> dict[str, float]:
    """Connections of a pod's, redirected and direct by turns: medians in µs, and their ratios."""
    with pod.net.netns.popen(
        [
            *("taskset", "--cpu-list", str(CLIENT_CPU), sys.executable, "-m", "tests.bench.connect"),
            *("--direct", f"{NODE_IPV4}:{AGENT_PORT}", "--through", f"{METADATA_IPV4}:80"),
            *("--connections", str(CONNECTIONS)),
        ],
        cgroup=pod.box.pod_cgroup(pod),
        stdout=subprocess.PIPE,
        text=True,
    ) as client:
        output, _ = client.communicate(timeout=120)
    if client.returncode:
        raise RuntimeError("the client could not connect; its error is above")
    times = json.loads(output)
    direct, through = (times["direct_ns"], times["through_ns"])
    return {
        "ratio": round(statistics.median(through) / statistics.median(direct), 3),
        # Connections that nothing else on the machine disturbed.
        "ratio_p10": round(_tenth(through) / _tenth(direct), 3),
        "direct_us": round(statistics.median(direct) / 1000, 1),
        "through_us": round(statistics.median(through) / 1000, 1),
    }


def _tenth(times: list[int]) -> float:
    return statistics.quantiles(times, n=10)[0]
