"""The agent's side of the dataplane: installing it, taking it out if wished, and showing its counters."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from kiam.agent.settings import DataplaneSettings
from kiam.dataplane.contract import Condition, Dataplane, Inspection, WantedState
from kiam.dataplane.handover import Others
from kiam.dataplane.registry import load_dataplane
from kiam.errors import UserError
from kiam.netfilter.interfaces import EVERY_INTERFACE

log = logging.getLogger(__name__)

KEEP_SECONDS = 30.0
"""How often to look whether the redirection is still there."""
SETTLE_SECONDS = 1.0
"""Before a damaged one is put right: an install takes less."""
HANDOVER_SECONDS = 180.0
"""A fraction of a second of work, but a node that starts is busy."""


def wanted_state(settings: DataplaneSettings, host: IPv4Address | IPv6Address, port: int) -> WantedState:
    """Where pods' metadata traffic has to go. Raises UserError for an IPv6 host: pods ask over IPv4."""
    if isinstance(host, IPv6Address):
        raise UserError(f"--host: {host} is an IPv6 address; --dataplane={settings.name} needs the node's IPv4 address")
    return WantedState(
        host,
        port,
        settings.interface,
        settings.host6,
        settings.host_network,
        settings.agent_cgroup,
        settings.iptables_backend,
        settings.forward_from,
    )


def is_damaged(inspection: Inspection, wanted: WantedState) -> bool:
    """Whether what is there is what is left of ours, rather than a whole redirection to somewhere else."""
    if inspection.condition is Condition.INSTALLED:
        return False
    found = inspection.installed
    if inspection.condition is Condition.ABSENT or found is None:
        return True
    return (
        (found.host_address, found.port, found.host_address6)
        == (wanted.host_address, wanted.port, wanted.host_address6)
        and (found.host_network, found.forward_from) == (wanted.host_network, wanted.forward_from)
        # Read back so where a dataplane doesn't go by it.
        and found.interface in (wanted.interface, EVERY_INTERFACE)
    )


def take_others_out(name: str) -> Others:
    """Have a short-lived process take the other dataplanes out: their libraries weigh more than all else here."""
    argv = [sys.executable, "-m", "kiam.dataplane.handover", name]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=HANDOVER_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"looking for other dataplanes took more than {HANDOVER_SECONDS:.0f} s") from error
    if done.returncode:
        raise RuntimeError(f"looking for other dataplanes failed with exit {done.returncode}:\n{done.stderr}")
    return Others.parse(done.stdout)


class Redirection:
    """One dataplane with its wanted state. Its calls block, so they run in threads."""

    def __init__(self, settings: DataplaneSettings, wanted: WantedState) -> None:
        """Load the dataplane's module; only this one's libraries come with it."""
        self._settings = settings
        self._wanted = wanted
        self.dataplane: Dataplane = load_dataplane(settings.name)
        self._left = False
        self._handed_over = False
        self._changing = threading.Lock()
        """Threads go on when the task that waits for them is cancelled, so it takes more than the event loop."""

    async def install(self) -> None:
        """Bring the kernel to the wanted state. Raises UserError."""
        await asyncio.to_thread(self.dataplane.install, self._wanted)
        log.info(
            "%s dataplane installed: pods on %s reach the agent at %s:%d",
            self._settings.name,
            self._wanted.interface,
            self._wanted.host_address,
            self._wanted.port,
        )
        if self._settings.remove_at_exit:
            log.warning(
                "the redirection goes out when the agent stops, and pods then get the node's credentials; "
                "--no-iptables-remove leaves it in place"
            )

    async def keep(self, every: float = KEEP_SECONDS) -> None:
        """Take other dataplanes out, and put ours back when another program has taken it out or damaged it.

        Stops pods from being refused, or from getting the node's credentials, until somebody notices (``nft flush
        ruleset``; a conventional agent that takes the rule we adopted with it). Where there is a redirection to
        somewhere else it stays: it may be that of a newer agent with other flags, which takes over this node just now.
        Doesn't return.
        """
        told: object = None
        while True:
            try:
                problems = await self._look(settle=min(every, SETTLE_SECONDS))
            except (UserError, OSError) as error:
                log.error("the redirection can't be checked: %s", error)
            else:
                if problems and problems != told:
                    log.warning("the redirection differs from what was installed: %s", "; ".join(problems))
                told = problems
            await asyncio.sleep(every)

    async def _look(self, settle: float) -> tuple[str, ...]:
        inspection = await asyncio.to_thread(self.dataplane.inspect, self._wanted)
        if is_damaged(inspection, self._wanted):
            # Another agent may be half-way through its install.
            await asyncio.sleep(settle)
            inspection = await asyncio.to_thread(self._put_back)
        if inspection.condition is Condition.INSTALLED and not self._handed_over:
            self._handed_over = True
            if not self._settings.keep_others:
                await asyncio.to_thread(self._take_others_out)
        return tuple(inspection.problems)

    def _put_back(self) -> Inspection:
        with self._changing:
            inspection = self.dataplane.inspect(self._wanted)
            if self._left or not is_damaged(inspection, self._wanted):
                return inspection
            self.dataplane.install(self._wanted)
            if inspection.condition is Condition.ABSENT:
                log.warning("another program had taken the redirection out; it is in again")
            else:
                log.warning("the redirection was damaged, and is whole again: %s", "; ".join(inspection.problems))
            return self.dataplane.inspect(self._wanted)

    def _take_others_out(self) -> None:
        others = take_others_out(self._settings.name)
        for name in others.removed:
            log.info("%s dataplane taken out: %s is in its place", name, self._settings.name)
        for name, reason in others.stuck.items():
            log.warning("the %s dataplane is installed too, and can't be taken out: %s", name, reason)
        for name, reason in others.unknown.items():
            log.info("whether the %s dataplane is installed too can't be told: %s", name, reason)

    def _take_out(self) -> None:
        with self._changing:
            self._left = True
            self.dataplane.remove()

    async def leave(self, taken_over: bool) -> None:
        """The agent stops. Take the redirection out if that is wished and no other agent relies on it."""
        if not self._settings.remove_at_exit:
            return
        if taken_over:
            log.info("another agent serves this node: the redirection stays")
            return
        try:
            await asyncio.to_thread(self._take_out)
        except UserError as error:
            log.error("the redirection can't be taken out: %s", error)
        else:
            log.info("%s dataplane removed", self._settings.name)


class DataplaneCollector(Collector):
    """Reads the kernel's counters when Prometheus asks, in the thread that serves it."""

    def __init__(self, dataplane: Dataplane) -> None:
        self._dataplane = dataplane

    def describe(self) -> Iterator[CounterMetricFamily]:
        """The metrics' names; said here so that registering them doesn't read the kernel."""
        yield CounterMetricFamily("kiam_dataplane_redirects", "Connections of pods steered to the agent.")
        yield CounterMetricFamily(
            "kiam_dataplane_drops", "Packets or connections of pods refused, by reason.", labels=("reason",)
        )

    def collect(self) -> Iterator[CounterMetricFamily]:
        """The counters as they are now; none while the kernel can't be asked."""
        redirects, drops = self.describe()
        try:
            counters = self._dataplane.counters()
        except UserError as error:
            log.warning("the dataplane's counters can't be read: %s", error)
            return
        redirects.add_metric((), counters.redirects)
        for reason, count in (counters.drops or {}).items():
            drops.add_metric((reason,), count)
        yield redirects
        yield drops
