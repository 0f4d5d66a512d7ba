"""How many connections may be open, and how many handshakes under way, for whom. No I/O, no clock of its own.

Which attack: anyone who reaches the port can open connections and say nothing, or begin handshakes as fast as they can;
each costs memory and processor time that agents need. So a handshake has to end in time, handshakes and connections are
bounded in all and for each address, handshakes of strangers in number per second, and a share of each bound is kept
for addresses that have shown a certificate of the authority before.
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
    """For one address that has been authenticated: all agents may come from one behind address translation."""
    strangers_per_second: float = 200.0
    """Handshakes of strangers that may begin in a second, for which processor time is spent."""
    strangers_at_once: float = 1000.0
    """After a pause: all agents are strangers to a server that has just started."""
    connections: int = 10_000
    """Joined to the gRPC server at a time, in all."""
    connections_of_address: int = 2_000
    known: int = 20_000
    """Addresses remembered as authenticated."""


class Stage(enum.Enum):
    """What a connection has come to."""

    HANDSHAKE = enum.auto()
    JOINED = enum.auto()


class Admission:
    """Counts, by address. Times are seconds of one monotonic clock."""

    def __init__(self, bounds: Bounds | None = None) -> None:
        self.bounds = bounds or Bounds()
        self._counts: dict[tuple[Stage, str], int] = {}
        self._totals = dict.fromkeys(Stage, 0)
        self._strangers = 0
        self._known: OrderedDict[str, None] = OrderedDict()
        self._tokens, self._tokens_at = self.bounds.strangers_at_once, float("-inf")
        self.refused = 0
        """Connections turned away so far."""

    def begins(self, address: str) -> bool | None:
        """A connection has come; None: turn it away. Else whether it is a stranger's, to be told at its end."""
        bounds, known = self.bounds, address in self._known
        most = bounds.handshakes_of_known_address if known else bounds.handshakes_of_address
        if (
            self._totals[Stage.HANDSHAKE] >= bounds.handshakes
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
        if address in self._known:
            return True
        earned = max(now - self._tokens_at, 0.0) * self.bounds.strangers_per_second
        self._tokens = min(self.bounds.strangers_at_once, self._tokens + earned)
        self._tokens_at = now
        if self._tokens < 1:
            self.refused += 1
            return False
        self._tokens -= 1
        return True

    def ended(self, address: str, stranger: bool) -> None:
        """A handshake is over, well or not."""
        self._add(Stage.HANDSHAKE, address, -1)
        self._strangers -= stranger

    def authenticated(self, address: str) -> None:
        """A certificate of the authority was shown from there."""
        self._known[address] = None
        self._known.move_to_end(address)
        if len(self._known) > self.bounds.known:
            self._known.popitem(last=False)

    def joins(self, address: str) -> bool:
        """A connection is to be joined to the gRPC server; False: there are too many."""
        if (
            self._totals[Stage.JOINED] >= self.bounds.connections
            or self.count(Stage.JOINED, address) >= self.bounds.connections_of_address
        ):
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
