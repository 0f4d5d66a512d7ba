"""What a probe in a namespace reports: one attempt for each route it tried."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field


class Outcome(enum.StrEnum):
    """What the program that tried saw."""

    CONNECTED = "connected"
    ANSWERED = "answered"
    REFUSED = "refused"
    BLOCKED = "blocked"
    SILENCE = "silence"
    UNSUPPORTED = "unsupported"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One route that was tried."""

    route: str
    outcome: Outcome
    detail: str = ""
    """The error or the reason, for people."""
    address: str = ""
    """The attempt's own address, as its socket has it."""
    port: int = 0
    sent: tuple[tuple[int, str], ...] = ()
    """Keys (frames.Seen.key) of its packets that left the namespace for a metadata address."""


@dataclass(frozen=True, slots=True)
class TunnelEnd:
    """The node's end of a tunnel, as who sends into it has to know it."""

    port: int
    """The UDP port; 0 for tunnels without UDP."""
    number: int
    """The virtual network's."""
    mac: str
    """Of the end's device."""
    source: str
    """The inner packet's source address."""
    interface: str
    """The end's device."""


@dataclass(frozen=True, slots=True)
class Order:
    """What a probe is asked to try."""

    routes: tuple[str, ...]
    timeout: float
    """Seconds to wait for an answer to each; all wait at the same time."""
    nonce: str
    address: str = ""
    """The pod's IPv4 address; empty: whichever the namespace has."""
    address6: str = ""
    node: str = ""
    """The node's IPv4 address, where tunnels end."""
    tunnels: Mapping[str, TunnelEnd] = field(default_factory=dict)
    """By their route's name."""
