"""How the agent looks after its redirection while it runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from ipaddress import IPv4Address

import pytest

from kiam.agent import redirection
from kiam.agent.redirection import Redirection
from kiam.agent.settings import DataplaneSettings
from kiam.dataplane.contract import Condition, Counters, HostNetwork, Inspection, WantedState
from kiam.dataplane.handover import Others
from kiam.errors import UserError
from kiam.netfilter.interfaces import InterfacePattern
from tests.sandbox.process import wait_until

CALI = InterfacePattern.parse("cali+")
WANTED = WantedState(IPv4Address("10.0.0.1"), 8181, CALI)


class Kernel:
    """A dataplane whose kernel is one attribute."""

    name = "iptables"

    def __init__(self) -> None:
        self.state: WantedState | None = None
        self.installs = 0
        self.looked = 0
        self.handed_over: list[str] = []
        self.broken = False
        self.damage = ""
        self.read_back: WantedState | None = None
        """What the damaged state reads as."""

    def install(self, wanted: WantedState) -> None:
        self.installs += 1
        self.state = wanted
        self.damage = ""

    def remove(self) -> None:
        self.state = None

    def inspect(self, wanted: WantedState | None = None) -> Inspection:
        self.looked += 1
        if self.broken:
            raise UserError("iptables isn't installed")
        if self.state is None:
            return Inspection(Condition.ABSENT)
        if self.damage:
            return Inspection(Condition.DIFFERENT, problems=(self.damage,), installed=self.read_back)
        if wanted not in (None, self.state):
            return Inspection(Condition.DIFFERENT, problems=("another port",), installed=self.state)
        return Inspection(Condition.INSTALLED, installed=self.state)

    def counters(self) -> Counters:
        return Counters()


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()

    def take_others_out(name: str) -> Others:
        made.handed_over.append(name)
        return Others(("nftables",), {"ebpf": "no rights"})

    monkeypatch.setattr(redirection, "load_dataplane", lambda name: made)
    monkeypatch.setattr(redirection, "take_others_out", take_others_out)
    return made


def redirection_of(remove_at_exit: bool = False, keep_others: bool = False) -> Redirection:
    settings = DataplaneSettings("iptables", CALI, HostNetwork.IGNORE, remove_at_exit, keep_others=keep_others)
    return Redirection(settings, WANTED)


@asynccontextmanager
async def kept(one: Redirection, kernel: Kernel) -> AsyncIterator[None]:
    await one.install()
    task = asyncio.create_task(one.keep(every=0.001))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def looked_again(kernel: Kernel) -> None:
    goal = kernel.looked + 2
    await asyncio.to_thread(wait_until, lambda: kernel.looked >= goal, "another look")


async def test_what_another_program_took_out_is_put_back(kernel: Kernel, caplog: pytest.LogCaptureFixture) -> None:
    async with kept(redirection_of(), kernel):
        kernel.state = None
        await looked_again(kernel)
        assert kernel.state == WANTED
    assert "another program had taken the redirection out; it is in again" in caplog.messages


async def test_a_newer_agents_redirection_is_left_and_told_once(
    kernel: Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    newer = WantedState(IPv4Address("10.0.0.1"), 9999, CALI)
    async with kept(redirection_of(), kernel):
        kernel.state = newer
        await looked_again(kernel)
        await looked_again(kernel)
        assert kernel.state == newer
    assert caplog.messages.count("the redirection differs from what was installed: another port") == 1


async def test_what_can_not_be_looked_at_is_logged_and_tried_again(
    kernel: Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    async with kept(redirection_of(), kernel):
        kernel.broken = True
        await looked_again(kernel)
        kernel.broken, kernel.state = False, None
        await looked_again(kernel)
        assert kernel.state == WANTED
    assert "the redirection can't be checked: iptables isn't installed" in caplog.messages


async def test_after_leaving_it_stays_out(kernel: Kernel) -> None:
    one = redirection_of(remove_at_exit=True)
    async with kept(one, kernel):
        await looked_again(kernel)
        await one.leave(taken_over=False)
        installs = kernel.installs
        await looked_again(kernel)
        assert kernel.state is None
        assert kernel.installs == installs


@pytest.mark.parametrize("read_back", [None, WANTED])
async def test_what_another_program_damaged_is_put_right(
    kernel: Kernel, caplog: pytest.LogCaptureFixture, read_back: WantedState | None
) -> None:
    # As a conventional agent does that stops, and takes the rule with it that ours has adopted.
    async with kept(redirection_of(), kernel):
        kernel.read_back, kernel.damage = read_back, "missing in nat: the redirect"
        await looked_again(kernel)
        await asyncio.to_thread(wait_until, lambda: not kernel.damage, "the repair")
    assert "the redirection was damaged, and is whole again: missing in nat: the redirect" in caplog.messages


async def test_other_dataplanes_are_taken_out_once_ours_is_in(kernel: Kernel, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with kept(redirection_of(), kernel):
        await looked_again(kernel)
        await looked_again(kernel)
    assert kernel.handed_over == ["iptables"]
    assert "nftables dataplane taken out: iptables is in its place" in caplog.messages
    assert "the ebpf dataplane is installed too, and can't be taken out: no rights" in caplog.messages


async def test_other_dataplanes_stay_while_ours_is_not_as_wanted(kernel: Kernel) -> None:
    newer = WantedState(IPv4Address("10.0.0.1"), 9999, CALI)
    one = redirection_of()
    kernel.state = newer
    task = asyncio.create_task(one.keep(every=0.001))
    await looked_again(kernel)
    task.cancel()
    assert kernel.handed_over == []


async def test_other_dataplanes_are_kept_where_that_is_wished(kernel: Kernel) -> None:
    async with kept(redirection_of(keep_others=True), kernel):
        await looked_again(kernel)
    assert kernel.handed_over == []
