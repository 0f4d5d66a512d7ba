"""Whether rules as iptables prints them are read right: what matches a pod's packet, and what can't be told."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiam.netfilter.conditions import Tri
from kiam.netfilter.iptables_listing import make_rule, parse_rule, parse_tables, specification, split_words
from kiam.netfilter.model import Action
from tests.unit.verify.listings import RULE, packet, save

YES, NO, MAYBE = Tri.YES, Tri.NO, Tri.MAYBE


@pytest.mark.parametrize(
    ("words", "matches"),
    [
        ("", YES),
        ("-d 169.254.169.254/32", YES),
        ("-d 169.254.0.0/16", YES),
        ("-d 0.0.0.0/0", YES),
        ("! -d 10.0.0.0/8", YES),
        ("-d 10.0.0.0/8", NO),
        ("! -d 169.254.169.254/32", NO),
        ("-i cali+", YES),
        ("-i cali0", YES),
        ("-i cali1", NO),
        ("! -i eth0", YES),
        ("! -i cali+", NO),
        ("-i +", YES),
        ("-p tcp", YES),
        ("-p 6", YES),
        ("-p udp", NO),
        ("! -p udp", YES),
        ("-p tcp -m tcp --dport 80", YES),
        ("-p tcp -m tcp --dport 443", NO),
        ("-p tcp -m tcp --dport 1:1024", YES),
        ("-p tcp -m tcp --dport :79", NO),
        ("-p tcp -m tcp --dport 80:", YES),
        ("-p tcp -m tcp ! --dport 80", NO),
        ("-p tcp -m multiport --dports 22,80,443", YES),
        ("-p tcp -m multiport --dports 22,8000:9000", NO),
        ('-m comment --comment "a -j DROP b"', YES),
        ("-m comment --comment -x", YES),
        ("-m addrtype --dst-type LOCAL", NO),
        ("-m addrtype ! --dst-type LOCAL", YES),
        ("-m addrtype --dst-type BROADCAST", MAYBE),
        ("-m conntrack --ctstate NEW", YES),
        ("-m conntrack --ctstate RELATED,ESTABLISHED", NO),
        ("-m conntrack --ctstate INVALID", NO),
        ("-m state --state NEW,RELATED", YES),
        ("-m conntrack ! --ctstate NEW", NO),
        ("-s 0.0.0.0/0", YES),
        ("-s 10.42.0.0/16", MAYBE),
        ("! -s 10.42.0.0/16", MAYBE),
        ("-m mark --mark 0x4000/0x4000", MAYBE),
        ("-m set --match-set allowed src", MAYBE),
        ("-m set --match-set KUBE-CLUSTER-IP dst,dst", NO),
        ("-m rpfilter --validmark --invert", NO),
        ("-m statistic --mode random --probability 0.5", MAYBE),
        ("-m socket", MAYBE),
        ("-d 10.0.0.0/8 -m mark --mark 0x1", NO),
        ("-m recent --rcheck --seconds 60 --name X", MAYBE),
    ],
)
def test_a_match_is_decided_or_left_open(words: str, matches: Tri) -> None:
    assert parse_rule(f"-A PREROUTING {words} -j DROP".replace("  ", " ")).matches(packet()) is matches


@pytest.mark.parametrize(
    ("target", "action", "to"),
    [
        ("-j ACCEPT", Action.ACCEPT, (None, None)),
        ("-j DROP", Action.DROP, (None, None)),
        ("-j REJECT --reject-with tcp-reset", Action.REJECT, (None, None)),
        ("-j RETURN", Action.RETURN, (None, None)),
        ("-j DNAT --to-destination 10.0.0.1:8181", Action.DNAT, ("10.0.0.1", 8181)),
        ("-j DNAT --to-destination 10.0.0.1", Action.DNAT, ("10.0.0.1", None)),
        ("-j DNAT --to-destination [fd00::1]:8181", Action.DNAT, ("fd00::1", 8181)),
        ("-j DNAT --to-destination 10.0.0.1-10.0.0.9:80", Action.DNAT, (None, 80)),
        ("-j REDIRECT --to-ports 3128", Action.REDIRECT, (None, 3128)),
        ("-j TPROXY --on-port 1 --on-ip 0.0.0.0 --tproxy-mark 0x1", Action.TPROXY, (None, None)),
        ("-j CT --notrack", Action.NOTRACK, (None, None)),
        ("-j CT --zone 1", Action.CONTINUE, (None, None)),
        ("-j NOTRACK", Action.NOTRACK, (None, None)),
        ('-j LOG --log-prefix "a b "', Action.CONTINUE, (None, None)),
        ("-j MARK --set-xmark 0x4000/0x4000", Action.CONTINUE, (None, None)),
        ("-j NFQUEUE --queue-num 1", Action.UNDECIDED, (None, None)),
        ("-j KUBE-SERVICES", Action.JUMP, (None, None)),
        ("-g KUBE-SERVICES", Action.GOTO, (None, None)),
        ("", Action.CONTINUE, (None, None)),
    ],
)
def test_a_target_is_read(target: str, action: Action, to: tuple[str | None, int | None]) -> None:
    rule = parse_rule(f"-A PREROUTING -p tcp {target}".strip())
    assert rule.action is action
    assert (str(rule.to_address) if rule.to_address else None, rule.to_port) == to


def test_a_listing_gives_tables_chains_hooks_and_policies() -> None:
    listing = "# Generated\n" + save(RULE, chains=["KUBE-SERVICES"]) + save(table="filter", policy="DROP")
    nat, filter_ = parse_tables(listing, "iptables-legacy").values()
    assert (nat.name, nat.family, nat.tool) == ("nat", "ip", "iptables-legacy")
    prerouting = nat.chains["PREROUTING"]
    assert (prerouting.hook, prerouting.kind, prerouting.priority) == ("prerouting", "nat", -100)
    assert nat.chains["KUBE-SERVICES"].hook == ""
    assert [rule.text for rule in prerouting.rules] == [RULE]
    assert filter_.chains["INPUT"].policy is Action.DROP
    assert parse_tables(save(), "ip6tables-nft")["nat"].family == "ip6"


def test_a_rules_counters_are_read_wherever_they_stand() -> None:
    saved, verbose = "[3:180] -A PREROUTING -p tcp -j ACCEPT", "-A PREROUTING -p tcp -c 3 180 -j ACCEPT"
    for line in (saved, verbose):
        rule = parse_rule(line)
        assert (rule.packets, rule.bytes, rule.text) == (3, 180, "-A PREROUTING -p tcp -j ACCEPT")
        assert rule == parse_rule("-A PREROUTING -p tcp -j ACCEPT")


def test_a_comment_that_looks_like_the_counters_option_is_a_comment() -> None:
    rule = parse_rule('-A PREROUTING -m comment --comment "-c" -c 12 750 -j ACCEPT')
    assert rule.parts == ("-m", "comment", "--comment", "-c", "-j", "ACCEPT")
    assert (rule.comment, rule.packets, rule.bytes) == ("-c", 12, 750)


def test_the_listing_of_one_table_is_read_with_its_empty_chains() -> None:
    listing = "-P PREROUTING ACCEPT -c 9 540\n-N KIAM-INSTALLED\n-A PREROUTING -p tcp -c 3 180 -j ACCEPT\n"
    table = parse_tables(listing, "iptables-nft", "nat")["nat"]
    assert [rule.packets for rule in table.rules("PREROUTING")] == [3]
    assert list(table.chains) == ["PREROUTING", "KIAM-INSTALLED"]
    assert len(table.rules("KIAM-INSTALLED")) == 0


@given(st.lists(st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1), min_size=1))
def test_words_read_back_whatever_is_quoted(words: list[str]) -> None:
    rule = make_rule("X", *words)
    assert split_words(specification(rule)) == rule.parts


@pytest.mark.parametrize("words", ["-d nowhere", "-p tcp --dport x", "-i a/b", "!", "-f"])
def test_what_can_not_be_read_is_neither_a_match_nor_none(words: str) -> None:
    assert parse_rule(f"-A PREROUTING {words} -j DROP").matches(packet()) is MAYBE


def test_nonsense_is_no_table() -> None:
    assert parse_tables("", "iptables-nft") == {}
    assert parse_tables("# Table `nat' is incompatible, use 'nft' tool.\n", "iptables-nft") == {}


def test_what_a_comment_holds_is_no_line_of_its_own() -> None:
    for separator in "\u2028\u2029\x0b\x0c\x1c\x85":
        line = f'-A PREROUTING -m comment --comment "a{separator}-A PREROUTING -j DROP" -p tcp -j ACCEPT'
        (table,) = parse_tables(f"*nat\n:PREROUTING ACCEPT [0:0]\n{line}\nCOMMIT\n", "iptables-nft").values()
        assert [rule.action for rule in table.chains["PREROUTING"].rules] == [Action.ACCEPT]


@settings(deadline=None)
@given(st.text(alphabet=st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1, max_size=40))
def test_no_comment_is_taken_for_a_match_or_a_target(comment: str) -> None:
    plain = parse_rule(RULE)
    # As iptables-save writes it (libxtables, xtables_save_string).
    quoted = re.sub(r"([\"'\\])", r"\\\1", comment)
    commented = parse_rule(RULE.replace("-p tcp", f'-m comment --comment "{quoted}" -p tcp', 1))
    assert (commented.conditions, commented.action, commented.to_port) == (
        plain.conditions,
        plain.action,
        plain.to_port,
    )


@settings(deadline=None)
@given(st.integers(0, 65535), st.integers(0, 65535), st.booleans())
def test_port_ranges_match_what_is_in_them(first: int, last: int, negated: bool) -> None:
    rule = parse_rule(f"-A INPUT -p tcp -m tcp {'! ' * negated}--dport {first}:{last} -j DROP")
    assert (rule.matches(packet()) is YES) is ((first <= 80 <= last) is not negated)
