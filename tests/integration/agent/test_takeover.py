"""One agent takes over from another on a node with the redirection in place: streams, real packets, no gap."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.sandbox.netns import NODE_IPV4
from tests.sandbox.node import AGENT_PORT, CREDENTIALS, SERVER_PORT, NodeInABox
from tests.sandbox.process import Process, wait_until


@pytest.fixture
def box() -> Iterator[NodeInABox]:
    with NodeInABox(dataplane="none") as box:
        box.add_namespace("default")
        box.start_server()
        yield box


@contextmanager
def agent(box: NodeInABox, name: str) -> Iterator[Process]:
    """An agent with ``--iptables``, which by default takes its rule out when it stops."""
    files = box.pki.agent
    argv = [
        *(sys.executable, "-m", "kiam", "agent", f"--host={NODE_IPV4}", f"--port={AGENT_PORT}", "--iptables"),
        *(f"--host-interface={box.net.interface_pattern}", f"--server-address=localhost:{SERVER_PORT}"),
        *(f"--cert={files.cert}", f"--key={files.key}", f"--ca={files.ca}", "--drain-time=3s"),
        "--prometheus-listen-addr=127.0.0.1:9621",
    ]
    with Process(argv, box.directory / f"{name}.log", netns=box.node.name, cgroup=box.cgroup.system) as process:
        process.wait_for_output("serving pods")
        yield process


def rules(box: NodeInABox) -> list[str]:
    """The node's rules that redirect."""
    saved = box.node.run("iptables-save", "-t", "nat").stdout.splitlines()
    return [line for line in saved if line.startswith("-A PREROUTING") and "DNAT" in line]


def test_no_request_fails_and_the_rule_stays_until_the_last_agent_goes(box: NodeInABox) -> None:
    pod = box.add_pod("busy", "app")
    with agent(box, "old") as old:
        assert pod.credentials("app").status == 200
        own_key = pod.credentials("app").json()["AccessKeyId"]
        url = f"http://169.254.169.254{CREDENTIALS}app"
        # Kept connections and, beside them, a new connection for each request.
        kept = pod.net.netns.popen(["wrk", "-t1", "-c8", "-d60s", url], stdout=-1, text=True)
        fresh = pod.net.netns.popen(
            ["wrk", "-t1", "-c2", "-d60s", "-H", "Connection: close", url], stdout=-1, text=True
        )
        try:
            with agent(box, "new") as new:
                assert len(rules(box)) == 1
                old.send_signal(signal.SIGTERM)
                assert old.wait() == 0
                assert len(rules(box)) == 1
                assert "the redirection stays" in old.output()
                # Asked through the redirect, the new agent gives the same pod the same credentials.
                assert wait_until(lambda: pod.credentials("app").json()["AccessKeyId"], "an answer") == own_key
                for load in (kept, fresh):
                    load.send_signal(signal.SIGINT)
                    output = load.communicate(timeout=60)[0]
                    assert "Non-2xx" not in output, output
                    assert "Socket errors" not in output, output
                    assert int(re.findall(r"(\d+) requests in", output)[0]) > 100
                new.send_signal(signal.SIGTERM)
                assert new.wait() == 0
                assert rules(box) == []
        finally:
            for load in (kept, fresh):
                load.kill()
                load.wait()
