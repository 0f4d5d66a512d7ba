"""``kiam collect`` against a Kubernetes API over HTTP: what a DaemonSet's pods said, node by node."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.sandbox.kubeapi import write_kubeconfig

NAMESPACE = "/namespaces/kube-system"
DAEMONSET = f"/apis/apps/v1{NAMESPACE}/daemonsets/kiam-test"
PODS = f"/api/v1{NAMESPACE}/pods"


def pod(node: str, state: dict[str, Any]) -> dict[str, Any]:
    return {
        "metadata": {"name": f"kiam-test-{node}"},
        "spec": {"nodeName": node},
        "status": {"phase": "Pending", "initContainerStatuses": [{"name": "test", "state": state}]},
    }


def ended(code: int) -> dict[str, Any]:
    return {"terminated": {"exitCode": 0, "message": f"{code}\n", "reason": "Completed"}}


class Api:
    """A DaemonSet, the states its pods go through at each look, and their logs."""

    def __init__(self, wanted: int, looks: list[list[dict[str, Any]]]) -> None:
        self.wanted = wanted
        self.looks = looks
        self.deleted: list[str] = []
        self.asked: list[str] = []
        self.url = ""

    def answer(self, method: str, path: str, query: dict[str, list[str]]) -> tuple[int, bytes]:
        if method == "DELETE":
            self.deleted.append(path)
            return 200, b"{}"
        if path == DAEMONSET:
            status = {"desiredNumberScheduled": self.wanted, "observedGeneration": 1}
            return 200, json.dumps({"metadata": {"name": "kiam-test", "generation": 1}, "status": status}).encode()
        if path == PODS:
            self.asked += query["labelSelector"]
            items = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
            return 200, json.dumps({"items": items}).encode()
        if path.startswith(PODS) and path.endswith("/log"):
            assert query == {"container": ["test"]}
            return 200, f"the table of {path.split('/')[-2].removeprefix('kiam-test-')}\n".encode()
        return 404, b"{}"


@contextmanager
def served(api: Api) -> Iterator[Api]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def _serve(self) -> None:
            url = urlsplit(self.path)
            status, body = api.answer(self.command, url.path, parse_qs(url.query))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_DELETE = _serve

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    api.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def collect(api: Api, folder: Path, timeout: str = "60s") -> subprocess.CompletedProcess[str]:
    kubeconfig = write_kubeconfig(folder / "kubeconfig", api.url)
    flags = ["--daemonset=kiam-test", "--selector=app=kiam,component=test", "--container=test", f"--timeout={timeout}"]
    return subprocess.run(
        [sys.executable, "-m", "kiam", "collect", f"--kubeconfig={kubeconfig}", *flags],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_it_waits_for_every_node_and_prints_what_each_said(tmp_path: Path) -> None:
    running: dict[str, Any] = {"running": {}}
    looks = [[], [pod("b", running)], [pod("b", ended(0)), pod("a", running)], [pod("b", ended(0)), pod("a", ended(0))]]
    with served(Api(2, looks)) as api:
        done = collect(api, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "== node a: ok",
        "the table of a",
        "== node b: ok",
        "the table of b",
        "== 2 of 2 nodes ok",
    ]
    assert set(api.asked) == {"app=kiam,component=test"}
    assert api.deleted == [DAEMONSET]


def test_a_node_that_fails_fails_it_all(tmp_path: Path) -> None:
    with served(Api(2, [[pod("a", ended(1)), pod("b", ended(0))]])) as api:
        done = collect(api, tmp_path)
    assert done.returncode == 1
    assert "== node a: failed (exit 1)\nthe table of a\n" in done.stdout
    assert done.stdout.endswith("== 1 of 2 nodes ok, not a\n")
    assert api.deleted == [DAEMONSET]


def test_a_node_that_never_ends_is_named_with_the_reason(tmp_path: Path) -> None:
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
    with served(Api(2, [[pod("a", ended(0)), pod("b", waiting)]])) as api:
        done = collect(api, tmp_path, timeout="1s")
    assert done.returncode == 1
    assert "== node b: no result\nImagePullBackOff: no such image\n" in done.stdout
    assert api.deleted == [DAEMONSET]


def test_no_node_at_all_is_no_success(tmp_path: Path) -> None:
    with served(Api(0, [[]])) as api:
        done = collect(api, tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        "kiam collect: no node runs it; look at agent.nodeSelector, agent.tolerations and agent.affinity\n"
    )


def test_an_api_that_refuses_is_one_line(tmp_path: Path) -> None:
    with served(Api(1, [[]])) as api:
        api.answer = lambda *_: (403, b'{"message": "forbidden"}')  # type: ignore[method-assign]  # refuses everything
        done = collect(api, tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "HTTP 403: forbidden" in done.stderr
