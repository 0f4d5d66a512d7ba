"""One node in a box for each test process, with server and agent running; mended before each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import pytest

from tests.sandbox.node import NodeInABox, Pod, needs_root

AGENT_FLAGS = ("--allow-route-regexp=^/latest/meta-data/placement/.*",)

PodMaker = Callable[..., Pod]


@pytest.fixture(scope="session")
def running_box() -> Iterator[NodeInABox]:
    """The box that the tests of this process share."""
    why = needs_root()
    if why is not None:
        pytest.skip(why)
    with NodeInABox("iptables") as box:
        box.add_namespace("default")
        box.add_namespace("open")
        box.start_server()
        box.start_agent(*AGENT_FLAGS)
        yield box


@pytest.fixture
def box(running_box: NodeInABox) -> Iterator[NodeInABox]:
    """The shared box, everything in it well and running with its usual flags."""
    mend(running_box)
    yield running_box
    running_box.aws.faults()
    running_box.api.faults(fail=0, delay=0, garbage=0, gone_as_event=True)


def mend(box: NodeInABox) -> None:
    """Start again what a test stopped or started with other flags."""
    box.aws.faults()
    if box.server is None or box.server.returncode is not None or box.server_flags:
        box.start_server()
    if box.agent is None or box.agent.returncode is not None or box.agent_flags != AGENT_FLAGS:
        box.start_agent(*AGENT_FLAGS)


@pytest.fixture
def make_pod(box: NodeInABox, request: pytest.FixtureRequest) -> Iterator[PodMaker]:
    """Makes pods whose names no other test uses; they are gone after the test."""
    made: list[Pod] = []

    def make(
        role: str | None = None,
        namespace: str = "open",
        annotations: Mapping[str, str] | None = None,
        known: bool = True,
    ) -> Pod:
        pod = box.add_pod(f"{next(_numbers)}-pod", role, namespace, annotations, known)
        made.append(pod)
        return pod

    yield make
    for pod in made:
        if pod.name in box.pods:
            box.remove_pod(pod)


_numbers = iter(range(1, 1_000_000))
