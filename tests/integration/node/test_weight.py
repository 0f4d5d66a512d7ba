"""What an agent holds in memory for good: nothing that a short-lived process can hold in its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from kiam.dataplane.registry import DATAPLANES
from tests.sandbox.node import CREDENTIALS, NodeInABox
from tests.sandbox.pki import make_pki
from tests.sandbox.process import wait_until

SELDOM_NEEDED = {
    *("OpenSSL", "bcc", "boto3", "cryptography", "http.server", "kubernetes", "libnftables", "multiprocessing"),
    *("pyroute2", "rich", "sqlite3", "tenacity", "unittest", "urllib.request", "wsgiref.simple_server", "yaml"),
}
_AT_EXIT = """
import atexit, os, sys

def write():
    with open(os.environ["MODULES_FOLDER"] + f"/{os.getpid()}", "w") as file:
        file.write("\\n".join(sys.modules))

atexit.register(write)
"""


@pytest.fixture
def modules_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every Python program that is started writes there, at its end, which modules it has."""
    for name, content in (("code", _AT_EXIT), ("modules", None)):
        (tmp_path / name).mkdir()
        if content:
            (tmp_path / name / "sitecustomize.py").write_text(content)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "code"))
    monkeypatch.setenv("MODULES_FOLDER", str(tmp_path / "modules"))
    return tmp_path / "modules"


def held_by_the_agent(box: NodeInABox, folder: Path) -> set[str]:
    """Which of the seldom needed modules the agent has when it ends."""
    assert box.agent is not None
    assert box.agent.stop() == 0
    modules = set((folder / str(box.agent.pid)).read_text().splitlines())
    assert {"asyncio", "grpc", "kiam.agent.run"} <= modules
    return modules & SELDOM_NEEDED


@pytest.mark.parametrize("dataplane", DATAPLANES)
def test_an_agent_that_installed_and_answered_holds_no_library_that_it_needs_seldom(
    dataplane: str, modules_folder: Path
) -> None:
    with NodeInABox(dataplane) as box:
        box.add_namespace("open")
        box.start_server()
        # The first on this node: it makes what isn't there yet, and looks at what others have left.
        agent = box.start_agent("--host-network=redirect", "--node-name=node-1", "--pod-uid=check")
        pod = box.add_pod("app", "app", "open")
        assert pod.credentials("app").status == 200
        # What it refuses takes the long way.
        assert pod.ask(f"{CREDENTIALS}other").status == 403
        agent.wait_for_output("dataplane installed")
        wait_until(lambda: len(list(modules_folder.iterdir())) > 1, "the look for other dataplanes")
        assert held_by_the_agent(box, modules_folder) == set()


def test_an_agent_that_was_refused_by_tls_holds_no_library_for_certificates(
    modules_folder: Path, tmp_path: Path
) -> None:
    with NodeInABox("none") as box:
        box.start_server()
        foreign = make_pki(tmp_path / "foreign").agent
        files = ("--cert", str(foreign.cert), "--key", str(foreign.key), "--ca", str(foreign.ca))
        agent = box.start_agent(*files, wait=False)
        agent.wait_for_output("no connection to the server at .*: .*is not signed by an authority in --ca")
        assert held_by_the_agent(box, modules_folder) == set()
