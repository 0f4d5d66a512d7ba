"""Reads libnftables' JSON of tables (libnftables-json(5)).

Tables that iptables-nft keeps show up here too, with their matches hidden behind ``xt``; they are read from
``iptables-nft-save`` instead and left out here.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

from kiam.netfilter.conditions import Address, Condition, Undecided
from kiam.netfilter.model import Action, Chain, Count, Rule, Table
from kiam.netfilter.nft import Answer
from kiam.netfilter.nft_matches import Matches, Object, conditions_of
from kiam.netfilter.nft_text import in_words

IPTABLES_TABLES = frozenset({"raw", "mangle", "nat", "filter", "security"})


Place = tuple[str, str]
"""A table's family and name."""
VERDICTS = {
    "accept": Action.ACCEPT,
    "drop": Action.DROP,
    "reject": Action.REJECT,
    "return": Action.RETURN,
    "notrack": Action.NOTRACK,
    "tproxy": Action.TPROXY,
    "queue": Action.UNDECIDED,
}
JUMPS = {"jump": Action.JUMP, "goto": Action.GOTO}
UNDECIDED = frozenset({"limit", "ct count", "xt", "quota"})


def parse_nft_ruleset(ruleset: Object) -> list[Table]:
    """The tables of ``{"nftables": [...]}`` that aren't iptables-nft's. Raises ValueError if it is something else."""
    try:
        return _tables(ruleset.get("nftables", []))
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"nft's listing has another form than is known: {error!r}") from error


def parse_nft_table(answer: Answer) -> Table | None:
    """The one table that was asked for; None where there is none, or nft couldn't say. Raises ValueError as above."""
    return None if answer.status else next(iter(parse_nft_ruleset(answer.output)), None)


def _tables(objects: Sequence[Object]) -> list[Table]:
    # A map is told from a set by its "map" key, which says the data's type.
    sets: dict[Place, dict[str, Object]] = defaultdict(dict)
    for named in (*_of_kind("set", objects), *_of_kind("map", objects)):
        sets[_place(named)][named["name"]] = named
    rules: dict[tuple[Place, str], list[Rule]] = defaultdict(list)
    for rule in _of_kind("rule", objects):
        rules[_place(rule), rule["chain"]].extend(parse_rule(rule, sets[_place(rule)]))
    chains: dict[Place, dict[str, Chain]] = defaultdict(dict)
    for chain in _of_kind("chain", objects):
        name = chain["name"]
        chains[_place(chain)][name] = _chain(chain, rules[_place(chain), name])
    counters: dict[Place, dict[str, Count]] = defaultdict(dict)
    for counter in _of_kind("counter", objects):
        counters[_place(counter)][counter["name"]] = Count(int(counter.get("packets", 0)), int(counter.get("bytes", 0)))
    places = [(table["family"], table["name"]) for table in _of_kind("table", objects)]
    return [
        Table("nft", *place, chains[place], counters[place])
        for place in places
        if not _is_iptables(place, chains[place].values())
    ]


def _of_kind(kind: str, objects: Sequence[Object]) -> Iterator[Object]:
    return (entry[kind] for entry in objects if kind in entry)


def _place(entry: Object) -> Place:
    return entry["family"], entry["table"]


def _chain(chain: Object, rules: Sequence[Rule]) -> Chain:
    policy = Action.DROP if chain.get("policy") == "drop" else Action.ACCEPT
    hook, kind, priority = chain.get("hook", ""), chain.get("type", ""), int(chain.get("prio", 0))
    return Chain(chain["name"], tuple(rules), hook, kind, priority, policy)


def _is_iptables(place: Place, chains: Iterable[Chain]) -> bool:
    """Whether iptables-nft keeps that table: its name is one of the five and its base chains are in capitals."""
    family, name = place
    return family != "inet" and name in IPTABLES_TABLES and all(chain.name.isupper() for chain in chains if chain.hook)


def parse_rule(rule: Object, sets: Mapping[str, Object]) -> list[Rule]:
    """One rule as one or, where it ends in a verdict map, several of ours."""
    statements = rule.get("expr", [])
    plain = Rule(
        chain=rule["chain"],
        parts=tuple(map(_comparable, statements)),
        text=" ".join(filter(None, map(in_words, statements))),
        comment=rule.get("comment") or "",
        position=int(rule.get("handle", 0)),
    )
    conditions: list[Condition] = []
    found: list[Rule] = []
    for statement in statements:
        match statement:
            case {"match": {"op": operator, "left": left, "right": right}}:
                conditions += conditions_of(left, operator, right, sets)
            case {"vmap": {"key": key, "data": data}}:
                for condition, verdict in _verdict_map(key, data, sets):
                    found += _verdicts(replace(plain, conditions=(*conditions, condition)), verdict)
            case Mapping() if not UNDECIDED.isdisjoint(statement):
                conditions.append(Undecided(str(statement)))
            case Mapping():
                found += _verdicts(replace(plain, conditions=tuple(conditions)), statement)
    return found or [replace(plain, conditions=tuple(conditions))]


def _comparable(statement: Object) -> str:
    """The statement as JSON. How a cgroup is listed depends on where the process sees cgroup2, so it is left out."""
    match statement:
        case {"match": {"left": {"socket": {"key": key}}, "op": operator}}:
            statement = {"match": {"left": {"socket": {"key": key}}, "op": operator, "right": ""}}
    return json.dumps(statement, sort_keys=True)


def _verdicts(rule: Rule, statement: Object) -> Iterator[Rule]:
    for word, options in statement.items():
        match word, options:
            case "dnat", _:
                address, port = _destination(options or {})
                yield replace(rule, action=Action.DNAT, to_address=address, to_port=port)
            case "redirect", _:
                yield replace(rule, action=Action.REDIRECT, to_port=_destination(options or {})[1])
            case "jump" | "goto", {"target": target}:
                yield replace(rule, action=JUMPS[word], target_chain=target)
            case _ if word in VERDICTS:
                yield replace(rule, action=VERDICTS[word])


def _destination(options: Object) -> tuple[Address | None, int | None]:
    address, port = options.get("addr"), options.get("port")
    try:
        parsed = ip_address(address) if isinstance(address, str) else None
    except ValueError:
        parsed = None
    return parsed, port if isinstance(port, int) else None


def _verdict_map(key: Any, data: Any, sets: Mapping[str, Object]) -> Iterator[tuple[Condition, Object]]:
    if isinstance(data, str) and data.startswith("@"):
        pairs = sets.get(data[1:], {}).get("elem", [])
    else:
        pairs = data.get("set", []) if isinstance(data, Mapping) else []
    for pair in pairs:
        if isinstance(pair, list) and len(pair) == 2 and isinstance(pair[1], Mapping):
            yield Matches(key, "==", pair[0], sets), pair[1]
