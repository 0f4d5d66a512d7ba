"""Watching the kernel's way to each pod, so that memory never answers for an address that has changed hands."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Self

from kiam.agent.kernel.routes import Neighbourhood, Way, covers
from kiam.agent.kernel.rtnetlink import (
    Change,
    Changes,
    ChangesLostError,
    LinkChange,
    NeighbourChange,
    PortChange,
    Questions,
    RouteChange,
)
from kiam.errors import UserError

log = logging.getLogger(__name__)


class KernelWatcher:
    """Which addresses are bound to which way, and whom to tell when a way changes.

    An address is *wanted* from the moment the server says a pod has it, *bound* once the kernel's way to it is known,
    and *broken* when that way has changed; then only the server's word makes it wanted again.
    """

    def __init__(self, broken: Callable[[str], None], now_bound: Callable[[str], bool] = lambda _: True) -> None:
        """``broken`` is called with an address whose way has changed.

        ``now_bound`` is asked whether a wanted address whose way has just become known may be bound.
        """
        self._broken = broken
        self._may_bind = now_bound
        self._neighbourhood = Neighbourhood()
        self._bound: dict[str, Way] = {}
        self._wanted: set[str] = set()
        # Link-layer addresses that ways go by. Those of pods that are gone stay in until everything is read anew.
        self._lladdrs: set[str] = set()

    def start(self) -> Self:
        """Open the sockets, listen first and read all there is then, so that nothing falls in between.

        Raises UserError where there is no rtnetlink.
        """
        try:
            self._changes = Changes()
            self._questions = Questions()
            self._read_everything()
        except OSError as error:
            raise UserError(
                f"the kernel's routes can't be watched: rtnetlink: {error.strerror}; allow it AF_NETLINK sockets"
            ) from error
        asyncio.get_running_loop().add_reader(self._changes.fileno(), self.catch_up)
        return self

    def close(self) -> None:
        """Stop watching."""
        asyncio.get_running_loop().remove_reader(self._changes.fileno())
        self._changes.close()
        self._questions.close()

    def want(self, address: str) -> None:
        """The server says: a pod has this address. Bind it to its way, now or as soon as that is known."""
        self.catch_up()
        self._bound.pop(address, None)
        self._wanted.add(address)
        if not self._bind(address):
            self._look_for(address)

    def forget(self, address: str) -> None:
        """No pod has this address any more."""
        self._bound.pop(address, None)
        self._wanted.discard(address)

    def is_bound(self, address: str) -> bool:
        """Whether the address is bound and nothing contradicted that when :meth:`catch_up` was last called."""
        return address in self._bound

    def catch_up(self) -> None:
        """Read what the kernel has told, and break what it contradicts.

        The kernel tells of a new way before it delivers the first packet that came by it, so calling this before an
        answer leaves no moment in which a new pod's request could meet an old pod's binding.
        """
        try:
            for change in self._changes.read():
                self._take(change)
        except ChangesLostError:
            # What is there now is as good as how it came to be: interface numbers aren't used twice, so no way can
            # have changed hands and be the same again.
            log.warning("kernel notifications were lost: the ways to all pods are looked at anew")
            self._read_everything()
            self._check(list(self._bound))

    def _read_everything(self) -> None:
        self._neighbourhood = Neighbourhood()
        self._lladdrs = {way.lladdr for way in self._bound.values() if way.lladdr}
        for change in self._questions.everything():
            self._note(change)

    def _take(self, change: Change) -> None:
        self._note(change)
        if isinstance(change, NeighbourChange):
            self._check([change.address] if change.address in self._bound else [])
        elif not isinstance(change, PortChange) or change.lladdr in self._lladdrs:
            self._check([address for address, way in self._bound.items() if _concerns(change, address, way)])
        if len(self._wanted) > len(self._bound):
            for address in self._wanted - self._bound.keys():
                if self._may_complete(change, address):
                    self._bind(address, self._may_bind)

    def _check(self, addresses: Iterable[str]) -> None:
        for address in addresses:
            way = self._bound[address]
            if not self._neighbourhood.still_holds(address, way, self._questions.route_to(address)):
                self._break(address)

    def _may_complete(self, change: Change, address: str) -> bool:
        """Whether a change may be what was missing to bind an address."""
        if isinstance(change, NeighbourChange):
            return change.address == address
        if isinstance(change, PortChange):
            return self._neighbourhood.neighbours.get((change.bridge, address)) == change.lladdr
        if isinstance(change, RouteChange):
            return covers(change.network, address)
        return True

    def _note(self, change: Change) -> None:
        near = self._neighbourhood
        if isinstance(change, LinkChange):
            if change.gone:
                near.links.pop(change.link.index, None)
                for table in (near.neighbours, near.ports):
                    for key in [key for key in table if key[0] == change.link.index]:
                        del table[key]
            else:
                near.links[change.link.index] = change.link
        elif isinstance(change, NeighbourChange):
            _put(near.neighbours, (change.link, change.address), change.lladdr)
        elif isinstance(change, PortChange):
            _put(near.ports, (change.bridge, change.lladdr), change.port)

    def _bind(self, address: str, may_bind: Callable[[str], bool] = lambda _: True) -> bool:
        way = self._neighbourhood.way_to(address, self._questions.route_to(address))
        if way is None or not may_bind(address):
            return False
        self._bound[address] = way
        if way.lladdr:
            self._lladdrs.add(way.lladdr)
        return True

    def _look_for(self, address: str) -> None:
        """Bridges: have the kernel resolve the address, which tells the pod's link-layer address and port."""
        route = self._questions.route_to(address)
        link = self._neighbourhood.links.get(route.link) if route is not None else None
        if link is not None and link.kind == "bridge":
            self._questions.resolve(link.index, address)

    def _break(self, address: str) -> None:
        self._bound.pop(address, None)
        self._wanted.discard(address)
        self._broken(address)


def _put(
    table: dict[tuple[int, str], str] | dict[tuple[int, str], int], key: tuple[int, str], value: str | int
) -> None:
    if value:
        table[key] = value  # type: ignore[assignment]  # both tables are written with their own kind of value
    else:
        table.pop(key, None)


def _concerns(change: LinkChange | PortChange | RouteChange, address: str, way: Way) -> bool:
    """Whether a change may have to do with the way to an address."""
    if isinstance(change, LinkChange):
        return change.link.index in (way.link, way.port)
    if isinstance(change, PortChange):
        return bool(way.port) and change.lladdr == way.lladdr and change.bridge == way.link
    return covers(change.network, address)
