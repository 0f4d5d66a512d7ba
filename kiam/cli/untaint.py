"""``kiam untaint``: take the startup taint off nodes whose agent is ready."""

from __future__ import annotations

import argparse
import asyncio
import re
import signal
from datetime import timedelta

from kiam.cli.options import add_boolean, duration, flag_type, label_selector, namespace

_TAINT = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
"""A qualified name (https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#syntax-and-character-set)."""


def _taint(text: str) -> str:
    if not _TAINT.fullmatch(text):
        raise ValueError(f"'{text}' is not a taint's key; write it like kiam.io/agent-not-ready, without an effect")
    return text


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    add_boolean(parser, "--json-log", False, "log JSON objects")
    parser.add_argument("--level", choices=("debug", "info", "warn", "error"), default="info", help="log level")
    parser.add_argument(
        "--kubeconfig", default="", metavar="FILE", help="how to reach the Kubernetes API; empty: as the pod it runs in"
    )
    parser.add_argument(
        "--taint",
        type=flag_type(_taint, "taint"),
        default="kiam.io/agent-not-ready",
        metavar="KEY",
        help="the taint's key (kiam.io/agent-not-ready)",
    )
    parser.add_argument(
        "--namespace", type=flag_type(namespace, "namespace"), default="kube-system", help="where the agents' pods are"
    )
    parser.add_argument(
        "--selector",
        type=flag_type(label_selector, "labels"),
        default="app=kiam,component=agent",
        metavar="LABELS",
        help="labels that tell the agents' pods",
    )
    parser.add_argument(
        "--sync",
        type=duration,
        default=timedelta(minutes=1),
        metavar="DURATION",
        help="begin a new watch of the pods so often; bounds how long a dead one goes unnoticed",
    )


async def _serve(arguments: argparse.Namespace) -> None:
    from kiam.server.kubernetes.api import KubeApi
    from kiam.server.kubernetes.untaint import Untainter

    api = await KubeApi.connect(arguments.kubeconfig)
    try:
        untainter = Untainter(api, arguments.taint, arguments.selector)
        work = asyncio.create_task(untainter.run(arguments.namespace, arguments.sync.total_seconds()))
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, work.cancel)
        try:
            await work
        except asyncio.CancelledError:
            if not work.cancelled():
                raise
    finally:
        await api.close()


def run(arguments: argparse.Namespace) -> int:
    """Watch until told to stop."""
    from kiam.logs import configure_logging

    configure_logging(arguments.level, arguments.json_log)
    asyncio.run(_serve(arguments))
    return 0
