"""``kiam collect``: wait for a command that a DaemonSet runs on each node, and print what it said there."""

from __future__ import annotations

import argparse
import asyncio
from datetime import timedelta

from kiam.cli.options import duration, flag_type, label_selector, namespace
from kiam.errors import UserError


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument(
        "--kubeconfig", default="", metavar="FILE", help="how to reach the Kubernetes API; empty: as the pod it runs in"
    )
    parser.add_argument(
        "--namespace",
        type=flag_type(namespace, "namespace"),
        default="kube-system",
        help="the DaemonSet's namespace (kube-system)",
    )
    parser.add_argument("--daemonset", required=True, metavar="NAME", help="the DaemonSet; deleted when done")
    parser.add_argument(
        "--selector",
        type=flag_type(label_selector, "labels"),
        required=True,
        metavar="LABELS",
        help="labels of its pods, such as app=kiam,component=test",
    )
    parser.add_argument("--container", required=True, metavar="NAME", help="the init container that runs the command")
    parser.add_argument(
        "--timeout",
        type=duration,
        default=timedelta(minutes=5),
        metavar="DURATION",
        help="how long to wait for all nodes together (5m)",
    )


async def _collect(arguments: argparse.Namespace) -> int:
    from kiam.server.kubernetes.api import KubeApi, KubeError
    from kiam.server.kubernetes.node_task import NodeTask

    task = NodeTask(arguments.namespace, arguments.daemonset, arguments.selector, arguments.container)
    api = await KubeApi.connect(arguments.kubeconfig)
    try:
        try:
            results = await task.gather(api, arguments.timeout.total_seconds())
        finally:
            await task.remove(api)
    except KubeError as error:
        raise UserError(str(error)) from error
    finally:
        await api.close()
    for result in results:
        said = {None: "no result", 0: "ok"}.get(result.exit_code, f"failed (exit {result.exit_code})")
        print(f"== node {result.node}: {said}\n{result.text.rstrip()}")
    failed = [result.node for result in results if result.exit_code != 0]
    if not results:
        raise UserError("no node runs it", "look at agent.nodeSelector, agent.tolerations and agent.affinity")
    print(
        f"== {len(results) - len(failed)} of {len(results)} nodes ok" + (f", not {', '.join(failed)}" if failed else "")
    )
    return 1 if failed else 0


def run(arguments: argparse.Namespace) -> int:
    """Wait, print, and say by the exit code whether all nodes did well."""
    return asyncio.run(_collect(arguments))
