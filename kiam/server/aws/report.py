"""How the roles are doing, for people who look at the server: no keys, no tokens, no external ids."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

from kiam.clocks import Clock
from kiam.identity import Identity
from kiam.server.aws.entry import Entry


class RoleState(enum.StrEnum):
    """In the order in which a person wants to see them."""

    FAILING = "failing"
    """The last call failed; credentials held from before stay good."""
    EXPIRING = "expiring"
    """Held, with less time left than pods are to have."""
    WAITING = "waiting"
    """Nothing is held, and nobody asks STS yet."""
    FETCHING = "fetching"
    """Nothing is held, and STS is being asked or about to be."""
    HELD = "held"


@dataclass(frozen=True, slots=True)
class Calls:
    """AssumeRole calls since the start; ``throttled`` are among the ``failed``."""

    made: int
    failed: int
    throttled: int
    running: int


@dataclass(frozen=True, slots=True)
class RoleReport:
    """One identity."""

    identity: Identity
    state: RoleState
    expiration: str
    """As in Credentials; empty: nothing good is held."""
    error: str
    """AWS's words; empty: the last call went well."""
    retry_after: int
    """Seconds until STS is asked again after a failure."""
    namespaces: int
    """Of the pods that want it."""


def role_state(*, good: bool, late: bool, failing: bool, asked: bool) -> RoleState:
    """What to call it, by whether what is held is ``good`` and has little time left, the last call failed, and another
    is queued or under way.
    """
    if failing:
        return RoleState.FAILING
    if good:
        return RoleState.EXPIRING if late else RoleState.HELD
    return RoleState.FETCHING if asked else RoleState.WAITING


def report(entry: Entry, clock: Clock) -> RoleReport:
    """One identity as it is now."""
    good, failing = entry.left(clock) > 0, bool(entry.failures)
    return RoleReport(
        entry.identity,
        role_state(good=good, late=entry.is_late(clock), failing=failing, asked=entry.outcome is not None),
        entry.held.message.expiration if good and entry.held is not None else "",
        entry.message,
        math.ceil(entry.unavailable(clock).retry_after) if failing else 0,
        len(entry.namespaces),
    )
