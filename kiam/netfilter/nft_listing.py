"""Reads libnftables' JSON of a whole ruleset (libnftables-json(5)).

Tables that iptables-nft keeps show up here too, with their matches hidden behind ``xt``; they are read from
``iptables-nft-save`` instead and left out here.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

from kiam.netfilter.interfaces import InterfacePattern
from kiam.netfilter.model import (
    Action,
    Address,
    Chain,
    ComesInOn,
    Condition,
    DestinationIn,
    PortIn,
    ProtocolIs,
    Rule,
    SourceIn,
    Table,
    Tri,
    Undecided,
)
from kiam.netfilter.packets import Packet

IPTABLES_TABLES = frozenset({"raw", "mangle", "nat", "filter", "security"})
PROTOCOL_NUMBERS = {1: "icmp", 6: "tcp", 17: "udp", 58: "ipv6-icmp", 132: "sctp"}
Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Matches:
    """``left op right`` over a packet, with named sets looked up."""

    left: Any
    operator: str
    right: Any
    sets: Mapping[str, Object]

    def holds(self, packet: Packet) -> Tri:
        """See Condition."""
        if self.operator not in {"==", "!=", "in"}:
            return Tri.MAYBE
        known, value = value_of(self.left, packet)
        if not known:
            return Tri.MAYBE
        return contains(self.right, value, self.sets).negated_if(self.operator == "!=")


def value_of(expression: Any, packet: Packet) -> tuple[bool, Any]:
    """Whether an expression is known for the packet, and its value: addresses, port numbers, names."""
    if not isinstance(expression, Mapping):
        return False, None
    match expression:
        case {"payload": {"protocol": ("ip" | "ip6") as family, "field": "daddr"}}:
            # A daddr of the other family makes the rule not match at all; such a value is in no set.
            return True, packet.destination if family == packet.family else None
        case {"payload": {"protocol": ("ip" | "ip6") as family, "field": ("protocol" | "nexthdr")}}:
            return True, packet.protocol if family == packet.family else None
        case {"payload": {"protocol": ("tcp" | "udp" | "sctp" | "dccp" | "udplite") as protocol, "field": "dport"}}:
            return True, packet.port if protocol == packet.protocol else None
        case {"payload": {"protocol": "th", "field": "dport"}}:
            return True, packet.port
        case {"meta": {"key": ("iifname" | "iif")}}:
            return True, packet.interface
        case {"meta": {"key": "l4proto"}}:
            return True, packet.protocol
        case {"meta": {"key": "nfproto"}}:
            return True, "ipv4" if packet.family == "ip" else "ipv6"
        case {"fib": {"result": "type", "flags": flags}} if "daddr" in flags and "iif" not in flags:
            return True, "local" if packet.local else "unicast"
        case {"ct": {"key": "state"}}:
            return True, "new"
        case {"ct": {"key": "status"}}:
            return True, "dnat" if packet.translated else "none"
        case {"concat": parts}:
            values = [value_of(part, packet) for part in parts]
            # One part that can't match (None) settles it even if others aren't known.
            return all(known for known, _ in values), tuple(value for _, value in values)
        case _:
            return False, None


def contains(right: Any, value: Any, sets: Mapping[str, Object]) -> Tri:
    """Whether a literal, range, prefix, anonymous or named set holds the value."""
    if value is None:
        return Tri.NO
    if isinstance(right, str) and right.startswith("@"):
        named = sets.get(right[1:])
        return Tri.MAYBE if named is None else _in_any(_elements(named), value, sets)
    if isinstance(right, Mapping):
        match right:
            case {"set": elements}:
                return _in_any(elements if isinstance(elements, list) else [elements], value, sets)
            case {"elem": {"val": inner}}:
                return contains(inner, value, sets)
            case {"prefix": {"addr": address, "len": length}}:
                return _yes(isinstance(value, Address) and value in ip_network(f"{address}/{length}", strict=False))
            case {"range": [first, last]}:
                return _between(first, last, value)
            case {"concat": parts} if isinstance(value, tuple):
                return min(
                    (contains(part, piece, sets) for part, piece in zip(parts, value, strict=False)), default=Tri.MAYBE
                )
            case _:
                return Tri.MAYBE
    if isinstance(right, list):
        return _in_any(right, value, sets)
    return _yes(_equals(right, value))


def _elements(named: Object) -> Sequence[Any]:
    elements = named.get("elem", [])
    # A map's elements are [key, data] pairs; only keys are looked up here.
    return [element[0] if "map" in named and isinstance(element, list) else element for element in elements]


def _in_any(elements: Sequence[Any], value: Any, sets: Mapping[str, Object]) -> Tri:
    return max((contains(element, value, sets) for element in elements), default=Tri.NO)


def _yes(hit: bool) -> Tri:
    return Tri.YES if hit else Tri.NO


def _between(first: Any, last: Any, value: Any) -> Tri:
    if isinstance(value, int) and isinstance(first, int) and isinstance(last, int):
        return _yes(first <= value <= last)
    if isinstance(value, Address):
        low, high = ip_address(first), ip_address(last)
        return _yes(low.version == value.version and int(low) <= int(value) <= int(high))
    return Tri.MAYBE


def _equals(literal: Any, value: Any) -> bool:
    if isinstance(value, Address):
        try:
            return bool(ip_address(literal) == value)
        except ValueError:
            return False
    if isinstance(literal, int) and isinstance(value, str):
        return PROTOCOL_NUMBERS.get(literal) == value
    if isinstance(literal, str) and isinstance(value, str) and literal.endswith("*"):
        return value.startswith(literal[:-1].removesuffix("\\"))
    if literal == "icmpv6":
        literal = "ipv6-icmp"
    return bool(literal == value)


def parse_nft_ruleset(ruleset: Object) -> list[Table]:
    """The tables of ``{"nftables": [...]}`` that aren't iptables-nft's. Raises ValueError if it is something else."""
    try:
        return _tables(ruleset)
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"nft's listing has another form than is known: {error!r}") from error


def _tables(ruleset: Object) -> list[Table]:
    objects = ruleset.get("nftables", [])
    sets: dict[tuple[str, str], dict[str, Object]] = defaultdict(dict)
    for entry in objects:
        for kind in ("set", "map"):
            if kind in entry:
                named = entry[kind]
                # A map is told from a set by its "map" key, which says the data's type.
                sets[named["family"], named["table"]][named["name"]] = named
    rules: dict[tuple[str, str, str], list[Rule]] = defaultdict(list)
    for entry in objects:
        if "rule" in entry:
            rule = entry["rule"]
            place = rule["family"], rule["table"], rule["chain"]
            rules[place].extend(parse_rule(rule, sets[rule["family"], rule["table"]]))
    chains: dict[tuple[str, str], dict[str, Chain]] = defaultdict(dict)
    for entry in objects:
        if "chain" in entry:
            chain = entry["chain"]
            place = chain["family"], chain["table"], chain["name"]
            chains[place[:2]][chain["name"]] = Chain(
                chain["name"],
                tuple(rules[place]),
                chain.get("hook", ""),
                chain.get("type", ""),
                int(chain.get("prio", 0)),
                Action.DROP if chain.get("policy") == "drop" else Action.ACCEPT,
            )
    return [
        Table("nft", family, name, chains[family, name])
        for family, name in ((e["table"]["family"], e["table"]["name"]) for e in objects if "table" in e)
        if family in {"ip", "ip6", "inet"} and not _is_iptables(family, name, objects)
    ]


def _is_iptables(family: str, name: str, objects: Sequence[Object]) -> bool:
    """Whether iptables-nft keeps that table: its name is one of the five and its base chains are in capitals."""
    if family == "inet" or name not in IPTABLES_TABLES:
        return False
    base = [
        entry["chain"]["name"]
        for entry in objects
        if "chain" in entry
        and (entry["chain"]["family"], entry["chain"]["table"]) == (family, name)
        and "hook" in entry["chain"]
    ]
    return all(chain.isupper() for chain in base)


def parse_rule(rule: Object, sets: Mapping[str, Object]) -> list[Rule]:
    """One rule as one or, where it ends in a verdict map, several of ours."""
    conditions: list[Condition] = []
    text = " ".join(filter(None, map(in_words, rule.get("expr", []))))
    handle = int(rule.get("handle", 0))

    def made(action: Action, more: Sequence[Condition] = (), **target: Any) -> Rule:
        return Rule(rule["chain"], handle, (*conditions, *more), action, text, **target)

    done: list[Rule] = []
    for statement in rule.get("expr", []):
        match statement:
            case {"match": {"op": operator, "left": left, "right": right}}:
                conditions.extend(_simplified(left, operator, right) or [Matches(left, operator, right, sets)])
            case {"accept": _}:
                done.append(made(Action.ACCEPT))
            case {"drop": _}:
                done.append(made(Action.DROP))
            case {"reject": _}:
                done.append(made(Action.REJECT))
            case {"return": _}:
                done.append(made(Action.RETURN))
            case {"notrack": _}:
                done.append(made(Action.NOTRACK))
            case {"tproxy": _}:
                done.append(made(Action.TPROXY))
            case {"queue": _}:
                done.append(made(Action.UNDECIDED))
            case {"jump": {"target": target}}:
                done.append(made(Action.JUMP, target_chain=target))
            case {"goto": {"target": target}}:
                done.append(made(Action.GOTO, target_chain=target))
            case {"dnat": options}:
                address, port = _destination(options or {})
                done.append(made(Action.DNAT, to_address=address, to_port=port))
            case {"redirect": options}:
                _, port = _destination(options or {})
                done.append(made(Action.REDIRECT, to_port=port))
            case {"vmap": {"key": key, "data": data}}:
                done.extend(_verdict_map(made, key, data, sets))
            case {"limit": _} | {"ct count": _} | {"xt": _} | {"quota": _}:
                conditions.append(Undecided(str(statement)))
            case _:
                continue
    return done or [made(Action.CONTINUE)]


def in_words(statement: Any) -> str:
    """A statement about as ``nft list`` prints it, for people; JSON where it is a rare one."""
    match statement:
        case {"match": {"op": operator, "left": left, "right": right}}:
            return " ".join(filter(None, [_value(left), "" if operator in {"==", "in"} else operator, _value(right)]))
        case {"counter": str(name)}:
            return f'counter name "{name}"'
        case {"counter": _}:
            return "counter"
        case {"dnat": {"addr": str(address), **more}}:
            return f"dnat to {address}" + (f":{more['port']}" if "port" in more else "")
        case {"redirect": {"port": port}}:
            return f"redirect to :{port}"
        case {"jump": {"target": target}}:
            return f"jump {target}"
        case {"goto": {"target": target}}:
            return f"goto {target}"
        case {"vmap": {"key": key, "data": data}}:
            return f"{_value(key)} vmap {_value(data)}"
        case {"accept": _} | {"drop": _} | {"return": _} | {"reject": _} | {"notrack": _} | {"masquerade": _}:
            return str(next(iter(statement)))
        case _:
            return json.dumps(statement, separators=(",", ":"))


def _value(value: Any) -> str:
    match value:
        case {"payload": {"protocol": protocol, "field": name}}:
            return f"{protocol} {name}"
        case {"meta": {"key": key}}:
            return str(key)
        case {"ct": {"key": key}}:
            return f"ct {key}"
        case {"fib": {"result": result, "flags": flags}}:
            return f"fib {' . '.join(flags)} {result}"
        case {"prefix": {"addr": address, "len": length}}:
            return f"{address}/{length}"
        case {"range": [first, last]}:
            return f"{first}-{last}"
        case {"concat": parts}:
            return " . ".join(map(_value, parts))
        case {"set": [*parts]}:
            return "{ " + ", ".join(map(_value, parts)) + " }"
        case [*parts]:
            return ",".join(map(_value, parts))
        case str() if value.endswith("*"):
            return f'"{value}"'
        case str() | int():
            return str(value)
        case _:
            return json.dumps(value, separators=(",", ":"))


def _simplified(left: Any, operator: str, right: Any) -> list[Condition]:
    """The match in the words of iptables, where it has such words; so near misses are told alike for both."""
    if operator not in {"==", "!="}:
        return []
    negated = operator == "!="
    values = right["set"] if isinstance(right, Mapping) and isinstance(right.get("set"), list) else [right]
    try:
        match left:
            case {"payload": {"protocol": ("ip" | "ip6"), "field": "daddr"}}:
                return [DestinationIn(tuple(_network(value) for value in values), negated)]
            case {"payload": {"protocol": ("ip" | "ip6"), "field": "saddr"}}:
                return [SourceIn(tuple(_network(value) for value in values), negated)]
            case {"meta": {"key": "iifname"}} if all(isinstance(value, str) for value in values):
                patterns = [value[:-1] + "+" if value.endswith("*") else value for value in values]
                return [ComesInOn(tuple(InterfacePattern.parse(pattern) for pattern in patterns), negated)]
            case {"meta": {"key": "l4proto"}} if all(isinstance(value, str | int) for value in values):
                names = {PROTOCOL_NUMBERS.get(value, "?") if isinstance(value, int) else value for value in values}
                return [ProtocolIs(frozenset(names), negated)]
            case {"payload": {"protocol": ("tcp" | "udp" | "th") as protocol, "field": "dport"}}:
                ports = PortIn(tuple(_port_range(value) for value in values), negated)
                return [ports] if protocol == "th" else [ProtocolIs(frozenset({protocol})), ports]
            case _:
                return []
    except (TypeError, ValueError):
        return []


def _network(value: Any) -> Any:
    match value:
        case str() if not value.startswith("@"):
            return ip_network(value)
        case {"prefix": {"addr": address, "len": length}}:
            return ip_network(f"{address}/{length}", strict=False)
        case _:
            raise TypeError(f"not a literal network: {value}")


def _port_range(value: Any) -> tuple[int, int]:
    match value:
        case int():
            return value, value
        case {"range": [int(first), int(last)]}:
            return first, last
        case _:
            raise TypeError(f"not a literal port: {value}")


def _destination(options: Object) -> tuple[Address | None, int | None]:
    address, port = options.get("addr"), options.get("port")
    try:
        parsed = ip_address(address) if isinstance(address, str) else None
    except ValueError:
        parsed = None
    return parsed, port if isinstance(port, int) else None


def _verdict_map(made: Any, key: Any, data: Any, sets: Mapping[str, Object]) -> list[Rule]:
    if isinstance(data, str) and data.startswith("@"):
        pairs = sets.get(data[1:], {}).get("elem", [])
    else:
        pairs = data.get("set", []) if isinstance(data, Mapping) else []
    rules = []
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[1], Mapping):
            continue
        condition = Matches(key, "==", pair[0], sets)
        for word, target in pair[1].items():
            if word in {"jump", "goto"}:
                rules.append(made(Action(word), [condition], target_chain=target["target"]))
            elif word in {"accept", "drop", "return", "continue"}:
                rules.append(made(Action(word), [condition]))
    return rules
