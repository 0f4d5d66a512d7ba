"""The checks on rules: what each reports for a listing that breaks just that, and what it prints to fix it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiam.dataplane.contract import HostNetwork, OwnRule
from kiam.dataplane.iptables.rules import redirect_rule
from kiam.netfilter.interfaces import InterfacePattern, IptablesBackend
from kiam.netfilter.iptables_listing import specification
from kiam.netfilter.model import Table
from kiam.netfilter.packets import metadata_packet, sample_interface
from kiam.netfilter.walk import walk
from kiam.verify.checks.host import check_host
from kiam.verify.checks.precedence import ahead_of_redirect, check_firewall, check_precedence
from kiam.verify.checks.redirect import check_redirect
from kiam.verify.checks.redirects import redirects
from kiam.verify.fixes import Fixes
from kiam.verify.results import CheckResult, Status, any_failed, failed, passed, warned
from tests.unit.verify.listings import FIXES, PACKETS, RULE, WANTED, nat, packet, save, tables

METADATA = "-d 169.254.169.254/32 -p tcp -m tcp --dport 80"


def statuses(results: list[CheckResult]) -> dict[str, Status]:
    return {result.check: result.status for result in results}


def redirect_lines(listing: list[Table]) -> list[CheckResult]:
    return check_redirect(listing, PACKETS, WANTED, FIXES)


def test_every_line_but_a_pass_has_a_fix() -> None:
    with pytest.raises(ValueError, match="without a fix"):
        CheckResult("x", Status.WARN, "seen")
    assert passed("x", "seen").fix is None


def test_only_a_failure_fails() -> None:
    assert not any_failed([passed("x", ""), warned("x", "", "fix")])
    assert any_failed([passed("x", ""), failed("x", "", "fix")])


def test_the_documented_rule_is_found() -> None:
    assert statuses(redirect_lines(nat(RULE))) == {"redirect rule": Status.PASS, "iptables backend": Status.PASS}


def test_the_documented_rule_is_what_the_fix_inserts() -> None:
    assert redirect_rule(WANTED).text == RULE


def test_an_inverted_pattern_is_quoted_for_the_shell() -> None:
    wanted = replace(WANTED, interface=InterfacePattern.parse("!eth0"))
    assert "'!' -i eth0" in Fixes(wanted, "none", "iptables-nft").insert_command()
    rule = redirect_rule(wanted).text
    found = check_redirect(nat(rule), [metadata_packet(wanted.interface)], wanted, replace(FIXES, target=wanted))
    assert {line.status for line in found} == {Status.PASS}


def test_no_rule_at_all_fails() -> None:
    (line,) = redirect_lines(nat())
    assert line.status is Status.FAIL
    assert line.fix_text == f"iptables-nft -t nat -I PREROUTING 1 {specification(redirect_rule(WANTED))}"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("--dport 80", "--dport 81"),
        ("-i cali+", "-i eni+"),
        ("-i cali+ ", "! -i cali+ "),
        ("169.254.169.254/32", "169.254.169.253/32"),
        ("-p tcp -m tcp", "-p udp -m udp"),
        (":8181", ":3100"),
        ("10.0.0.1:", "10.0.0.2:"),
        ("-i cali+", "-i cali+ -s 10.9.0.0/16"),
        ("-i cali+", "-i cali+ -m mark --mark 0x1"),
        ("-i cali+", "-i cali+ -m conntrack --ctstate ESTABLISHED"),
        ("-j DNAT --to-destination 10.0.0.1:8181", "-j REDIRECT --to-ports 8181"),
    ],
)
def test_a_near_miss_fails_alone_and_warns_beside_the_right_rule(old: str, new: str) -> None:
    wrong = RULE.replace(old, new)
    assert wrong != RULE
    assert statuses(redirect_lines(nat(wrong))) == {"redirect rule": Status.FAIL, "near miss": Status.FAIL}
    beside = statuses(redirect_lines(nat(RULE, wrong)))
    assert beside["redirect rule"] is Status.PASS
    assert beside["near miss"] is Status.WARN


@pytest.mark.parametrize("new", ["-d 169.254.0.0/16", "-d 169.254.169.254/32 -m comment --comment kiam"])
def test_a_rule_that_works_passes_even_if_it_is_wider(new: str) -> None:
    found = statuses(redirect_lines(nat(RULE.replace("-d 169.254.169.254/32", new))))
    assert found["redirect rule"] is Status.PASS


def test_a_wrong_rule_of_ours_is_the_installed_states_to_tell() -> None:
    listing = nat(RULE.replace("--dport 80", "--dport 81"))
    (rule,) = listing[0].rules("PREROUTING")
    ours = [OwnRule("iptables-nft", "nat", rule)]
    assert statuses(check_redirect(listing, PACKETS, WANTED, FIXES, ours)) == {"redirect rule": Status.FAIL}


def test_somebody_elses_dnat_is_no_near_miss() -> None:
    other = "-A PREROUTING -d 169.254.169.254/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.9.9.9:80"
    assert list(redirects(nat(other), WANTED)) == []


def test_a_rule_in_a_chain_nothing_jumps_to_is_not_found() -> None:
    listing = nat(RULE.replace("PREROUTING", "KIAM"), chains=["KIAM"])
    assert statuses(redirect_lines(listing)) == {"redirect rule": Status.FAIL}


def test_a_rule_in_a_chain_that_is_jumped_to_is_found() -> None:
    listing = nat("-A PREROUTING -i cali+ -j KIAM", RULE.replace("PREROUTING", "KIAM"), chains=["KIAM"])
    assert statuses(redirect_lines(listing))["redirect rule"] is Status.PASS


def test_the_other_backend_is_told_and_the_rule_is_added_before_the_old_one_goes() -> None:
    found = {line.check: line for line in redirect_lines(nat(RULE, tool="iptables-legacy"))}
    backend = found["iptables backend"]
    assert backend.status is Status.WARN
    add, delete = backend.fix_text.split(" && ")
    assert add.startswith("iptables-nft -t nat -I PREROUTING 1 ")
    assert delete.startswith("iptables-legacy -t nat -D PREROUTING ")


def test_a_copy_in_the_other_backend_is_only_deleted() -> None:
    listing = [*nat(RULE), *nat(RULE, tool="iptables-legacy")]
    backend = {line.check: line for line in redirect_lines(listing)}["iptables backend"]
    assert backend.fix_text.startswith("iptables-legacy -t nat -D")


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


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({}, "--host-interface=cali+"),
        ({"interface": InterfacePattern.parse("!eth0")}, "'--host-interface=!eth0'"),
        ({"host_network": HostNetwork.DENY}, "--host-network=deny"),
        ({"agent_cgroup": "kubepods/pod1"}, "--agent-cgroup=kubepods/pod1"),
        ({"iptables_backend": IptablesBackend.LEGACY}, "--iptables-backend=legacy"),
    ],
)
def test_fixes_carry_every_flag_of_the_wanted_state(changes: dict[str, object], flag: str) -> None:
    wanted = replace(WANTED, **changes)  # type: ignore[arg-type]  # the fields' types differ
    assert flag in Fixes(wanted, "nftables").install().command


# No limit on time: the machine is busy with other tests.
unhurried = settings(deadline=None)
names = st.from_regex(r"[a-z][a-z0-9]{0,9}", fullmatch=True)


@unhurried
@given(names, st.booleans(), st.booleans())
def test_the_rule_the_fix_inserts_is_always_found_whatever_the_pattern(
    name: str, wildcard: bool, inverted: bool
) -> None:
    pattern = InterfacePattern(name, wildcard, inverted)
    wanted = replace(WANTED, interface=pattern)
    packets = [metadata_packet(pattern)]
    assert pattern.matches(sample_interface(pattern))
    listing = nat(redirect_rule(wanted).text)
    assert {line.status for line in check_redirect(listing, packets, wanted, replace(FIXES, target=wanted))} == {
        Status.PASS
    }
    assert ahead_of_redirect(listing, packets[0], wanted) == []


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
