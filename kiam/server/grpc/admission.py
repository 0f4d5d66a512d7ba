"""How many connections may be open, and how many handshakes under way, for whom. No I/O, no clock of its own.

Which attack: anyone who reaches the port can open connections and say nothing, or begin handshakes as fast as they can;
each costs memory and processor time that agents need. So a handshake has to end in time, handshakes and connections are
bounded in all and for each address, and in number per second, and a share of each bound is kept for addresses that have
shown a certificate of the authority before. Such an address may be a pod's too, behind its node's, and an agent's key
may be stolen: so no address gets more than what is left for the others, and a few of them can't take it all.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bounds:
    """Counts of connections, unless said otherwise."""

    handshake_seconds: float = 5.0
    """From the connection to the end of the handshake."""
    handshakes: int = 1024
    """Under way at a time, in all."""
    handshakes_of_strangers: int = 768
    """Of these, for addresses that have never been authenticated."""
    handshakes_of_address: int = 64
    """For one stranger's address."""
    handshakes_of_known_address: int = 512
    """For one address that has been authenticated, if as many are left for others: all agents may come from one behind
    address translation."""
    strangers_per_second: float = 200.0
    """Handshakes of strangers that may begin in a second, for which processor time is spent."""
    strangers_at_once: float = 1000.0
    """After a pause: all agents are strangers to a server that has just started."""
    known_per_second: float = 100.0
    known_at_once: float = 1000.0
    """The same for each address that has been authenticated."""
    connections: int = 10_000
    """Joined to the gRPC server at a time, in all."""
    connections_of_address: int = 2_000
    """If as many are left for others."""
    connections_in_any_case: int = 8
    """For one address, however many others have, until there are none left."""
    known: int = 20_000
    """Addresses remembered as authenticated."""


class Stage(enum.Enum):
    """What a connection has come to."""

    HANDSHAKE = enum.auto()
    JOINED = enum.auto()


@dataclass(slots=True)
class _Bucket:
    """A token bucket: so many at once, so many a second."""

    tokens: float
    at: float = float("-inf")

    def take(self, now: float, per_second: float, most: float) -> bool:
        """Whether there was a token."""
        self.tokens = min(most, self.tokens + max(now - self.at, 0.0) * per_second)
        self.at = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


class Admission:
    """Counts, by address. Times are seconds of one monotonic clock."""

    def __init__(self, bounds: Bounds | None = None) -> None:
        self.bounds = bounds or Bounds()
        self._counts: dict[tuple[Stage, str], int] = {}
        self._totals = dict.fromkeys(Stage, 0)
        self._strangers = 0
        self._known: OrderedDict[str, _Bucket] = OrderedDict()
        self._of_strangers = _Bucket(self.bounds.strangers_at_once)
        self.refused = 0
        """Connections turned away so far."""

    def begins(self, address: str) -> bool | None:
        """A connection has come; None: turn it away. Else whether it is a stranger's, to be told at its end."""
        bounds, known = self.bounds, address in self._known
        left = bounds.handshakes - self._totals[Stage.HANDSHAKE]
        most = bounds.handshakes_of_address
        if known:
            most = min(bounds.handshakes_of_known_address, max(most, left))
        if (
            left <= 0
            or self.count(Stage.HANDSHAKE, address) >= most
            or (not known and self._strangers >= bounds.handshakes_of_strangers)
        ):
            self.refused += 1
            return None
        self._add(Stage.HANDSHAKE, address, 1)
        self._strangers += not known
        return not known

    def may_shake_hands(self, address: str, now: float) -> bool:
        """Whether processor time may be spent on a handshake, of which the first bytes have come."""
        bounds, known = self.bounds, self._known.get(address)
        if known is None:
            granted = self._of_strangers.take(now, bounds.strangers_per_second, bounds.strangers_at_once)
        else:
            granted = known.take(now, bounds.known_per_second, bounds.known_at_once)
        self.refused += not granted
        return granted

    def ended(self, address: str, stranger: bool) -> None:
        """A handshake is over, well or not."""
        self._add(Stage.HANDSHAKE, address, -1)
        self._strangers -= stranger

    def authenticated(self, address: str) -> None:
        """A certificate of the authority was shown from there."""
        if address not in self._known:
            self._known[address] = _Bucket(self.bounds.known_at_once)
        self._known.move_to_end(address)
        if len(self._known) > self.bounds.known:
            self._known.popitem(last=False)

    def joins(self, address: str) -> bool:
        """A connection is to be joined to the gRPC server; False: there are too many."""
        left = self.bounds.connections - self._totals[Stage.JOINED]
        most = min(self.bounds.connections_of_address, max(self.bounds.connections_in_any_case, left))
        if left <= 0 or self.count(Stage.JOINED, address) >= most:
            self.refused += 1
            return False
        self._add(Stage.JOINED, address, 1)
        return True

    def leaves(self, address: str) -> None:
        """Undo :meth:`joins`."""
        self._add(Stage.JOINED, address, -1)

    def count(self, stage: Stage, address: str | None = None) -> int:
        """Connections at a stage, of an address or in all."""
        return self._totals[stage] if address is None else self._counts.get((stage, address), 0)

    def _add(self, stage: Stage, address: str, change: int) -> None:
        self._totals[stage] += change
        left = self._counts.get((stage, address), 0) + change
        if left:
            self._counts[stage, address] = left
        else:
            del self._counts[stage, address]
