"""Whether rulesets in libnftables' JSON are read right."""

from __future__ import annotations

from typing import Any

import pytest

from kiam.netfilter.conditions import Tri
from kiam.netfilter.model import Table
from kiam.netfilter.nft_listing import parse_nft_ruleset
from kiam.verify.checks.precedence import check_firewall, check_precedence
from kiam.verify.checks.redirect import check_redirect
from kiam.verify.checks.redirects import redirects
from kiam.verify.results import Status
from tests.unit.verify.listings import FIXES, PACKETS, WANTED, nat, packet

YES, NO, MAYBE = Tri.YES, Tri.NO, Tri.MAYBE
DADDR = {"payload": {"protocol": "ip", "field": "daddr"}}
DPORT = {"payload": {"protocol": "tcp", "field": "dport"}}
TH_DPORT = {"payload": {"protocol": "th", "field": "dport"}}
IIFNAME = {"meta": {"key": "iifname"}}
L4PROTO = {"meta": {"key": "l4proto"}}
LOCAL = {"fib": {"result": "type", "flags": ["daddr"]}}
STATE = {"ct": {"key": "state"}}


def match(left: object, right: object, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


REDIRECT = [
    match(IIFNAME, "cali*"),
    match(DADDR, "169.254.169.254"),
    match(DPORT, 80),
    {"counter": None},
    {"dnat": {"family": "ip", "addr": "10.0.0.1", "port": 8181}},
]


def ruleset(
    *rules: list[dict[str, Any]],
    table: str = "mine",
    kind: str = "nat",
    hook: str = "prerouting",
    priority: int = -100,
    policy: str = "accept",
    more: tuple[dict[str, Any], ...] = (),
    chain: str = "pre",
) -> list[Table]:
    place = {"family": "ip", "table": table}
    objects: list[dict[str, Any]] = [
        {"metainfo": {"json_schema_version": 1}},
        {"table": {"family": "ip", "name": table, "handle": 1}},
        *more,
        {
            "chain": {
                **place,
                "name": chain,
                "handle": 1,
                "type": kind,
                "hook": hook,
                "prio": priority,
                "policy": policy,
            }
        },
        *(
            {"rule": {**place, "chain": chain, "handle": number, "expr": rule}}
            for number, rule in enumerate(rules, start=7)
        ),
    ]
    return parse_nft_ruleset({"nftables": objects})


def named(name: str, elements: list[Any], **more: object) -> dict[str, Any]:
    kind = "map" if "map" in more else "set"
    return {kind: {"family": "ip", "table": "mine", "name": name, "type": "x", "elem": elements, **more}}


@pytest.mark.parametrize(
    ("statement", "matches"),
    [
        (match(DADDR, "169.254.169.254"), YES),
        (match(DADDR, "10.0.0.1"), NO),
        (match(DADDR, "10.0.0.1", "!="), YES),
        (match(DADDR, {"prefix": {"addr": "169.254.0.0", "len": 16}}), YES),
        (match(DADDR, {"prefix": {"addr": "10.0.0.0", "len": 8}}), NO),
        (match(DADDR, {"range": ["169.254.0.1", "169.254.255.255"]}), YES),
        (match(DADDR, {"set": ["10.0.0.1", "169.254.169.254"]}), YES),
        (match(DADDR, {"set": [{"prefix": {"addr": "169.254.169.0", "len": 24}}]}, "!="), NO),
        (match(DADDR, "@services"), YES),
        (match(DADDR, "@others"), NO),
        (match(DADDR, "@nobody-knows"), MAYBE),
        (match({"payload": {"protocol": "ip6", "field": "daddr"}}, "fd00:ec2::254"), NO),
        (match({"payload": {"protocol": "ip", "field": "saddr"}}, "10.0.0.1"), MAYBE),
        (match(IIFNAME, "cali*"), YES),
        (match(IIFNAME, "cali0"), YES),
        (match(IIFNAME, "eth0"), NO),
        (match(IIFNAME, "eth0", "!="), YES),
        (match(IIFNAME, {"set": ["eth0", "cali0"]}), YES),
        (match(L4PROTO, "tcp"), YES),
        (match(L4PROTO, 17), NO),
        (match(L4PROTO, {"set": ["tcp", "udp"]}), YES),
        (match({"payload": {"protocol": "ip", "field": "protocol"}}, "tcp"), YES),
        (match(DPORT, 80), YES),
        (match(DPORT, {"range": [1, 79]}), NO),
        (match({"payload": {"protocol": "udp", "field": "dport"}}, 80), NO),
        (match(TH_DPORT, 80), YES),
        (match(LOCAL, "local"), NO),
        (match(STATE, "new"), YES),
        (match(STATE, ["established", "related"], "in"), NO),
        (match(STATE, {"set": ["new", "untracked"]}), YES),
        (match({"meta": {"key": "mark"}}, 1), MAYBE),
        (match({"meta": {"key": "nfproto"}}, "ipv4"), YES),
        (match({"meta": {"key": "nfproto"}}, "ipv6"), NO),
        (match({"socket": {"key": "cgroupv2", "level": 1}}, "kubepods"), MAYBE),
        (match({"concat": [DADDR, L4PROTO, TH_DPORT]}, {"concat": ["169.254.169.254", "tcp", 80]}), YES),
        (match({"concat": [DADDR, TH_DPORT]}, {"concat": ["169.254.169.254", 443]}), NO),
        ({"limit": {"rate": 1, "per": "second"}}, MAYBE),
    ],
)
def test_a_match_is_decided_or_left_open(statement: dict[str, Any], matches: Tri) -> None:
    more = (
        named("services", ["10.96.0.1", {"prefix": {"addr": "169.254.0.0", "len": 16}}]),
        named("others", [{"elem": {"val": "10.96.0.1", "counter": None}}]),
    )
    (table,) = ruleset([statement, {"drop": None}], more=more)
    assert table.chains["pre"].rules[0].matches(packet()) is matches


def test_the_rule_in_nftables_words_is_found() -> None:
    found = check_redirect(ruleset(REDIRECT), PACKETS, WANTED, FIXES)
    assert [line.status for line in found] == [Status.PASS]
    assert found[0].seen == (
        'nft mine: iifname "cali*" ip daddr 169.254.169.254 tcp dport 80 counter dnat to 10.0.0.1:8181'
    )


@pytest.mark.parametrize(
    ("index", "statement", "told"),
    [
        (0, match(IIFNAME, "eni*"), "interface eni+ instead of cali+"),
        (1, match(DADDR, "169.254.169.253"), "address 169.254.169.253/32"),
        (2, match(DPORT, 443), "destination port 443"),
        (4, {"dnat": {"addr": "10.0.0.1", "port": 3100}}, "to 10.0.0.1:3100"),
        (4, {"redirect": {"port": 8181}}, "REDIRECT to port 8181"),
    ],
)
def test_a_near_miss_in_nftables_words_is_told(index: int, statement: dict[str, Any], told: str) -> None:
    wrong = [*REDIRECT]
    wrong[index] = statement
    found = {line.check: line for line in check_redirect(ruleset(wrong), PACKETS, WANTED, FIXES)}
    assert found["redirect rule"].status is Status.FAIL
    assert told in found["near miss"].seen
    assert found["near miss"].fix_text.endswith(" && nft delete rule ip mine pre handle 7")


@pytest.mark.parametrize(("priority", "status"), [(-110, Status.FAIL), (-90, Status.PASS)])
def test_which_table_is_first_is_a_matter_of_priority(priority: int, status: Status) -> None:
    other = [match(DPORT, 80), {"dnat": {"addr": "10.9.9.9", "port": 80}}]
    from tests.unit.verify.listings import RULE

    listing = [*nat(RULE), *ruleset(other, priority=priority)]
    (line,) = check_precedence(listing, PACKETS, WANTED, FIXES)
    assert line.status is status
    if status is Status.FAIL:
        words = 'iifname "cali*" ip daddr 169.254.169.254 tcp dport 80 accept'
        assert line.fix_text == f"nft insert rule ip mine pre handle 7 '{words}'"


def test_a_verdict_map_sends_the_packet_where_its_key_says() -> None:
    chain = {"chain": {"family": "ip", "table": "mine", "name": "endpoint", "handle": 2}}
    inside = {
        "rule": {
            "family": "ip",
            "table": "mine",
            "chain": "endpoint",
            "handle": 5,
            "expr": [{"dnat": {"addr": "10.9.9.9"}}],
        }
    }
    key = {"concat": [DADDR, L4PROTO, TH_DPORT]}

    def listing(address: str) -> list[Table]:
        elements = [[{"concat": [address, "tcp", 80]}, {"goto": {"target": "endpoint"}}]]
        verdicts = named("services", elements, map="verdict")
        rule = [{"vmap": {"key": key, "data": "@services"}}]
        return ruleset(rule, REDIRECT, more=(chain, inside, verdicts))

    assert check_precedence(listing("10.96.0.1"), PACKETS, WANTED, FIXES)[0].status is Status.PASS
    assert check_precedence(listing("169.254.169.254"), PACKETS, WANTED, FIXES)[0].status is Status.FAIL


def test_a_policy_to_drop_is_opened_with_nft() -> None:
    listing = ruleset(kind="filter", hook="input", priority=0, policy="drop")
    (line,) = check_firewall(listing, PACKETS, WANTED)
    assert line.status is Status.FAIL
    assert line.fix_text == ("nft insert rule ip mine pre 'iifname \"cali*\" ip daddr 10.0.0.1 tcp dport 8181 accept'")


def test_what_iptables_nft_keeps_is_left_to_iptables_save() -> None:
    assert ruleset(REDIRECT, table="nat", chain="PREROUTING") == []
    assert [table.name for table in ruleset(REDIRECT, table="nat", chain="prerouting")] == ["nat"]


def test_a_map_without_elements_and_unknown_statements_are_no_error() -> None:
    listing = ruleset([{"vmap": {"key": DADDR, "data": "@gone"}}, {"something": {"new": 1}}], [])
    assert list(redirects(listing, WANTED)) == []
    assert parse_nft_ruleset({}) == []
