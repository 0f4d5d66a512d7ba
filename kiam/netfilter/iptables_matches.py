"""What the words of an iptables rule mean: its matches and its target (iptables-extensions(8))."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import ip_address, ip_network
from itertools import pairwise

from kiam.netfilter.conditions import (
    Address,
    ComesInOn,
    Condition,
    DestinationIn,
    DestinationIsLocal,
    Network,
    Never,
    PortIn,
    ProtocolIs,
    SourceIn,
    StateIn,
    Undecided,
)
from kiam.netfilter.interfaces import InterfacePattern
from kiam.netfilter.model import Action

ACTIONS = {
    "ACCEPT": Action.ACCEPT,
    "DROP": Action.DROP,
    "REJECT": Action.REJECT,
    "RETURN": Action.RETURN,
    "DNAT": Action.DNAT,
    "REDIRECT": Action.REDIRECT,
    "NETMAP": Action.DNAT,
    "TPROXY": Action.TPROXY,
    "NOTRACK": Action.NOTRACK,
    "NFQUEUE": Action.UNDECIDED,
    "QUEUE": Action.UNDECIDED,
}
SIDE_EFFECTS = frozenset(
    {"LOG", "NFLOG", "ULOG", "TRACE", "MARK", "CONNMARK", "TOS", "DSCP", "TTL", "HL", "TCPMSS", "CLASSIFY", "SET"}
    | {"AUDIT", "CHECKSUM", "SECMARK", "CONNSECMARK", "IDLETIMER", "TEE", "LED", "RATEEST", "TCPOPTSTRIP", "HMARK"}
    | {"ECN", "CLUSTERIP", "MASQUERADE", "SNAT"}
)
"""Targets after which the packet goes on to the next rule, or which can't be in the chains looked at."""
PROTOCOLS = {"6": "tcp", "17": "udp", "1": "icmp", "58": "ipv6-icmp", "0": "all", "132": "sctp", "all": "all"}
JUMPS = {"-j": Action.JUMP, "--jump": Action.JUMP, "-g": Action.GOTO, "--goto": Action.GOTO}
MATCHING_ALONE = frozenset({"socket", "eui64"})
"""Extensions that ask something even without an option."""


@dataclass(slots=True)
class Meaning:
    """What a rule's words say."""

    conditions: list[Condition] = field(default_factory=list)
    action: Action = Action.CONTINUE
    target_chain: str = ""
    to_address: Address | None = None
    to_port: int | None = None
    comment: str = ""


def meaning_of(words: Sequence[str]) -> Meaning:
    """Read what stands behind ``-A CHAIN``. What can't be read is undecided, so it is never taken for harmless."""
    found = Meaning()
    for option, negated, values in _options(words):
        if option in JUMPS and not negated:
            _read_target(found, JUMPS[option], values)
            continue
        if option == "--comment" and values:
            found.comment = values[0]
        if not _asks_nothing(option, values):
            found.conditions.append(_condition(option, negated, values))
    return found


def _asks_nothing(option: str, values: Sequence[str]) -> bool:
    match option:
        case "-m" | "--match":
            # What follows "-m rpfilter" is looked at; "-m socket" may stand alone.
            return MATCHING_ALONE.isdisjoint(values[:1])
        case "-p" | "--protocol":
            return bool(values) and PROTOCOLS.get(values[0]) == "all"
    return option in {"--comment", "--validmark", "--loose"}


def _options(words: Sequence[str]) -> Iterator[tuple[str, bool, Sequence[str]]]:
    """Each option, whether it is negated, and its values; a target's are all that follow."""
    place = 0
    while place < len(words):
        negated = words[place] == "!"
        place += negated
        option = words[place] if place < len(words) else ""
        place += 1
        start = place
        # A comment may begin with a dash; it is always exactly one word, quoted or not.
        while place < len(words) and (
            option in JUMPS
            or (option == "--comment" and place == start)
            or not (words[place].startswith("-") or words[place] == "!")
        ):
            place += 1
        yield option, negated, words[start:place]


def _condition(option: str, negated: bool, values: Sequence[str]) -> Condition:
    with contextlib.suppress(ValueError):
        if (known := _known_condition(option, negated, values[0] if values else "")) is not None:
            return known
    return Undecided(" ".join(["!"] * negated + [option, *values]))


def _known_condition(option: str, negated: bool, value: str) -> Condition | None:
    if option == "--invert":
        return Never("the reverse path check fails")
    match option if value else "":
        case "-s" | "--source":
            return SourceIn(_networks(value), negated)
        case "-d" | "--destination":
            return DestinationIn(_networks(value), negated)
        case "-i" | "--in-interface":
            return ComesInOn((InterfacePattern.parse(value),), negated)
        case "-p" | "--protocol":
            return ProtocolIs(frozenset({PROTOCOLS.get(value, value)}), negated)
        case "--dport" | "--destination-port" | "--dports" | "--destination-ports":
            return PortIn(_ranges(value), negated)
        case "--ctstate" | "--state":
            return StateIn(frozenset(value.split(",")), negated)
        case "--dst-type" if value == "LOCAL":
            return DestinationIsLocal(negated)
        case "--match-set" if value.startswith("KUBE-") and not negated:
            return Never(f"--match-set {value}: kube-proxy's sets hold service addresses")
    return None


@lru_cache(maxsize=256)
def _networks(text: str) -> tuple[Network, ...]:
    return tuple(ip_network(part, strict=False) for part in text.split(","))


def _ranges(text: str) -> tuple[tuple[int, int], ...]:
    found = []
    for part in text.split(","):
        first, _, last = part.partition(":")
        found.append((int(first or 0), int(last or 65535) if ":" in part else int(first)))
    return tuple(found)


def _read_target(found: Meaning, jump: Action, values: Sequence[str]) -> None:
    target, options = values[0] if values else "", values[1:]
    if target in ACTIONS:
        found.action = ACTIONS[target]
        found.to_address, found.to_port = _destination(options)
    elif target == "CT":
        found.action = Action.NOTRACK if "--notrack" in options else Action.CONTINUE
    elif target not in SIDE_EFFECTS:
        found.action, found.target_chain = jump, target


def _destination(options: Sequence[str]) -> tuple[Address | None, int | None]:
    for option, value in pairwise(options):
        if option == "--to-ports":
            return None, _port(value.split("-")[0])
        if option == "--to-destination":
            return _address_and_port(value)
    return None, None


def _address_and_port(text: str) -> tuple[Address | None, int | None]:
    if text.startswith("["):
        host, _, port = text[1:].partition("]")
        port = port.removeprefix(":")
    elif text.count(":") > 1:
        host, port = text, ""
    else:
        host, _, port = text.partition(":")
    try:
        return ip_address(host), _port(port)
    except ValueError:
        return None, _port(port)


def _port(text: str) -> int | None:
    return int(text) if text.isdecimal() else None
