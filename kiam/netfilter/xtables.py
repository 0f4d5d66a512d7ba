"""iptables rules as data: reading what ``iptables-save`` prints, and asking which rule could take a packet first.

Pure functions; nothing here runs a program.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import overload

from kiam.netfilter.interfaces import InterfacePattern

_WORD = re.compile(r'"((?:[^"\\]|\\.)*)"|(\S+)')
_PLAIN = re.compile(r"[A-Za-z0-9_./:+!,\[\]@%=~-]+")
_COUNTERS = re.compile(r"\[(\d+):(\d+)\] ")

_PASSING_TARGETS = frozenset(
    {
        *("AUDIT", "CHECKSUM", "CLASSIFY", "CLUSTERIP", "CONNMARK", "CONNSECMARK", "CT", "DSCP", "ECN", "HL", "HMARK"),
        *("IDLETIMER", "LED", "LOG", "MARK", "NFLOG", "NOTRACK", "RATEEST", "SECMARK", "SET", "TCPMSS", "TCPOPTSTRIP"),
        *("TEE", "TOS", "TRACE", "TTL", "ULOG"),
    }
)
"""Targets after which the next rule is looked at (iptables-extensions(8)); any other target ends the walk."""
_DROPPING_TARGETS = frozenset({"DROP", "REJECT"})


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule; two are equal when they read alike, whatever their counters."""

    chain: str
    words: tuple[str, ...]
    """What comes after ``-A <chain>``, quotes taken off."""
    packets: int = field(default=0, compare=False)
    bytes: int = field(default=0, compare=False)

    @classmethod
    def parse(cls, chain: str, text: str) -> Rule:
        """A rule from its text as ``iptables -S`` prints it, without ``-A <chain>``."""
        return cls(chain, split_words(text))

    @property
    def text(self) -> str:
        """The rule as ``iptables -S`` prints it, without ``-A <chain>``."""
        return " ".join(_quote(word) for word in self.words)

    def __str__(self) -> str:
        return f"-A {self.chain} {self.text}"

    def value(self, *flags: str) -> str | None:
        """The word after the first of the flags that is there."""
        for place, word in enumerate(self.words[:-1]):
            if word in flags:
                return self.words[place + 1]
        return None

    @property
    def target(self) -> str | None:
        """Where ``-j`` or ``-g`` leads."""
        return self.value("-j", "-g")

    @property
    def comment(self) -> str | None:
        """What ``--comment`` says."""
        return self.value("--comment")


Table = Mapping[str, Sequence[Rule]]
"""A table's chains, empty ones too, each with its rules in order."""
Ruleset = Mapping[str, Table]
"""Tables by name."""


def _quote(word: str) -> str:
    return word if _PLAIN.fullmatch(word) else '"' + re.sub(r'(["\\])', r"\\\1", word) + '"'


def split_words(text: str) -> tuple[str, ...]:
    """The words of a rule as iptables-save writes them: split at blanks, ``"..."`` with backslash escapes."""
    if '"' not in text:
        return tuple(text.split())
    return tuple(
        re.sub(r"\\(.)", r"\1", match[1]) if match[1] is not None else match[2] for match in _WORD.finditer(text)
    )


class SavedRules(Sequence[Rule]):
    """A chain's rules as iptables-save printed them, read when they are first looked at.

    kube-proxy has tens of thousands of rules in chains that nobody has to look into.
    """

    __slots__ = ("_chain", "_lines", "_rules")

    def __init__(self, chain: str) -> None:
        self._chain = chain
        self._lines: list[str] = []
        self._rules: list[Rule] | None = None

    def add(self, line: str) -> None:
        """Append a rule: ``[12:750] -A CHAIN ...``, or without the counters."""
        self._lines.append(line)

    def __len__(self) -> int:
        return len(self._lines)

    @overload
    def __getitem__(self, index: int) -> Rule: ...
    @overload
    def __getitem__(self, index: slice) -> list[Rule]: ...
    def __getitem__(self, index: int | slice) -> Rule | list[Rule]:
        if self._rules is None:
            self._rules = [_parse_line(self._chain, line) for line in self._lines]
        return self._rules[index]


def without_counters(line: str) -> str:
    """A rule's line without ``[packets:bytes]`` in front."""
    return _COUNTERS.sub("", line, count=1) if line.startswith("[") else line


def _parse_line(chain: str, line: str) -> Rule:
    counted = _COUNTERS.match(line)
    text = line[counted.end() :] if counted else line
    words = split_words(text.removeprefix(f"-A {chain}"))
    packets, size = (int(counted[1]), int(counted[2])) if counted else (0, 0)
    # iptables -v -S has the counters in the middle; a comment may be "-c" too, and hasn't two numbers after it.
    for place, (word, first, second) in enumerate(zip(words, words[1:], words[2:], strict=False)):
        if word == "-c" and first.isdecimal() and second.isdecimal():
            packets, size = int(first), int(second)
            words = words[:place] + words[place + 3 :]
            break
    return Rule(chain, words, packets, size)


def saved_lines(text: str) -> Iterator[tuple[str, str, str]]:
    """What iptables-save prints, line by line, with or without ``--counters``; lines of no meaning are left out.

    ``("table", name, "")``, ``("chain", name, policy)``, ``("rule", chain, the line)``.
    """
    for line in text.split("\n"):
        if line.startswith("*"):
            yield "table", line[1:].strip(), ""
        elif line.startswith(":"):
            name, policy, *_ = [*line[1:].split(" "), ""]
            yield "chain", name, policy
        elif (start := line.find("-A ")) == 0 or (start > 0 and line.startswith("[")):
            yield "rule", line[start + 3 :].split(" ", 1)[0], line


def parse_save(text: str) -> dict[str, dict[str, SavedRules]]:
    """Read the output of ``iptables-save``, with or without ``--counters``. Lines it doesn't know are skipped."""
    ruleset: dict[str, dict[str, SavedRules]] = {}
    table: dict[str, SavedRules] = {}
    for kind, name, rest in saved_lines(text):
        if kind == "table":
            table = ruleset.setdefault(name, {})
            continue
        chain = table.get(name)
        if chain is None:
            chain = table[name] = SavedRules(name)
        if kind == "rule":
            chain.add(rest)
    return ruleset


def parse_list(text: str) -> dict[str, SavedRules]:
    """Read one table from the output of ``iptables -v -S``."""
    table: dict[str, SavedRules] = {}
    for line in text.split("\n"):
        verb, _, rest = line.partition(" ")
        if verb in ("-A", "-N", "-P"):
            name = rest.split(" ", 1)[0]
            chain = table.setdefault(name, SavedRules(name))
            if verb == "-A":
                chain.add(line)
    return table


@dataclass(frozen=True, slots=True)
class Packet:
    """As much of a packet as is known: it comes from some pod and goes to a metadata address."""

    destination: IPv4Address | IPv6Address
    interface: InterfacePattern
    """It comes in on one of these."""
    port: int = 80
    protocol: str = "tcp"
    destination_is_local: bool = False
    """Whether the node itself has the destination address (``-m addrtype --dst-type LOCAL``)."""


def _in_network(value: str, address: IPv4Address | IPv6Address) -> bool:
    plain, _, length = value.partition("/")
    if length == str(address.max_prefixlen):
        return plain == str(address)
    try:
        return address in ip_network(value, strict=False)
    except ValueError:
        return True


def _has_port(value: str, port: int) -> bool:
    for part in value.split(","):
        low, colon, high = part.partition(":")
        try:
            if int(low or 0) <= port <= int((high or 65535) if colon else low):
                return True
        except ValueError:
            return True
    return False


def _matches(flag: str, value: str, packet: Packet) -> bool | None:
    # None: a match this program doesn't know, which may hold or not, whether inverted or not.
    match flag:
        case "-d":
            return _in_network(value, packet.destination)
        case "-p":
            return value in (packet.protocol, "all", "0")
        case "--dport" | "--dports":
            return _has_port(value, packet.port)
        case "--dst-type":
            return packet.destination_is_local if value == "LOCAL" else None
    return None


def could_match(rule: Rule, packet: Packet) -> bool:
    """Whether the rule could match such a packet; what can't be told counts as yes."""
    inverted = False
    for flag, value in zip(rule.words, rule.words[1:], strict=False):
        if flag in ("-j", "-g"):
            break
        if flag == "!":
            inverted = True
            continue
        if flag == "-i":
            name = value.removesuffix("+")
            if not packet.interface.overlaps(InterfacePattern(name, value.endswith("+"), inverted)):
                return False
        elif (known := _matches(flag, value, packet)) is not None and known is inverted:
            return False
        inverted = False
    return True


def takers(table: Table, rules: Sequence[Rule], packet: Packet, *, drops: bool = False) -> Iterator[Rule]:
    """The rules, in order, that could end the walk of such a packet through these rules.

    A rule that only drops is left out unless ``drops``: it can't let a packet out.
    """
    seen: set[str] = set()

    def walk(chain: Sequence[Rule], top: bool) -> Iterator[Rule]:
        for rule in chain:
            target = rule.target
            if target is None or target in _PASSING_TARGETS or not could_match(rule, packet):
                continue
            if target in table:
                if target not in seen:
                    seen.add(target)
                    yield from walk(table[target], False)
            elif (target != "RETURN" or top) and (drops or target not in _DROPPING_TARGETS):
                # RETURN in a built-in chain is the chain's policy; in any other, the caller's next rule.
                yield rule

    yield from walk(rules, True)
