"""The startup taint comes off a node when its agent is ready, and not a moment before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from kiam.cli import build_parser
from kiam.server.kubernetes.api import KubeApi as Client
from kiam.server.kubernetes.untaint import Untainter
from tests.sandbox.kubeapi import KubeApi
from tests.sandbox.process import until

TAINT = {"key": "kiam.io/agent-not-ready", "effect": "NoSchedule"}
OTHER = {"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}
LABELS = {"app": "kiam", "component": "agent"}


def node(name: str = "node-1", taints: list[dict[str, str]] | None = None) -> dict[str, Any]:
    return {
        "kind": "Node",
        "metadata": {"name": name},
        "spec": {"taints": [OTHER, TAINT] if taints is None else taints},
    }


def agent(ready: bool, name: str = "agent-1", on: str = "node-1", **labels: str) -> dict[str, Any]:
    return {
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "kube-system", "uid": f"uid-{name}", "labels": labels or LABELS},
        "spec": {"nodeName": on},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": str(ready)}]},
    }


def taints(cluster: KubeApi, name: str = "node-1") -> list[str]:
    return [taint["key"] for taint in cluster.get("nodes", name)["spec"].get("taints") or ()]


@asynccontextmanager
async def untainting(cluster: KubeApi, folder: Path) -> AsyncIterator[None]:
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(
        yaml.safe_dump(
            {
                "current-context": "c",
                "clusters": [{"name": "c", "cluster": {"server": cluster.url}}],
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                "users": [{"name": "u", "user": {}}],
            }
        )
    )
    api = await Client.connect(str(kubeconfig))
    task = asyncio.create_task(Untainter(api, TAINT["key"], LABELS).run("kube-system", 60))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await api.close()


@pytest.fixture
async def cluster() -> AsyncIterator[KubeApi]:
    async with KubeApi(token=None) as api:
        yield api


async def test_comes_off_when_the_agent_is_ready_and_leaves_other_taints(cluster: KubeApi, tmp_path: Path) -> None:
    cluster.load([node(), agent(ready=False)])
    async with untainting(cluster, tmp_path):
        await until(lambda: cluster.watches() == 1)
        assert taints(cluster) == [OTHER["key"], TAINT["key"]]
        cluster.apply(agent(ready=True))
        await until(lambda: taints(cluster) == [OTHER["key"]])


async def test_agents_that_were_ready_before_it_started_count(cluster: KubeApi, tmp_path: Path) -> None:
    cluster.load([node(taints=[TAINT]), agent(ready=True)])
    async with untainting(cluster, tmp_path):
        await until(lambda: taints(cluster) == [])


async def test_other_pods_free_no_node(cluster: KubeApi, tmp_path: Path) -> None:
    """The attack stopped: whoever may start a pod in the namespace would get nodes freed before their agent is up."""
    cluster.load(
        [node(), node("node-2"), agent(True, "other", app="kiam", component="server"), agent(True, "b", "node-2")]
    )
    async with untainting(cluster, tmp_path):
        await until(lambda: taints(cluster, "node-2") == [OTHER["key"]])
        assert TAINT["key"] in taints(cluster, "node-1")


async def test_a_change_in_between_is_kept_and_the_taint_still_goes(
    cluster: KubeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.load([node(), agent(ready=False)])
    added = {"key": "added", "effect": "NoExecute"}
    read = cluster._single

    async def change_after_read(request: Any, verb: str, resource: str, *rest: Any) -> Any:
        answer = await read(request, verb, resource, *rest)
        if verb == "get" and cluster.requests["get nodes"] == 1:
            cluster.apply(node(taints=[OTHER, TAINT, added]))
        return answer

    monkeypatch.setattr(cluster, "_single", change_after_read)
    async with untainting(cluster, tmp_path):
        cluster.apply(agent(ready=True))
        await until(lambda: taints(cluster) == [OTHER["key"], "added"])


async def test_goes_on_after_errors_and_without_the_node(cluster: KubeApi, tmp_path: Path) -> None:
    cluster.load([node(), agent(True, "gone", "no-such-node"), agent(True)])
    cluster.faults.fail = 3
    async with untainting(cluster, tmp_path):
        await until(lambda: taints(cluster) == [OTHER["key"]])


@pytest.mark.parametrize(
    ("flag", "value", "complaint"),
    [
        ("--taint", "key:NoSchedule", "without an effect"),
        ("--namespace", "Kube System", "not a namespace"),
        ("--selector", "app", "write it like app=kiam"),
        ("--selector", "a=b=c", "write it like app=kiam"),
    ],
)
def test_bad_flags_get_one_line(flag: str, value: str, complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser("untaint").parse_args(["untaint", flag, value])
    assert complaint in capsys.readouterr().err.splitlines()[-1]
