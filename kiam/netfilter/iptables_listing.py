"""Reads what ``iptables-save`` and ``iptables -S`` print, and writes rules as they do."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import overload

from kiam.netfilter.iptables_matches import meaning_of
from kiam.netfilter.model import Action, Chain, Rule, Table

HOOKS: dict[tuple[str, str], tuple[str, str, int]] = {
    ("raw", "PREROUTING"): ("prerouting", "filter", -300),
    ("mangle", "PREROUTING"): ("prerouting", "filter", -150),
    ("nat", "PREROUTING"): ("prerouting", "nat", -100),
    ("mangle", "INPUT"): ("input", "filter", -150),
    ("filter", "INPUT"): ("input", "filter", 0),
    ("security", "INPUT"): ("input", "filter", 50),
    ("nat", "INPUT"): ("input", "nat", 100),
    ("mangle", "FORWARD"): ("forward", "filter", -150),
    ("filter", "FORWARD"): ("forward", "filter", 0),
    ("raw", "OUTPUT"): ("output", "filter", -300),
    ("mangle", "OUTPUT"): ("output", "route", -150),
    ("nat", "OUTPUT"): ("output", "nat", -100),
    ("filter", "OUTPUT"): ("output", "filter", 0),
}
"""(table, chain): hook, kind and priority (enum nf_ip_hook_priorities, linux/netfilter_ipv4.h)."""

_WORD = re.compile(r'"((?:[^"\\]|\\.)*)"|(\S+)')
_PLAIN = re.compile(r"[A-Za-z0-9_./:+!,\[\]@%=~-]+")
_COUNTERS = re.compile(r"\[(\d+):(\d+)\] ")
_RULE = re.compile(r"(?:\[\d+:\d+\] )?-A (\S+)")


def split_words(text: str) -> tuple[str, ...]:
    """The words of a rule as iptables-save writes them: split at blanks, ``"..."`` with backslash escapes."""
    if '"' not in text:
        return tuple(text.split())
    return tuple(
        re.sub(r"\\(.)", r"\1", match[1]) if match[1] is not None else match[2] for match in _WORD.finditer(text)
    )


def specification(rule: Rule) -> str:
    """What follows ``-A CHAIN`` in a rule."""
    return " ".join(_quote(word) for word in rule.parts)


def _quote(word: str) -> str:
    return word if _PLAIN.fullmatch(word) else '"' + re.sub(r'(["\\])', r"\\\1", word) + '"'


def make_rule(chain: str, *words: str) -> Rule:
    """A rule from the words behind ``-A CHAIN``."""
    return _rule(chain, words, " ".join(["-A", chain, *map(_quote, words)]))


def option(rule: Rule, name: str) -> str | None:
    """The word after an option of that name."""
    return next((value for word, value in zip(rule.parts, rule.parts[1:], strict=False) if word == name), None)


def _rule(chain: str, words: tuple[str, ...], text: str, position: int = 0, packets: int = 0, octets: int = 0) -> Rule:
    meaning = meaning_of(words)
    return Rule(
        chain,
        words,
        text,
        meaning.comment,
        tuple(meaning.conditions),
        meaning.action,
        meaning.target_chain,
        meaning.to_address,
        meaning.to_port,
        position,
        packets,
        octets,
    )


def parse_rule(line: str, position: int = 1) -> Rule:
    """One ``-A CHAIN ...`` line, with counters in front, in the middle or without."""
    counted = _COUNTERS.match(line)
    text = line[counted.end() :] if counted else line
    chain, *rest = split_words(text)[1:]
    words = tuple(rest)
    packets, octets = (int(counted[1]), int(counted[2])) if counted else (0, 0)
    # iptables -v -S has the counters in the middle; a comment may be "-c" too, and hasn't two numbers after it.
    for place in (place for place, word in enumerate(words) if word == "-c"):
        match words[place + 1 : place + 3]:
            case first, second if first.isdecimal() and second.isdecimal():
                words = words[:place] + words[place + 3 :]
                return _rule(chain, words, make_rule(chain, *words).text, position, int(first), int(second))
    return _rule(chain, words, text, position, packets, octets)


class _Lines(Sequence[Rule]):
    """A chain's rules, read when they are first looked at.

    kube-proxy has tens of thousands of rules in chains that nobody has to look into.
    """

    __slots__ = ("_lines", "_rules")

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._rules: list[Rule] | None = None

    def add(self, line: str) -> None:
        self._lines.append(line)

    def _read(self) -> list[Rule]:
        if self._rules is None:
            self._rules = [parse_rule(line, position) for position, line in enumerate(self._lines, start=1)]
        return self._rules

    def __len__(self) -> int:
        return len(self._lines)

    def __iter__(self) -> Iterator[Rule]:
        return iter(self._read())

    @overload
    def __getitem__(self, index: int) -> Rule: ...
    @overload
    def __getitem__(self, index: slice) -> list[Rule]: ...
    def __getitem__(self, index: int | slice) -> Rule | list[Rule]:
        return self._read()[index]


def parse_tables(text: str, tool: str, table: str = "") -> dict[str, Table]:
    """The tables of one ``iptables-save``, or the one of ``iptables -S``, which doesn't name it.

    Lines that aren't rules, chains or tables are left out.
    """
    family = "ip6" if tool.startswith("ip6") else "ip"
    found: dict[str, dict[str, tuple[str, _Lines]]] = {}
    name = table
    for kind, subject, rest in _lines(text):
        if kind == "table":
            name = subject
            found.setdefault(name, {})
        if kind == "table" or not name:
            continue
        chains = found.setdefault(name, {})
        if kind == "chain":
            chains[subject] = rest, chains[subject][1] if subject in chains else _Lines()
        else:
            chains.setdefault(subject, ("", _Lines()))[1].add(rest)
    return {
        name: Table(tool, family, name, {chain: _chain(name, chain, *content) for chain, content in chains.items()})
        for name, chains in found.items()
    }


def _lines(text: str) -> Iterator[tuple[str, str, str]]:
    """``("table", name, "")``, ``("chain", name, policy)``, ``("rule", chain, the line)``."""
    for line in text.split("\n"):
        if rule := _RULE.match(line):
            yield "rule", rule[1], line
        elif line.startswith((":", "-P ", "-N ")):
            name, policy, *_ = [*line[1 if line[0] == ":" else 3 :].split(" "), ""]
            yield "chain", name, policy
        elif line.startswith("*"):
            yield "table", line[1:].strip(), ""


def _chain(table: str, name: str, policy: str, rules: Sequence[Rule]) -> Chain:
    hook, kind, priority = HOOKS.get((table, name), ("", "", 0))
    return Chain(name, rules, hook, kind, priority, Action.DROP if policy == "DROP" else Action.ACCEPT)
