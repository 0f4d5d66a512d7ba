"""What a match of libnftables' JSON asks of a packet (libnftables-json(5))."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

from kiam.netfilter.conditions import (
    Address,
    ComesInOn,
    Condition,
    DestinationIn,
    PortIn,
    ProtocolIs,
    SourceIn,
    Tri,
)
from kiam.netfilter.interfaces import InterfacePattern
from kiam.netfilter.packets import Packet

PROTOCOL_NUMBERS = {1: "icmp", 6: "tcp", 17: "udp", 58: "ipv6-icmp", 132: "sctp"}
Object = Mapping[str, Any]


def conditions_of(left: Any, operator: str, right: Any, sets: Mapping[str, Object]) -> list[Condition]:
    """A match in the words of iptables, where it has such words, so that near misses are told alike for both."""
    return _simplified(left, operator, right) or [Matches(left, operator, right, sets)]


def _simplified(left: Any, operator: str, right: Any) -> list[Condition]:
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
            return packet.interface.single is not None, packet.interface.single
        case {"meta": {"key": "l4proto"}}:
            return True, packet.protocol
        case {"meta": {"key": "nfproto"}}:
            return True, "ipv4" if packet.family == "ip" else "ipv6"
        case {"fib": {"result": "type", "flags": flags}} if "daddr" in flags and "iif" not in flags:
            return True, "local" if packet.local else "unicast"
        case {"ct": {"key": "state"}}:
            return packet.ordinary, "new"
        case {"ct": {"key": "status"}}:
            return packet.ordinary, "dnat" if packet.translated else "none"
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
