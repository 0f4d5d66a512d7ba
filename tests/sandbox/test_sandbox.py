"""The sandbox keeps its promises: what the API server does wrong on demand, and that nothing is left behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest

from tests.sandbox import kubeapi
from tests.sandbox.cgroups import cgroup2_mount
from tests.sandbox.kubeapi import TOKEN, KubeApi
from tests.sandbox.netns import NETNS_DIRECTORY
from tests.sandbox.process import Process

PODS = "/api/v1/pods"


def client(api: KubeApi) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(api.url, headers={"Authorization": f"Bearer {TOKEN}"})


async def test_pages_of_a_list_show_the_moment_of_the_first() -> None:
    async with KubeApi() as api, client(api) as session:
        api.load(kubeapi.many_pods(25))
        async with session.get(PODS, params={"limit": "10"}) as answer:
            first = await answer.json()
        api.apply(kubeapi.pod("later", "10.0.0.1"))
        names = [item["metadata"]["name"] for item in first["items"]]
        page = first
        while "continue" in page["metadata"]:
            async with session.get(PODS, params={"limit": "10", "continue": page["metadata"]["continue"]}) as answer:
                page = await answer.json()
            names += [item["metadata"]["name"] for item in page["items"]]
            assert page["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
        assert names == [f"pod-{number}" for number in range(25)]


async def test_a_continue_token_from_before_a_compaction_is_gone() -> None:
    async with KubeApi() as api, client(api) as session:
        api.load(kubeapi.many_pods(3))
        async with session.get(PODS, params={"limit": "1"}) as answer:
            token = (await answer.json())["metadata"]["continue"]
        api.compact()
        async with session.get(PODS, params={"limit": "1", "continue": token}) as answer:
            assert (answer.status, (await answer.json())["reason"]) == (410, "Expired")


@pytest.mark.parametrize("as_event", [True, False])
async def test_a_watch_from_a_forgotten_version_is_gone(as_event: bool) -> None:
    async with KubeApi() as api, client(api) as session:
        api.faults.gone_as_event = as_event
        api.compact()
        async with session.get(PODS, params={"watch": "1", "resourceVersion": "1"}) as answer:
            seen = await answer.json(content_type=None)
        assert answer.status == (200 if as_event else 410)
        assert (seen["object"] if as_event else seen)["code"] == 410


async def test_a_watch_sees_what_leaves_its_selector_as_deleted_and_ends_when_cut() -> None:
    async with KubeApi() as api, client(api) as session:
        version = str(api.version)
        query = {"watch": "1", "resourceVersion": version, "fieldSelector": "spec.nodeName=a"}
        async with session.get(PODS, params=query) as answer:
            api.apply(kubeapi.pod("one", "10.0.0.1", node="a"))
            api.apply(kubeapi.pod("one", "10.0.0.1", node="b"))
            kinds = [b'"type":"ADDED"' in await answer.content.readline()]
            kinds.append(b'"type":"DELETED"' in await answer.content.readline())
            assert kinds == [True, True]
            assert api.drop_streams() == 1
            with pytest.raises(aiohttp.ClientPayloadError):
                await answer.content.read()


async def test_the_token_may_do_what_the_documented_role_allows_and_no_more() -> None:
    async with KubeApi() as api, client(api) as session:
        async with session.post("/api/v1/namespaces/default/pods", json=kubeapi.pod("x", None)) as answer:
            assert answer.status == 403
        async with session.get("/api/v1/events") as answer:
            assert answer.status == 403
        async with session.get(PODS, headers={"Authorization": "Bearer other"}) as answer:
            assert answer.status == 401


RUN = """
import sys, time
from tests.sandbox.node import NodeInABox
with NodeInABox("none") as box:
    box.add_pod("one")
    print("up", box.directory, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_behind_by_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    with Process([sys.executable, "-c", RUN], tmp_path / "log") as run:
        directory = Path(run.wait_for_output(r"^up (\S+)$").group(1))
        owned = f"kiam-{run.pid}-"
        assert [path for path in NETNS_DIRECTORY.iterdir() if path.name.startswith(owned)]
        run.send_signal(number)
        assert run.wait() != 0
    left = [path for path in (*NETNS_DIRECTORY.iterdir(), *cgroup2_mount().iterdir()) if path.name.startswith(owned)]
    assert not left
    assert not directory.exists()
    assert str(directory) not in subprocess.run(["ps", "axww"], capture_output=True, text=True, check=True).stdout


KILLED = """
import os, signal
from tests.sandbox.netns import NetNs
print(NetNs("killed").name, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_run_left_is_swept_by_the_next(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True, check=False)
    name = killed.stdout.strip()
    assert name.startswith("kiam-")
    subprocess.run([sys.executable, "-c", "from tests.sandbox.netns import sweep; sweep()"], check=True)
    assert not (NETNS_DIRECTORY / name).exists()


@pytest.mark.parametrize("gone", [FileNotFoundError, ProcessLookupError])
def test_a_child_that_ends_while_its_parent_is_measured_counts_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: type[OSError]
) -> None:
    read_text = Path.read_text
    with Process(
        [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"], tmp_path / "log"
    ) as it:
        it.wait_for_output("up")

        def read(path: Path) -> str:
            if path.parent.name == "1234567":
                raise gone
            return "1234567" if path.name == "children" else read_text(path)

        monkeypatch.setattr(Path, "read_text", read)
        assert it.cpu_seconds() >= 0
        assert it.rss_bytes() > 1_000_000
