"""Reads what ``iptables-save`` prints (both backends, both families)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from itertools import pairwise

from kiam.netfilter.interfaces import InterfacePattern
from kiam.netfilter.model import (
    Action,
    Address,
    Chain,
    ComesInOn,
    Condition,
    DestinationIn,
    DestinationIsLocal,
    Never,
    PortIn,
    ProtocolIs,
    Rule,
    SourceIn,
    StateIn,
    Table,
    Undecided,
)
from kiam.netfilter.xtables import saved_lines, split_words, without_counters

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
    | {"ECN", "MASQUERADE", "SNAT"}
)
"""Targets after which the packet goes on to the next rule, or which can't be in the chains looked at."""
PROTOCOLS = {"6": "tcp", "17": "udp", "1": "icmp", "58": "ipv6-icmp", "0": "all", "132": "sctp"}


def parse_iptables_save(text: str, tool: str) -> list[Table]:
    """The tables of one ``iptables-save``. Lines that aren't rules, chains or tables are left out.

    Raises ValueError for one that begins as such a line and can't be read.
    """
    try:
        return _tables(text, tool)
    except LookupError as error:
        raise ValueError(f"{tool}-save prints something else than rules: {error!r}") from error


def _tables(text: str, tool: str) -> list[Table]:
    family = "ip6" if tool.startswith("ip6") else "ip"
    tables: dict[str, tuple[dict[str, str], dict[str, list[Rule]]]] = {}
    policies: dict[str, str] = {}
    rules: dict[str, list[Rule]] = defaultdict(list)
    for kind, name, rest in saved_lines(text):
        if kind == "table":
            policies, rules = tables.setdefault(name, ({}, defaultdict(list)))
        elif kind == "chain":
            policies[name] = rest
        else:
            rules[name].append(parse_rule(rest, len(rules[name]) + 1))
    return [
        Table(
            tool, family, table, {name: _chain(table, name, policy, rules[name]) for name, policy in policies.items()}
        )
        for table, (policies, rules) in tables.items()
    ]


def _chain(table: str, name: str, policy: str, rules: Sequence[Rule]) -> Chain:
    hook, kind, priority = HOOKS.get((table, name), ("", "", 0))
    return Chain(name, tuple(rules), hook, kind, priority, Action.DROP if policy == "DROP" else Action.ACCEPT)


def parse_rule(line: str, position: int = 1) -> Rule:
    """One ``-A CHAIN ...`` line, with or without counters in front."""
    line = without_counters(line)
    chain, words = (found := split_words(line))[1], list(found[2:])
    conditions: list[Condition] = []
    while words:
        option, negated, values, words = _next_option(words)
        if option in {"-j", "--jump", "-g", "--goto"}:
            return _with_target(
                chain, position, tuple(conditions), line, values[0], option in {"-g", "--goto"}, values[1:]
            )
        condition = _condition(option, negated, values)
        if condition is not None:
            conditions.append(condition)
    return Rule(chain, position, tuple(conditions), Action.CONTINUE, line)


def _next_option(words: Sequence[str]) -> tuple[str, bool, list[str], list[str]]:
    rest = list(words)
    negated = rest[0] == "!"
    if negated:
        rest.pop(0)
    option = rest.pop(0)
    if option in {"-j", "--jump", "-g", "--goto"}:
        return option, False, rest, []
    values: list[str] = []
    # A comment may begin with a dash; it is always exactly one word, quoted or not.
    while rest and ((option == "--comment" and not values) or not (rest[0].startswith("-") or rest[0] == "!")):
        values.append(rest.pop(0))
    return option, negated, values, rest


def _condition(option: str, negated: bool, values: Sequence[str]) -> Condition | None:
    text = " ".join(["!"] * negated + [option, *values])
    if option in {"-m", "--match", "--comment", "--validmark", "--loose"} or not (values or option == "--invert"):
        # "-m rpfilter" says nothing here; its options follow and are looked at. "-m socket" may have none.
        return Undecided(text) if option in {"-m", "--match"} and values[:1] == ["socket"] else None
    value = values[0] if values else ""
    match option:
        case "-s" | "--source":
            return SourceIn(_networks(value), negated)
        case "-d" | "--destination":
            return DestinationIn(_networks(value), negated)
        case "-i" | "--in-interface":
            try:
                return ComesInOn((InterfacePattern.parse(value),), negated)
            except ValueError:
                return Undecided(text)
        case "-p" | "--protocol":
            protocol = PROTOCOLS.get(value, value)
            return None if protocol == "all" else ProtocolIs(frozenset({protocol}), negated)
        case "--dport" | "--destination-port" | "--dports" | "--destination-ports":
            return PortIn(_ranges(value), negated)
        case "--ctstate" | "--state":
            return StateIn(frozenset(value.split(",")), negated)
        case "--dst-type":
            kinds = value.split(",")
            return DestinationIsLocal(negated) if kinds == ["LOCAL"] else Undecided(text)
        case "--invert":
            return Never("the reverse path check fails")
        case "--match-set" if value.startswith("KUBE-") and not negated:
            return Never(f"{text}: kube-proxy's sets hold service addresses")
        case "-o" | "--out-interface":
            return Undecided(text)
        case _:
            return Undecided(text)


def _networks(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(ip_network(part, strict=False) for part in text.split(","))


def _ranges(text: str) -> tuple[tuple[int, int], ...]:
    found = []
    for part in text.split(","):
        first, _, last = part.partition(":")
        found.append((int(first or 0), int(last or 65535) if ":" in part else int(first)))
    return tuple(found)


def _with_target(
    chain: str,
    position: int,
    conditions: tuple[Condition, ...],
    line: str,
    target: str,
    goto: bool,
    options: Sequence[str],
) -> Rule:
    if target in ACTIONS:
        address, port = _destination(options)
        return Rule(chain, position, conditions, ACTIONS[target], line, to_address=address, to_port=port)
    if target == "CT":
        action = Action.NOTRACK if "--notrack" in options else Action.CONTINUE
        return Rule(chain, position, conditions, action, line)
    if target in SIDE_EFFECTS:
        return Rule(chain, position, conditions, Action.CONTINUE, line)
    return Rule(chain, position, conditions, Action.GOTO if goto else Action.JUMP, line, target_chain=target)


def _destination(options: Sequence[str]) -> tuple[Address | None, int | None]:
    for option, value in pairwise(options):
        if option == "--to-ports":
            return None, int(value.split("-")[0])
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
        return ip_address(host), int(port) if port.isdigit() else None
    except ValueError:
        return None, int(port) if port.isdigit() else None
