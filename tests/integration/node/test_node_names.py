"""An agent whose idea of its node isn't the server's answers its pods all the same, and says so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.node.conftest import PodMaker
from tests.sandbox.node import NodeInABox
from tests.sandbox.process import wait_until

OTHER_ADDRESS = "198.51.100.10"
"""Another address of the node's own, which no pod has as status.hostIP."""


@pytest.fixture(params=["host", "name"])
def agent_flag(box: NodeInABox, request: pytest.FixtureRequest) -> Iterator[str]:
    box.node.ip(f"address add {OTHER_ADDRESS}/32 dev lo")
    yield {"host": f"--host={OTHER_ADDRESS}", "name": "--node-name=ip-192-0-2-10.local"}[request.param]
    box.node.ip(f"address del {OTHER_ADDRESS}/32 dev lo")


def test_pods_are_answered_and_the_wrong_node_is_named(box: NodeInABox, make_pod: PodMaker, agent_flag: str) -> None:
    make_pod("seen-by-the-server")
    agent = box.start_agent(agent_flag)
    named = agent_flag.partition("=")[2]
    assert wait_until(lambda: "the server knows no pod of this node" in agent.output(), "the warning")
    (line,) = (line for line in agent.output().splitlines() if "knows no pod of this node" in line)
    assert "WARN" in line.upper()
    assert named in line
    assert "kiam_agent_node_known 0.0" in box.metrics("agent")
    pod = make_pod("app")
    assert pod.role().text == "app"
    assert pod.credentials("app").status == 200
    assert pod.credentials("other").status == 403
    checked = box.kiam(
        *("config", "check", "agent", "--server-address", "localhost:9610", agent_flag),
        *(() if "--host=" in agent_flag else ("--host", "192.0.2.10")),
        *("--cert", str(box.pki.agent.cert), "--key", str(box.pki.agent.key), "--ca", str(box.pki.agent.ca)),
    )
    assert "the server knows no pod of" in checked.stdout, checked
    assert named in checked.stdout
