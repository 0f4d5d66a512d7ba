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
from kiam.verify.checks.precedence import ahead_of_redirect
from kiam.verify.checks.redirect import check_redirect
from kiam.verify.checks.redirects import redirects
from kiam.verify.fixes import Fixes
from kiam.verify.results import CheckResult, Status, any_failed, failed, passed, warned
from tests.unit.verify.listings import FIXES, PACKETS, RULE, WANTED, nat


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
