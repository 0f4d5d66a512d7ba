"""Agent, server, Kubernetes API and STS come up in any order; nobody exits, and pods are served once all are there."""

from __future__ import annotations

import itertools

import pytest

from tests.sandbox.node import NodeInABox, Pod
from tests.sandbox.process import Process, wait_until

PARTS = ("agent", "server", "api", "sts")
ORDERS = [*itertools.permutations(PARTS), ()]
"""All 24 orders, and as the 25th everything at once."""


def bring_up(box: NodeInABox, part: str) -> None:
    """Start one part and don't wait for it."""
    if part == "agent":
        box.start_agent(wait=False)
    elif part == "server":
        box.start_server(wait=False)
    elif part == "api":
        box.api.open_port()
    else:
        box.aws.faults()


def all_alive(box: NodeInABox) -> bool:
    """Whether what was started still runs."""
    return all(process is None or process.returncode is None for process in (box.agent, box.server))


def started_and_settled(process: Process | None) -> bool:
    """Whether the process got as far as logging something; a crash at start would be seen after that."""
    return process is None or bool(process.output())


@pytest.fixture(scope="module")
def patient(running_box: NodeInABox) -> Pod:
    """A pod that is there all the time."""
    return running_box.add_pod("patient", "patient", "open")


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: "-".join(order) or "together")
def test_any_order_will_do(running_box: NodeInABox, patient: Pod, order: tuple[str, ...]) -> None:
    box = running_box
    box.stop_kiam()
    box.api.close_port()
    box.aws.faults(sts="unavailable")
    for part in order or PARTS:
        bring_up(box, part)
        if order:
            wait_until(lambda: all(map(started_and_settled, (box.agent, box.server))), "the start")
            assert all_alive(box)
    wait_until(lambda: _credentials(patient), "credentials", timeout=40)
    assert all_alive(box)


def _credentials(pod: Pod) -> bool:
    return pod.credentials("patient").status == 200
