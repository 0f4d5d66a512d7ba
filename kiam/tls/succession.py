"""Renewing certificates whose authority's key nobody has, without a gap, for ``kiam certs renew`` in a cluster.

With each pair goes the next one, signed by another authority, which both halves are told to trust long before it is
used: whoever is brought the new pair first, nobody refuses anybody. The chart's templates (``_selfsigned.tpl``) do the
same on an upgrade; here it is for the time between upgrades. No I/O, and no clock of its own.
"""

from __future__ import annotations

import enum
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import chain

from cryptography.hazmat.primitives.serialization import Encoding

from kiam.tls.certificates import Certificate, read_certificates
from kiam.tls.issue import CLOCK_SKEW, Period, make_authority, make_successor

SETTLING = timedelta(hours=1)
"""From the moment an authority is first trusted until a pair of its may be used: kubelets bring a changed Secret to
the nodes one at a time, within minutes."""
PREDECESSORS = 2
"""Authorities of before that stay in a bundle, beside those that signed what is in use."""


class Action(enum.StrEnum):
    """What is to be done; the templates' words."""

    KEEP = "keep"
    INTRODUCE = "introduce"
    """Have both halves trust the authority of a next pair."""
    RENEW = "renew"
    """Put the next pair in use, and make the one after it."""
    MAKE = "make"
    """What is in use has ended, so there is no connection to keep: put a new pair in use."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its private key, as PEM."""

    cert: bytes
    key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Half:
    """What the agents, or the servers, have mounted. PEM."""

    pair: Pair
    ca: bytes
    """The authorities that the other half's certificate may come from."""


@dataclass(frozen=True, slots=True)
class Successor:
    """The pairs that take over, by half, and the authority that signed them."""

    ca: bytes
    pairs: Mapping[str, Pair]
    trusted_since: datetime


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is to be stored, the successor first: if that is all that is stored, nothing has changed for anybody."""

    action: Action
    successor: Successor
    halves: Mapping[str, Half]


@dataclass(frozen=True, slots=True)
class Terms:
    """When to renew, and for how long."""

    renew_before: timedelta
    """So long before the end of what is in use."""
    validity: timedelta


def ends(halves: Mapping[str, Half]) -> datetime:
    """When the first certificate in use, or the authority above it, ends. Raises ValueError for what isn't PEM."""
    used = [read_certificates(half.pair.cert)[0] for half in halves.values()]
    known = [one for half in halves.values() for one in read_certificates(half.ca)]
    above = [one for one in known if any(cert.issued_by(one) for cert in used)]
    return min(one.not_after for one in (*used, *above))


def decide(halves: Mapping[str, Half], successor: Successor | None, now: datetime, renew_before: timedelta) -> Action:
    """What is to be done at this moment. Raises ValueError for what isn't PEM."""
    end = ends(halves)
    if end <= now:
        return Action.MAKE
    if successor is None or not _usable(halves, successor, now):
        return Action.INTRODUCE
    if end - now < renew_before and now - successor.trusted_since > SETTLING:
        return Action.RENEW
    return Action.KEEP


def succeed(halves: Mapping[str, Half], successor: Successor | None, now: datetime, terms: Terms) -> Outcome | None:
    """Decide and do it, in memory; None: nothing is to be done. Raises ValueError for what isn't PEM."""
    action = decide(halves, successor, now, terms.renew_before)
    if action is Action.KEEP:
        return None
    following = _following(halves, now, terms.validity)
    if action is Action.INTRODUCE:
        trusting = {name: Half(half.pair, _bundle(halves, half, following.ca, now)) for name, half in halves.items()}
        return Outcome(action, following, trusting)
    # What has ended is accepted by nobody, so what takes its place needn't have been trusted before.
    taking = successor if action is Action.RENEW and successor is not None else _following(halves, now, terms.validity)
    using = {name: Half(taking.pairs[name], half.ca) for name, half in halves.items()}
    both = {**{f"old {name}": half for name, half in halves.items()}, **using}
    renewed = {
        name: Half(half.pair, _bundle(both, half, taking.ca + following.ca, now)) for name, half in using.items()
    }
    return Outcome(action, following, renewed)


def _usable(halves: Mapping[str, Half], successor: Successor, now: datetime) -> bool:
    """Whether it is whole, in time, its authority's own, and trusted by both halves."""
    if not halves.keys() <= successor.pairs.keys():
        return False
    authority = read_certificates(successor.ca)[0]
    pairs = [read_certificates(successor.pairs[name].cert)[0] for name in halves]
    return (
        all(one.valid_at(now) for one in (authority, *pairs))
        and all(pair.issued_by(authority) for pair in pairs)
        and all(_holds(half.ca, authority) for half in halves.values())
    )


def _holds(bundle: bytes, authority: Certificate) -> bool:
    return any(one.parsed == authority.parsed for one in read_certificates(bundle))


def _following(halves: Mapping[str, Half], now: datetime, validity: timedelta) -> Successor:
    """New pairs with the names of those in use, from a new authority whose key is forgotten here."""
    period = Period(now - CLOCK_SKEW, now + validity)
    # A name of its own: the authorities before and after it are in one bundle with it.
    authority = make_authority(f"kiam-ca {now:%Y-%m-%d} {secrets.token_hex(3)}", period)
    pairs = {}
    for name, half in halves.items():
        issued = make_successor(read_certificates(half.pair.cert)[0], period, authority.cert, authority.key)
        pairs[name] = Pair(issued.cert, issued.key)
    return Successor(authority.cert, pairs, now)


def _bundle(halves: Mapping[str, Half], half: Half, added: bytes, now: datetime) -> bytes:
    """The half's authorities of late, each that signed what any half has in use, and the added ones.

    The second kind matters when a renewal was cut short between the halves: what the other one shows is to be accepted
    still, whatever came after it.
    """
    used = [read_certificates(one.pair.cert)[0] for one in halves.values()]
    known = read_certificates(half.ca)
    issuers = [one for one in known if any(cert.issued_by(one) for cert in used)]
    kept = [one for one in known if one in known[-PREDECESSORS:] or one in issuers]
    return _pem(chain((one for one in kept if one.not_after > now), read_certificates(added)))


def _pem(certificates: Iterable[Certificate]) -> bytes:
    """Each once, in their order."""
    return b"".join(dict.fromkeys(one.parsed.public_bytes(Encoding.PEM) for one in certificates))
