"""What takes a pod's packet before the redirect, drops it behind it, or takes the host's: each by its listing."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiam.netfilter.interfaces import InterfacePattern
from kiam.netfilter.walk import walk
from kiam.verify.checks.host import check_host
from kiam.verify.checks.precedence import ahead_of_redirect, check_firewall, check_precedence
from kiam.verify.results import Status
from tests.unit.verify.listings import FIXES, PACKETS, RULE, WANTED, nat, packet, save, tables

METADATA = "-d 169.254.169.254/32 -p tcp -m tcp --dport 80"
# No limit on time: the machine is busy with other tests.
unhurried = settings(deadline=None)


AHEAD = {
    "-A PREROUTING -j ACCEPT": Status.FAIL,
    "-A PREROUTING -j RETURN": Status.FAIL,
    "-A PREROUTING -p tcp -j DNAT --to-destination 10.9.9.9": Status.FAIL,
    "-A PREROUTING -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 3128": Status.FAIL,
    "-A PREROUTING -m mark --mark 0x1 -j ACCEPT": Status.WARN,
    "-A PREROUTING -s 10.1.0.0/16 -p tcp -j DNAT --to-destination 10.9.9.9": Status.WARN,
    "-A PREROUTING -d 10.96.0.0/12 -p tcp -j DNAT --to-destination 10.9.9.9": Status.PASS,
    "-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER": Status.PASS,
    "-A PREROUTING -p udp -j ACCEPT": Status.PASS,
    "-A PREROUTING -j LOG": Status.PASS,
    "-A PREROUTING -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT": Status.PASS,
}


@pytest.mark.parametrize(("rule", "status"), AHEAD.items())
def test_what_is_ahead_of_the_redirect_counts_if_it_takes_the_packet(rule: str, status: Status) -> None:
    listing = nat(rule, RULE, chains=["DOCKER"])
    (line,) = check_precedence(listing, PACKETS, WANTED, FIXES)
    assert line.status is status
    if status is not Status.PASS:
        assert line.fix == FIXES.install()
        assert line.fix_text == FIXES.insert_command()


@pytest.mark.parametrize("rule", AHEAD)
def test_what_is_behind_the_redirect_does_not_count(rule: str) -> None:
    (line,) = check_precedence(nat(RULE, rule, chains=["DOCKER"]), PACKETS, WANTED, FIXES)
    assert line.status is Status.PASS


def test_a_chain_that_returns_leaves_the_packet_to_the_redirect() -> None:
    listing = nat(
        "-A PREROUTING -j KUBE-SERVICES",
        RULE,
        "-A KUBE-SERVICES -d 10.96.0.10/32 -p udp -m udp --dport 53 -j KUBE-SVC-DNS",
        "-A KUBE-SERVICES -j RETURN",
        "-A KUBE-SERVICES -j DNAT --to-destination 1.2.3.4",
        chains=["KUBE-SERVICES", "KUBE-SVC-DNS"],
    )
    (line,) = check_precedence(listing, PACKETS, WANTED, FIXES)
    assert line.status is Status.PASS


def test_a_goto_comes_back_where_a_jump_led_to_it_and_nowhere_else() -> None:
    listing = nat("-A PREROUTING -g OTHER", RULE, "-A OTHER -p udp -j ACCEPT", chains=["OTHER"])
    (hit,) = walk(listing[0], listing[0].chains["PREROUTING"], packet())
    assert hit.rule.text == "-A PREROUTING -g OTHER"
    (line,) = check_precedence(listing, PACKETS, WANTED, FIXES)
    assert line.status is Status.FAIL
    listing = nat("-A PREROUTING -j FIRST", "-A FIRST -g OTHER", RULE, chains=["FIRST", "OTHER"])
    (line,) = check_precedence(listing, PACKETS, WANTED, FIXES)
    assert line.status is Status.PASS


def test_chains_that_jump_in_circles_end() -> None:
    listing = nat("-A PREROUTING -j A", "-A A -j B", "-A B -j A", RULE, chains=["A", "B"])
    (line,) = check_precedence(listing, PACKETS, WANTED, FIXES)
    assert line.status is Status.PASS


@pytest.mark.parametrize("table", ["raw", "mangle"])
@pytest.mark.parametrize("target", ["DROP", "NOTRACK", "TPROXY --on-port 1", "ACCEPT", "MARK --set-xmark 0x1/0x1"])
def test_earlier_tables_count_if_they_stop_the_packet(table: str, target: str) -> None:
    listing = tables(save(f"-A PREROUTING -d 169.254.0.0/16 -j {target}", table=table), save(RULE))
    (line,) = check_precedence(listing, PACKETS, WANTED, FIXES)
    stops = target.split()[0] in {"DROP", "NOTRACK", "TPROXY"}
    assert line.status is (Status.FAIL if stops else Status.PASS)
    if stops:
        words = METADATA.replace(" -p", " -i cali+ -p", 1)
        assert line.fix_text == f"iptables-nft -t {table} -I PREROUTING 1 {words} -j ACCEPT"


def test_calicos_reverse_path_check_is_no_obstacle() -> None:
    listing = tables(
        save(
            "-A PREROUTING -j cali-PREROUTING",
            "-A cali-PREROUTING -i cali+ -j MARK --set-xmark 0x40000/0x40000",
            "-A cali-PREROUTING -m mark --mark 0x40000/0x40000 -m rpfilter --validmark --invert -j DROP",
            table="raw",
            chains=["cali-PREROUTING"],
        ),
        save(RULE),
    )
    (line,) = check_precedence(listing, PACKETS, WANTED, FIXES)
    assert line.status is Status.PASS


def test_each_rule_in_the_way_has_a_line_of_its_own() -> None:
    listing = tables(
        save("-A PREROUTING -j NOTRACK", table="raw"),
        save("-A PREROUTING -p tcp -j DNAT --to-destination 10.9.9.9", RULE),
    )
    assert [line.status for line in check_precedence(listing, PACKETS, WANTED, FIXES)] == [Status.FAIL] * 2


FIREWALLS = {
    (): Status.PASS,
    ("-A INPUT -p tcp -m tcp --dport 8181 -j DROP",): Status.FAIL,
    ("-A INPUT -p tcp -m tcp --dport 80 -j DROP",): Status.PASS,
    ("-A INPUT -d 10.0.0.1/32 -j REJECT --reject-with icmp-port-unreachable",): Status.FAIL,
    ("-A INPUT -m conntrack --ctstate DNAT -j ACCEPT", "-A INPUT -j DROP"): Status.PASS,
    ("-A INPUT -i eth0 -j DROP",): Status.PASS,
    ("-A INPUT -m mark --mark 0x1 -j ACCEPT", "-A INPUT -j DROP"): Status.PASS,
    ("-A INPUT -m mark --mark 0x8000/0x8000 -j DROP",): Status.PASS,
    ("-A INPUT -j RETURN", "-A INPUT -j DROP"): Status.PASS,
}


@pytest.mark.parametrize(("rules", "status"), FIREWALLS.items())
def test_a_firewall_fails_only_if_it_surely_drops(rules: tuple[str, ...], status: Status) -> None:
    (line,) = check_firewall(tables(save(*rules, table="filter")), PACKETS, WANTED)
    assert line.status is status


def test_a_policy_to_drop_fails_unless_something_accepts() -> None:
    dropping = tables(save(table="filter", policy="DROP"))
    (line,) = check_firewall(dropping, PACKETS, WANTED)
    assert line.status is Status.FAIL
    assert line.fix_text == (
        "iptables-nft -t filter -I INPUT 1 -i cali+ -d 10.0.0.1/32 -p tcp -m tcp --dport 8181 -j ACCEPT"
    )
    opened = tables(save("-A INPUT -i cali+ -j ACCEPT", table="filter", policy="DROP"))
    assert check_firewall(opened, PACKETS, WANTED)[0].status is Status.PASS


def test_calicos_chains_for_a_pod_leave_it_open() -> None:
    listing = tables(
        save(
            "-A INPUT -j cali-INPUT",
            "-A cali-INPUT -i cali+ -g cali-wl-to-host",
            "-A cali-wl-to-host -j cali-from-wl-dispatch",
            "-A cali-wl-to-host -j ACCEPT",
            "-A cali-from-wl-dispatch -i cali0 -g cali-fw-cali0",
            '-A cali-from-wl-dispatch -m comment --comment "Unknown interface" -j DROP',
            "-A cali-fw-cali0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            "-A cali-fw-cali0 -m conntrack --ctstate INVALID -j DROP",
            "-A cali-fw-cali0 -m mark --mark 0x10000/0x10000 -j RETURN",
            '-A cali-fw-cali0 -m comment --comment "Drop if no profiles matched" -j DROP',
            table="filter",
            chains=["cali-INPUT", "cali-wl-to-host", "cali-from-wl-dispatch", "cali-fw-cali0"],
        )
    )
    assert check_firewall(listing, [packet()], WANTED)[0].status is Status.PASS
    assert check_firewall(listing, [packet(interface=InterfacePattern("cali1"))], WANTED)[0].status is Status.FAIL


@pytest.mark.parametrize(
    ("rule", "status"),
    [
        (
            "-A OUTPUT -d 169.254.169.254/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1:8181",
            Status.FAIL,
        ),
        ("-A OUTPUT -p tcp -j REDIRECT --to-ports 3128", Status.FAIL),
        ("-A OUTPUT -m owner --uid-owner 1000 -j REDIRECT --to-ports 3128", Status.PASS),
        ("-A OUTPUT -d 10.96.0.0/12 -j DNAT --to-destination 10.9.9.9", Status.PASS),
    ],
)
def test_a_rule_takes_the_hosts_connections_or_not(rule: str, status: Status) -> None:
    (line,) = check_host(nat(rule), FIXES)
    assert line.status is status
    if status is Status.FAIL:
        assert line.fix_text == f"iptables-nft -t nat -I OUTPUT 1 {METADATA} -j ACCEPT"


@unhurried
@given(st.lists(st.sampled_from(sorted(AHEAD)), max_size=4), st.lists(st.sampled_from(sorted(AHEAD)), max_size=4))
def test_only_rules_that_could_take_the_packet_are_reported(before: list[str], after: list[str]) -> None:
    listing = nat(*before, RULE, *after, chains=["DOCKER"])
    found = ahead_of_redirect(listing, PACKETS[0], WANTED)
    expected = []
    for rule in before:
        if AHEAD[rule] is not Status.PASS:
            expected.append(rule)
        if AHEAD[rule] is Status.FAIL:
            break
    assert [hit.rule.text for hit in found] == expected
