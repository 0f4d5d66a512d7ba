"""What the iptables dataplane would write, as text."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiam.dataplane.cgroups import Cgroup, HostPods
from kiam.dataplane.contract import HostNetwork, WantedState
from kiam.dataplane.iptables.backend import choose_backend
from kiam.dataplane.iptables.ours import made_by_us, own_hooks
from kiam.dataplane.iptables.rules import (
    FROM_METADATA,
    HOST_NETWORK,
    INSTALLED,
    TABLES,
    TO_METADATA,
    redirect_rule,
    table_rules,
)
from kiam.dataplane.iptables.script import install_script, problems_of, remove_script
from kiam.errors import UserError
from kiam.netfilter.interfaces import InterfacePattern, IptablesBackend
from kiam.netfilter.iptables import failure
from kiam.netfilter.iptables_listing import make_rule, parse_tables, split_words
from kiam.netfilter.model import Action, Chain, Rule, Ruleset, Table

HOST = IPv4Address("10.0.0.1")
HOST6 = IPv6Address("2001:db8::1")
CALI = InterfacePattern.parse("cali+")
WANTED = WantedState(HOST, 8181, CALI)
NOBODY = HostPods()
PODS = HostPods(
    (Cgroup(Path("/cgroup/kubepods.slice"), "kubepods.slice", 42),),
    Cgroup(Path("/cgroup/kubepods.slice/podx"), "kubepods.slice/podx", 43),
)

STATES = st.builds(
    WantedState,
    st.ip_addresses(v=4),
    st.integers(1, 65535),
    st.sampled_from(["cali+", "!eth0", "cbr0", "+", "!cali+"]).map(InterfacePattern.parse),
    st.one_of(st.none(), st.just(HOST6)),
    st.sampled_from(list(HostNetwork)),
)


@pytest.mark.parametrize(
    ("pattern", "interface"),
    [("cali+", " -i cali+"), ("!eth0", " ! -i eth0"), ("cbr0", " -i cbr0"), ("+", "")],
)
def test_the_redirect_is_the_documented_text(pattern: str, interface: str) -> None:
    wanted = WantedState(HOST, 8181, InterfacePattern.parse(pattern))
    assert redirect_rule(wanted).text == (
        f"-A PREROUTING -d 169.254.169.254/32{interface} -p tcp -m tcp --dport 80 "
        "-j DNAT --to-destination 10.0.0.1:8181"
    )


def test_over_ipv6_pods_are_led_to_the_agent_or_to_a_closed_port() -> None:
    match = "-A PREROUTING -d fd00:ec2::254/128 -i cali+ -p tcp -m tcp --dport 80 "
    assert redirect_rule(WANTED, ipv6=True).text == match + "-j REDIRECT --to-ports 1"
    to_agent = WantedState(HOST, 8181, CALI, HOST6)
    assert redirect_rule(to_agent, ipv6=True).text == match + "-j DNAT --to-destination [2001:db8::1]:8181"


def test_what_gets_past_the_redirect_is_dropped_by_reason() -> None:
    rules = table_rules("mangle", WANTED, NOBODY, ipv6=False)
    assert [rule.text for rule in rules.hooks] == [
        "-A FORWARD -d 169.254.169.254/32 -j KIAM-TO-METADATA",
        "-A FORWARD -s 169.254.169.254/32 -j KIAM-FROM-METADATA",
        "-A INPUT -d 169.254.169.254/32 ! -i lo -j KIAM-TO-METADATA",
    ]
    reasons = [rule.comment for rule in rules.chains[TO_METADATA]]
    assert reasons == ["other-interface", "bypass", "other-port", "other-protocol"]
    assert {rule.action for chain in (TO_METADATA, FROM_METADATA) for rule in rules.chains[chain]} == {Action.DROP}


@pytest.mark.parametrize(
    ("pattern", "others"), [("cali+", "! -i cali+"), ("!eth0", "-i eth0"), ("weave", "! -i weave")]
)
def test_what_comes_in_elsewhere_than_pods_do_is_dropped_for_that_reason(pattern: str, others: str) -> None:
    wanted = WantedState(HOST, 8181, InterfacePattern.parse(pattern))
    chain = table_rules("mangle", wanted, NOBODY, ipv6=False).chains[TO_METADATA]
    assert chain[0].text == f"-A KIAM-TO-METADATA {others} -m comment --comment other-interface -j DROP"


def test_an_allowed_interface_is_neither_redirected_nor_dropped() -> None:
    wanted = WantedState(HOST, 8181, CALI, forward_from=InterfacePattern.parse("virbr0"))
    nat, mangle = (table_rules(table, wanted, NOBODY, ipv6=False) for table in ("nat", "mangle"))
    assert [rule.text for rule in nat.hooks] == [
        "-A PREROUTING -d 169.254.169.254/32 -i virbr0 -j ACCEPT",
        redirect_rule(wanted).text,
    ]
    assert len(nat.chains[INSTALLED]) == 2
    assert mangle.chains[TO_METADATA][0].text == "-A KIAM-TO-METADATA -i virbr0 -j RETURN"
    assert mangle.chains[FROM_METADATA][0].text == "-A KIAM-FROM-METADATA -o virbr0 -j RETURN"


def test_host_network_pods_are_told_by_cgroup_and_the_agent_passes() -> None:
    wanted = WantedState(HOST, 8181, CALI, host_network=HostNetwork.REDIRECT)
    nat = table_rules("nat", wanted, PODS, ipv6=False)
    assert nat.hooks[1].text == (
        "-A OUTPUT -d 169.254.169.254/32 -p tcp -m tcp --dport 80 -m cgroup --path kubepods.slice -j KIAM-HOST-NETWORK"
    )
    assert [rule.action for rule in nat.chains[HOST_NETWORK]] == [Action.RETURN, Action.DNAT]
    mangle = table_rules("mangle", wanted, PODS, ipv6=False)
    assert [rule.action for rule in mangle.chains[HOST_NETWORK]] == [Action.RETURN, Action.DROP]
    assert mangle.hooks[-1].chain == "POSTROUTING"


def rule_of(chain: str, text: str) -> Rule:
    return make_rule(chain, *split_words(text))


def table_of(chains: dict[str, list[Rule]]) -> Table:
    return Table("iptables-nft", "ip", "", {name: Chain(name, rules) for name, rules in chains.items()})


def apply(script: str, saved: dict[str, dict[str, list[Rule]]]) -> None:
    """A model of ``iptables-restore --noflush``, strict as the real one: what isn't there can't be deleted."""
    table: dict[str, list[Rule]] = {}
    for line in script.splitlines():
        command = line.rpartition("] ")[2] if line.startswith("[") else line
        verb, _, rest = command.partition(" ")
        chain, _, text = rest.partition(" ")
        if line.startswith("*"):
            table = saved.setdefault(line[1:], {})
        elif line.startswith(":"):
            table[line[1:].split()[0]] = []
        elif verb == "-N":
            assert chain not in table
            table[chain] = []
        elif verb == "-D":
            table[chain].remove(rule_of(chain, text))
        elif verb == "-A":
            table[chain].append(rule_of(chain, text))
        elif verb == "-I":
            table[chain].insert(0, rule_of(chain, text.removeprefix("1 ")))
        elif verb == "-F":
            table[chain].clear()
        elif verb == "-X":
            assert table.pop(chain) == []
        else:
            assert line == "COMMIT"


def built_in() -> dict[str, dict[str, list[Rule]]]:
    chains = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
    by_hand = {"PREROUTING": [redirect_rule(WANTED)]}
    return {name: {chain: list(by_hand.get(chain, [])) for chain in chains} for name in TABLES}


@given(st.lists(STATES, min_size=1, max_size=3), st.booleans(), st.sets(st.sampled_from(["table", "FORWARD"])))
def test_any_state_follows_any_other_and_removal_leaves_what_was(
    states: list[WantedState], ipv6: bool, made: set[str]
) -> None:
    ruleset = built_in()
    for wanted in states:
        for name in TABLES:
            rules = table_rules(name, wanted, PODS, ipv6)
            script = install_script(
                name, table_of(ruleset[name]), rules, sorted({*made_by_us(table_of(ruleset[name])), *made})
            )
            apply(script, ruleset)
            assert list(problems_of(name, table_of(ruleset[name]), rules, wanted.interface)) == []
            assert made_by_us(table_of(ruleset[name])) == tuple(sorted(made))
            for hook in rules.hooks:
                assert own_hooks(table_of(ruleset[name])).count(hook) == 1
    for name in TABLES:
        script_out = remove_script(name, table_of(ruleset[name]))
        assert script_out is not None
        apply(script_out, ruleset)
        assert remove_script(name, table_of(ruleset[name])) is None
    assert ruleset == built_in()


def test_rules_that_read_like_ours_but_lead_elsewhere_are_not_ours() -> None:
    ruleset = built_in()
    apply(install_script("nat", table_of(ruleset["nat"]), table_rules("nat", WANTED, NOBODY, False), []), ruleset)
    other = redirect_rule(WantedState(HOST, 9999, CALI))
    ruleset["nat"]["PREROUTING"].append(other)
    script = remove_script("nat", table_of(ruleset["nat"]))
    assert script is not None
    assert "9999" not in script


def test_what_is_missing_is_told_with_the_rule() -> None:
    rules = table_rules("nat", WANTED, NOBODY, False)
    problems = list(problems_of("nat", table_of({"PREROUTING": [redirect_rule(WANTED)]}), rules, CALI))
    assert problems[0].endswith("(there is one alike that isn't ours)")
    assert problems[1] == f"the chain {INSTALLED} of nat is missing"


def ruleset_of(*lines: str, hint: bool = False) -> Ruleset:
    mangle = "*mangle\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n" if hint else ""
    return parse_tables(mangle + "\n".join(["*filter", ":FORWARD ACCEPT [0:0]", *lines, "COMMIT"]), "iptables-nft")


@pytest.mark.parametrize(
    ("nft", "legacy", "chosen"),
    [
        (ruleset_of(), ruleset_of(), "nft"),
        (ruleset_of("-A FORWARD -j ACCEPT"), ruleset_of(), "nft"),
        (ruleset_of(), ruleset_of("-A FORWARD -j ACCEPT"), "legacy"),
        (ruleset_of("-A FORWARD -j ACCEPT"), ruleset_of("-A FORWARD -j ACCEPT"), "nft"),
        (ruleset_of(hint=True), ruleset_of("-A FORWARD -j ACCEPT"), "nft"),
        (ruleset_of("-A FORWARD -j ACCEPT", "-A FORWARD -j DROP"), ruleset_of(hint=True), "legacy"),
        (ruleset_of("-A FORWARD -j KIAM-TO-METADATA"), ruleset_of("-A FORWARD -j ACCEPT"), "legacy"),
    ],
)
def test_the_backend_is_where_the_hosts_rules_are(nft: Ruleset, legacy: Ruleset, chosen: str) -> None:
    assert choose_backend([nft], [legacy]) == IptablesBackend(chosen)


@pytest.mark.parametrize(
    ("stderr", "expected"),
    [
        ("iptables-restore v1.8.9 (nf_tables): \nline 3: Operation not permitted", "capability NET_ADMIN"),
        ("Fatal: can't open lock file /run/xtables.lock: Permission denied", "capability NET_ADMIN"),
        (
            "iptables-legacy-restore v1.8.9 (legacy): can't initialize iptables table `nat': Table does not exist "
            "(do you need to insmod?)",
            "modprobe iptable_nat",
        ),
        ("Warning: Extension cgroup revision 0 not supported, missing kernel module?", "modprobe xt_cgroup"),
        ("something nobody thought of", "failed: something nobody thought of"),
        ("", "it said nothing"),
    ],
)
def test_what_iptables_complains_of_becomes_one_line_with_the_fix(stderr: str, expected: str) -> None:
    error = failure("iptables-legacy-restore", stderr)
    assert isinstance(error, UserError)
    assert expected in str(error)
    assert "\n" not in str(error)
