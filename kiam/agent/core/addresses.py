"""The life of a pod's address: a state machine without I/O and without a clock.

An address is believed to be a pod's for as long as the server's word is newer than anything the kernel has said since::

    (unknown) --assign--> assigned --route found--> bound --contradicted--> suspect --confirm--> assigned
                              \\------route of a younger interface found-----/

- *assigned*: the server says that a pod has the address, as of some moment (``word_at``).
- *bound*: the kernel's route to it is known too; it can be believed while the server is away.
- *suspect* (``changed_at`` is set): the kernel's route changed, or turned out to be an interface that is younger than
  the server's word. Whoever is there now, the server's word as of a later moment is needed.

All moments are seconds of one monotonic clock of the caller's. What the kernel has to be asked is put out as *look-ups*
(``next_look_up``, answered with ``route_is``) and *resolutions* (``take_resolutions``). ``docs/outage.md`` has the
argument.
"""

from __future__ import annotations

from collections.abc import Iterable

from kiam.agent.core.address import CONFIRM_AFTER, Address, is_newer
from kiam.agent.core.routes import (
    ALWAYS,
    Change,
    NeighbourChange,
    Neighbourhood,
    PodRoute,
    PortChange,
    Route,
    concerns,
)


class Addresses:
    """Every address that the server says a pod of this node has."""

    def __init__(self, confirm_after: float = CONFIRM_AFTER) -> None:
        self.confirm_after = confirm_after
        self._dropped = 0
        self._near = Neighbourhood()
        self._known: dict[str, Address] = {}
        self._unbound: set[str] = set()
        # Link-layer addresses that routes go by. Those of pods that are gone stay in until everything is read anew.
        self._lladdrs: set[str] = set()
        self._look_ups: dict[str, None] = {}
        self._fresh: set[str] = set()
        self._resolutions: list[tuple[int, str]] = []

    # ---- what may be believed

    def is_bound(self, address: str) -> bool:
        """Whether the route to it is known and unchanged, as far as the kernel has been heard."""
        known = self._known.get(address)
        return known is not None and known.route is not None

    def bound_link(self, address: str) -> int | None:
        """The index of the pod's own interface that the address is bound to."""
        known = self._known.get(address)
        return None if known is None or known.route is None else known.route.pod_link

    def link_behind(self, address: str, route: Route | None) -> int | None:
        """The index of the one pod's interface that a route leads to; None: it doesn't, or that isn't known."""
        found = self._near.pod_route(address, route)
        return None if found is None else found.pod_link

    def has_link(self, index: int) -> bool:
        """Whether an interface is there, as far as the kernel has been heard."""
        return index in self._near.links

    def is_suspect(self, address: str) -> bool:
        """Whether the server's word about it is older than what the kernel has said."""
        known = self._known.get(address)
        return known is not None and known.changed_at is not None and known.is_claimed

    def vouches(self, address: str, route: Route | None, asked_at: float, age: float | None) -> bool:
        """Whether an answer about one address can be believed: asked for then, by what the server knew ``age`` before.

        Which attack: the address changed hands, and a server that hasn't heard of it names the pod that had it. So the
        answer must be newer than the last change known, and than the interface that the address is behind now. An older
        server doesn't say how old its knowledge is (None), and is believed about addresses that nothing is known of.
        """
        known = self._known.get(address)
        word_at = asked_at - (age or 0.0)
        if (
            known is not None
            and known.changed_at is not None
            and not is_newer(word_at, known.changed_at, self.confirm_after)
        ):
            return False
        found = None if age is None else self._near.pod_route(address, route)
        return found is None or is_newer(word_at, self._born(found), self.confirm_after)

    def ask_at(self, last_asked: float) -> float | None:
        """When the server is to be asked about suspect addresses; None: there are none."""
        changes = [
            known.changed_at for known in self._known.values() if known.changed_at is not None and known.is_claimed
        ]
        return max(min(changes), last_asked) + self.confirm_after if changes else None

    # ---- the server's word

    def assign(self, address: str, uid: str, word_at: float) -> None:
        """The server says: this pod has this address. More news of the same pod may be old and confirms nothing."""
        known = self._known.get(address)
        if known is not None and known.uid == uid:
            if known.is_claimed:
                return
            known.is_claimed = True
        else:
            self._known[address] = Address(uid, word_at)
        self._unbound.add(address)
        self._fresh.add(address)
        self._look_ups[address] = None

    def release(self, address: str, now: float) -> None:
        """No pod has this address any more."""
        known = self._known.get(address)
        if known is not None and known.is_remembered(now):
            # Which attack: the next server that is asked may be one that hasn't heard of the pod's end.
            self._forget(address)
            known.is_claimed = False
            self._known[address] = known
        else:
            self._forget(address)
        for other in [other for other, it in self._known.items() if it.is_stale(now)]:
            self._forget(other)

    def confirm(self, asked_at: float, age: float) -> None:
        """The server has said all it knows: asked for then, by what it knew ``age`` seconds before.

        Which attacks: the server was asked because of another address, before this one's route changed; or it is cut
        off from the Kubernetes API. Either way it can't have heard of the address's new owner.
        """
        word_at = asked_at - age
        for address, known in list(self._known.items()):
            if known.changed_at is None:
                known.word_at = max(known.word_at, word_at)
            elif is_newer(word_at, known.changed_at, self.confirm_after):
                known.changed_at, known.word_at = None, word_at
                if not known.is_claimed:
                    self._forget(address)
                    continue
            if known.changed_at is None and known.route is None:
                self._look_ups[address] = None

    # ---- the kernel's word

    def kernel_is(self, everything: Iterable[Change], now: float, *, is_first: bool) -> None:
        """All links, neighbours and bridge ports there are: at the start, and when notifications were lost.

        What is there now is as good as how it came to be: interface numbers aren't used twice, so no route can have
        changed hands and be the same again.
        """
        self._near.replace(everything, ALWAYS if is_first else now)
        self._lladdrs = {known.route.lladdr for known in self._known.values() if known.route and known.route.lladdr}
        self._look_ups.update(dict.fromkeys(self._known))

    def kernel_changed(self, change: Change, now: float) -> None:
        """One change. Each address it may concern is looked up."""
        self._near.note(change, now)
        if isinstance(change, NeighbourChange):
            if change.address in self._known:
                self._look_ups[change.address] = None
            return
        # A pod that may send raw packets makes up as many link-layer addresses as it likes: they cost one look here.
        if not isinstance(change, PortChange) or change.lladdr in self._lladdrs:
            for address, known in self._known.items():
                if known.route is not None and concerns(change, address, known.route):
                    self._look_ups[address] = None
        for address in self._unbound:
            if self._near.may_complete(change, address):
                self._look_ups[address] = None

    def next_look_up(self) -> str | None:
        """An address whose route is to be looked up now; None: nothing is left to do."""
        return next(iter(self._look_ups), None)

    def route_is(self, address: str, route: Route | None, now: float, *, is_informed: bool) -> None:
        """The routing table's entry for an address that was to be looked up.

        ``is_informed``: the server is there. Without it nothing is bound that wasn't before.
        """
        self._look_ups.pop(address, None)
        known = self._known.get(address)
        if known is None:
            return
        if known.route is not None:
            if self._near.still_holds(address, known.route, route):
                return
            self._suspect(address, known, now)
        self._find(address, known, route, is_informed)

    def take_resolutions(self) -> list[tuple[int, str]]:
        """(link, address)es whose link-layer address the kernel should find out."""
        taken, self._resolutions = self._resolutions, []
        return taken

    def take_dropped(self) -> int:
        """How many addresses have become suspect since this was last asked."""
        dropped, self._dropped = self._dropped, 0
        return dropped

    # ---- transitions

    def _find(self, address: str, known: Address, route: Route | None, is_informed: bool) -> None:
        found = self._near.pod_route(address, route)
        fresh = address in self._fresh
        self._fresh.discard(address)
        if found is None:
            link = self._near.links.get(route.link) if route is not None else None
            if fresh and link is not None and link.kind == "bridge":
                self._resolutions.append((link.index, address))
            return
        if known.changed_at is not None:
            if found == known.lost and not found.port:
                # The very interface it had: a route daemon took the route out and put it back. On a bridge that can't
                # be told from a pod that forges the address and lets go of it.
                known.changed_at = None
                self._bind(address, known, found)
            return
        born = self._born(found)
        if born > known.word_at:
            # Which attack: a pod's interface is gone, the server still names the pod (its volumes are being unmounted),
            # and the address has an interface again: another pod's, of which the server may not have known yet.
            self._suspect(address, known, born)
        elif is_informed:
            self._bind(address, known, found)

    def _bind(self, address: str, known: Address, found: PodRoute) -> None:
        known.route = found
        self._unbound.discard(address)
        if found.lladdr:
            self._lladdrs.add(found.lladdr)

    def _suspect(self, address: str, known: Address, changed_at: float) -> None:
        known.doubt(changed_at)
        self._unbound.add(address)
        self._dropped += 1

    def _forget(self, address: str) -> None:
        self._known.pop(address, None)
        self._unbound.discard(address)
        self._look_ups.pop(address, None)
        self._fresh.discard(address)

    def _born(self, route: PodRoute) -> float:
        return self._near.since.get(route.pod_link, ALWAYS)
