"""``make bench``: figures on the terminal as tables, ratios first, and as JSON in a file."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.table import Table

from tests.bench import (
    agent,
    certificates,
    credentials,
    dataplanes,
    fairness,
    fanout,
    identity,
    partition,
    push,
    server,
    strangers,
)
from tests.sandbox.node import NodeInABox, needs_root

Rows = list[dict[str, Any]]
Say = Callable[[str], None]

GOALS = {
    "agent": "goals: first answer within 0.5 s; 50 MiB after load; 0.1 CPU s a minute when idle",
    "credentials": "goals: rate_to_nginx 0.9, 0.6, 0.6 with 1, 16, 64 clients through the redirect; "
    "rate_ratio at least 0.8 with 16 and 64 clients; p50_ratio at most 1.25 with 1; "
    "cpu_ratio at most 1.25",
    "dataplanes": "goal: ratio (through the dataplane / direct, same rules) at most 1.05",
    "push": "goal: at most 5 ms over STS's own time",
    "outages": "goal: 0 failed for known pods",
    "server": "goal: 10,000 pods at most about 60 MiB over the empty server",
    "certificates": "both for any: the agent does TLS outside gRPC, as kiam's own does then",
    "start": "goal: TLS accepted, and HTTP/2's SETTINGS sent, within 0.3 s of the process's start",
    "strangers": "goal: memory bounded, and an agent's calls as before",
    "fairness": "goal: the other pod's credentials within two STS times (and the Kubernetes API's way), "
    "whatever one tenant has waiting",
    "fanout": "",
    "partition": "goal: 0 wrong in 100,000 answers",
    "pod start": "goal: with check, at most 50 ms, whenever the address is reported",
    "identity": "goal: within 5 % of off with both the UID check and session tokens",
}


def run_node(say: Say) -> dict[str, Rows]:
    """What one node does: credentials, pushes, outages."""
    with NodeInABox("iptables") as box:
        box.add_namespace("open")
        box.start_server()
        box.start_agent(cpus={credentials.SERVER_CPU})
        return {
            "credentials": credentials.measure(box, say),
            "push": [push.event_to_credentials(box, say)],
            "outages": push.outages(box, say),
        }


def run_fanout(say: Say) -> dict[str, Rows]:
    """1,000 agents and 100,000 pods."""
    say("server: 1,000 agents, 100,000 pods, 100 changes a second")
    figures = uvloop.run(fanout.measure_fanout(100_000, 100, 20))
    flat = {name: figures[name] for name in ("agents", "pods", "changes_per_s", "churn_cpu_percent", "rss_mib")}
    lags = {f"lag_ms_{name}": value for name, value in figures["lag_ms"].items()}
    return {"fanout": [{**lags, **flat}]}


SECTIONS: dict[str, Callable[[Say], dict[str, Rows]]] = {
    "node": run_node,
    "agent": lambda say: {"agent": agent.measure(say)},
    "dataplanes": lambda say: {"dataplanes": dataplanes.measure(say)},
    "server": lambda say: {"server": server.measure(say), "certificates": certificates.measure(say)},
    "start": lambda say: {"start": strangers.measure_start(say)},
    "strangers": lambda say: {"strangers": strangers.measure_strangers(say)},
    "fairness": lambda say: {"fairness": uvloop.run(fairness.measure(say))},
    "fanout": run_fanout,
    "identity": identity.measure,
    "partition": partition.measure,
}


def show(console: Console, name: str, rows: Rows) -> None:
    """One table."""
    table = Table(title=name, caption=GOALS[name], title_justify="left", caption_justify="left")
    columns = [column for column in rows[0] if column != "ratios"]
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(f"{row[column]:,}" if isinstance(row[column], int) else str(row[column]) for column in columns))
    console.print(table)


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; all by default")
    parser.add_argument("--json", type=Path, default=Path("bench.json"), help="file for the figures")
    arguments = parser.parse_args()
    unknown = set(arguments.sections) - set(SECTIONS)
    why = f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}" if unknown else needs_root()
    if why is None and len(os.sched_getaffinity(0)) < 2:
        why = "this needs two processors: one for what is measured, one for the client"
    if why is not None:
        print(f"make bench: {why}", file=sys.stderr)
        return 1
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    started = time.monotonic()
    results: dict[str, Any] = {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "processors": os.cpu_count(),
    }
    for name in arguments.sections or SECTIONS:
        with console.status(name) as status:
            tables = SECTIONS[name](status.update if console.is_terminal else _log)
        for title, rows in tables.items():
            show(console, title, rows)
            results[title] = rows
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    console.print(f"{time.monotonic() - started:.0f} s; figures are in {arguments.json}")
    return 0


def _log(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
