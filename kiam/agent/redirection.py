"""The agent's side of the dataplane: installing it, taking it out if wished, and showing its counters."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from kiam.agent.settings import DataplaneSettings
from kiam.dataplane.contract import Condition, Dataplane, WantedState
from kiam.dataplane.registry import load_dataplane
from kiam.errors import UserError

log = logging.getLogger(__name__)

KEEP_SECONDS = 30.0
"""How often to look whether the redirection is still there."""


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


class Redirection:
    """One dataplane with its wanted state. Its calls block, so they run in threads."""

    def __init__(self, settings: DataplaneSettings, wanted: WantedState) -> None:
        """Load the dataplane's module; only this one's libraries come with it."""
        self._settings = settings
        self._wanted = wanted
        self.dataplane: Dataplane = load_dataplane(settings.name)
        self._left = False
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
        """Put the redirection back when another program has taken it out (``nft flush ruleset``). Doesn't return.

        Stops pods from getting the node's credentials until somebody notices. Where there is a redirection, but another
        one, it stays: it may be that of a newer agent with other flags, which takes over this node just now.
        """
        told: object = None
        while True:
            await asyncio.sleep(every)
            try:
                problems = await asyncio.to_thread(self._put_back)
            except (UserError, OSError) as error:
                log.error("the redirection can't be checked: %s", error)
                continue
            if problems and problems != told:
                log.warning("the redirection differs from what was installed: %s", "; ".join(problems))
            told = problems

    def _put_back(self) -> tuple[str, ...]:
        with self._changing:
            if self._left:
                return ()
            inspection = self.dataplane.inspect(self._wanted)
            if inspection.condition is Condition.ABSENT:
                self.dataplane.install(self._wanted)
                log.warning("another program had taken the redirection out; it is in again")
            return tuple(inspection.problems)

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
