"""The wall clock is set while kiam runs: known pods are answered all the same, after one call's time.

libfaketime sets it, and leaves the clocks alone that timers and suspensions go by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tests.sandbox.node import CREDENTIALS, NodeInABox, needs_root
from tests.sandbox.process import Process, wait_until

LIBFAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")

SetClock = Callable[[str], None]


class AgentWithAClock(NodeInABox):
    """A node whose agent alone has a wall clock that can be set."""

    def __init__(self, clock: Mapping[str, str]) -> None:
        super().__init__("none")
        self._clock = dict(clock)

    def _start(
        self,
        command: str,
        *flags: str,
        environment: Mapping[str, str] | None = None,
        cpus: set[int] | None = None,
        wrapper: Sequence[str] = (),
    ) -> Process:
        clock = self._clock if command == "agent" else {}
        return super()._start(command, *flags, environment={**(environment or {}), **clock}, cpus=cpus, wrapper=wrapper)


@pytest.fixture
def clock(tmp_path: Path) -> Mapping[str, str]:
    """The environment of a process whose clock can be set."""
    (tmp_path / "wall-clock").write_text("+0")
    return {
        "LD_PRELOAD": str(LIBFAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(tmp_path / "wall-clock"),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


@pytest.fixture
def set_clock(tmp_path: Path) -> SetClock:
    """Set it relative to the real one, such as ``+20m``."""

    def set_clock(offset: str) -> None:
        (tmp_path / "new").write_text(offset)
        (tmp_path / "new").replace(tmp_path / "wall-clock")

    return set_clock


@pytest.fixture(params=["the node's", "everybody's"])
def box(
    request: pytest.FixtureRequest, clock: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[NodeInABox]:
    """``everybody's``: the clock of the server and of AWS is set too, as when a cluster's clocks are put right."""
    why = needs_root()
    if why is not None:
        pytest.skip(why)
    if request.param == "everybody's":
        for name, value in clock.items():
            monkeypatch.setenv(name, value)
    with AgentWithAClock(clock) as box:
        box.add_namespace("default")
        box.start_server()
        box.start_agent()
        yield box


def steps(box: NodeInABox) -> float:
    """How many steps the agent has counted."""
    name = "kiam_agent_clock_steps_total "
    return next(float(line.split()[1]) for line in box.metrics("agent").splitlines() if line.startswith(name))


def test_known_pod_is_answered_after_the_wall_clock_was_set(box: NodeInABox, set_clock: SetClock) -> None:
    pod = box.add_pod("app", "app")

    def status() -> int:
        return pod.ask(CREDENTIALS + "app", host="192.0.2.10", port=8181, timeout=15.0).status

    assert status() == 200
    for number, (offset, direction) in enumerate((("+20m", "forward"), ("+0", "back"), ("+26h", "forward"))):
        set_clock(offset)
        assert status() == 200, offset

        def noticed(number: int = number) -> bool:
            return steps(box) == number + 1

        assert wait_until(noticed, "the step to be counted")
        assert box.agent is not None
        assert f"the wall clock was set {direction}" in box.agent.output()
    assert status() == 200
