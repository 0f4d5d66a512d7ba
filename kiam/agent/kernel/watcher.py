"""Brings the core the kernel's news of routes, and answers what the core wants to know of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Self

from kiam.agent.core.node import NodeCore
from kiam.agent.core.routes import LinkChange, Route
from kiam.agent.kernel.changes import Changes, ChangesLostError
from kiam.agent.kernel.rtnetlink import Questions
from kiam.clocks import Clock
from kiam.errors import UserError

log = logging.getLogger(__name__)


class KernelWatcher:
    """Drives a :class:`NodeCore` with rtnetlink."""

    def __init__(self, core: NodeCore, clock: Clock) -> None:
        self._core = core
        self._clock = clock
        self._heard: Callable[[], None] = lambda: None
        self.link_gone: Callable[[], None] = lambda: None
        """Called when an interface has gone."""

    def start(self, heard: Callable[[], None]) -> Self:
        """Open the sockets, listen first and read all there is then, so that nothing falls in between.

        ``heard`` is called when the core has been told something. Raises UserError where there is no rtnetlink.
        """
        self._heard = heard
        try:
            self._changes = Changes()
            self._questions = Questions()
            self._read_everything(is_first=True)
        except OSError as error:
            raise UserError(
                f"the kernel's routes can't be watched: rtnetlink: {error.strerror}", "allow it AF_NETLINK sockets"
            ) from error
        asyncio.get_running_loop().add_reader(self._changes.fileno(), self.catch_up)
        return self

    def close(self) -> None:
        """Stop watching."""
        asyncio.get_running_loop().remove_reader(self._changes.fileno())
        self._changes.close()
        self._questions.close()

    def catch_up(self) -> None:
        """Read what the kernel has told, and let the core doubt what it contradicts.

        The kernel tells of a new route before it delivers the first packet that came by it, so calling this before an
        answer leaves no moment in which a new pod's request could meet an old pod's route.
        """
        if not self._changes.has_news():
            return
        changed = is_gone = False
        try:
            for change in self._changes.read():
                self._core.addresses.kernel_changed(change, self._clock.elapsed())
                changed = True
                is_gone = is_gone or (isinstance(change, LinkChange) and change.gone)
        except ChangesLostError:
            log.warning("kernel notifications were lost: the routes to all pods are looked at anew")
            self._read_everything(is_first=False)
            changed = is_gone = True
        if is_gone:
            self.link_gone()
        if changed:
            self.settle()
            self._heard()

    def settle(self) -> None:
        """Look up the routes that the core wants to know, and have the kernel resolve what it wants resolved."""
        addresses = self._core.addresses
        while (address := addresses.next_look_up()) is not None:
            addresses.route_is(
                address, self.route_to(address), self._clock.elapsed(), is_informed=self._core.is_informed
            )
        for link, address in addresses.take_resolutions():
            self._questions.resolve(link, address)

    def route_to(self, address: str) -> Route | None:
        """The routing table's entry for an address; None: unreachable."""
        return self._questions.route_to(address)

    def _read_everything(self, *, is_first: bool) -> None:
        self._core.addresses.kernel_is(self._questions.everything(), self._clock.elapsed(), is_first=is_first)
