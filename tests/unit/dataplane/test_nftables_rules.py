"""What the nftables dataplane would write, and how it compares it with a listing."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest

from kiam.dataplane.cgroups import Cgroup, HostPods
from kiam.dataplane.contract import HostNetwork, WantedState
from kiam.dataplane.nftables import failure
from kiam.dataplane.nftables.rules import COUNTERS, FAMILY, TABLE, wanted_chains
from kiam.dataplane.nftables.script import differences, install_script
from kiam.errors import UserError
from kiam.netfilter.interfaces import InterfacePattern
from kiam.netfilter.model import Chain, Table
from kiam.netfilter.nft_listing import parse_nft_ruleset

HOST = IPv4Address("10.0.0.1")
CALI = InterfacePattern.parse("cali+")
WANTED = WantedState(HOST, 8181, CALI)
NOBODY = HostPods()
PODS = HostPods(
    (Cgroup(Path("/sys/fs/cgroup/kubepods.slice"), "kubepods.slice", 42),),
    Cgroup(Path("/sys/fs/cgroup/kubepods.slice/kubepods-podx.slice"), "kubepods.slice/kubepods-podx.slice", 43),
)


def listing_of(wanted: WantedState, host_pods: HostPods = NOBODY) -> dict[str, Any]:
    """What libnftables would list after that state was installed."""
    place = {"family": FAMILY, "table": TABLE}
    entries: list[dict[str, Any]] = [{"metainfo": {}}, {"table": {"family": FAMILY, "name": TABLE}}]
    entries += [{"counter": {**place, "name": name, "packets": number}} for number, name in enumerate(COUNTERS)]
    for chain in wanted_chains(wanted, host_pods):
        hook = {"type": chain.kind, "hook": chain.hook, "prio": chain.priority, "policy": "accept"}
        entries.append({"chain": {**place, "name": chain.name, "handle": 1, **hook}})
        for rule in chain.rules:
            comment = {"comment": rule.comment} if rule.comment else {}
            entries.append(
                {"rule": {**place, "chain": chain.name, "expr": list(map(json.loads, rule.parts)), **comment}}
            )
    return {"nftables": entries}


def read(listing: dict[str, Any]) -> Table:
    (table,) = parse_nft_ruleset(listing)
    return table


def rules_of(wanted: WantedState, chain: str, host_pods: HostPods = NOBODY) -> list[str]:
    found = next(made for made in wanted_chains(wanted, host_pods) if made.name == chain)
    return [rule.text for rule in found.rules]


def test_pods_are_led_to_the_agent() -> None:
    assert rules_of(WANTED, "pods-redirect") == [
        'iifname "cali*" ip daddr 169.254.169.254 tcp dport 80 counter name "redirects" dnat ip to 10.0.0.1:8181'
    ]


def test_the_redirect_is_asked_before_dstnat_and_the_guard_after() -> None:
    chains = {chain.name: chain for chain in wanted_chains(WANTED, HostPods())}
    assert -200 < chains["pods-redirect"].priority < -100 < chains["pods-guard"].priority


def test_the_rest_is_dropped_by_reason_and_ipv6_refused() -> None:
    assert rules_of(WANTED, "pods-guard") == [
        f'iifname != "lo" {rule}'
        for rule in (
            'iifname != "cali*" ip daddr 169.254.169.254 counter name "other-interface" drop',
            'ip daddr 169.254.169.254 tcp dport 80 counter name "bypass" drop',
            'ip daddr 169.254.169.254 meta l4proto tcp counter name "other-port" drop',
            'ip daddr 169.254.169.254 counter name "other-protocol" drop',
            'iifname != "cali*" ip6 daddr fd00:ec2::254 counter name "other-interface" drop',
            'ip6 daddr fd00:ec2::254 tcp dport 80 counter name "ipv6" reject with tcp reset',
            'ip6 daddr fd00:ec2::254 counter name "ipv6" drop',
        )
    ]


def test_ipv6_is_led_to_the_agents_ipv6_address() -> None:
    wanted = WantedState(HOST, 8181, CALI, IPv6Address("2001:db8::1"))
    assert rules_of(wanted, "pods-redirect")[1].endswith("dnat ip6 to [2001:db8::1]:8181")


@pytest.mark.parametrize(
    ("pattern", "start"),
    [("!eth0", 'iifname != "eth0" ip daddr'), ("cbr0", 'iifname "cbr0" ip daddr'), ("+", "ip daddr")],
)
def test_patterns_become_nfts_words(pattern: str, start: str) -> None:
    wanted = WantedState(HOST, 8181, InterfacePattern.parse(pattern))
    assert rules_of(wanted, "pods-redirect")[0].startswith(start)


def test_an_allowed_interface_is_neither_redirected_nor_dropped() -> None:
    wanted = WantedState(HOST, 8181, CALI, forward_from=InterfacePattern.parse("virbr+"))
    for chain in ("pods-redirect", "pods-guard"):
        assert rules_of(wanted, chain)[0] == 'iifname "virbr*" return'
    assert rules_of(wanted, "answers-guard")[0] == 'oifname "virbr*" return'


def test_host_network_pods_are_told_by_cgroup_and_the_agent_passes_first() -> None:
    wanted = WantedState(HOST, 8181, CALI, host_network=HostNetwork.REDIRECT)
    redirect = rules_of(wanted, "host-pods-redirect", PODS)
    assert redirect[0] == (
        'socket cgroupv2 level 2 "kubepods.slice/kubepods-podx.slice" return comment "cgroup 43 level 2"'
    )
    assert 'socket cgroupv2 level 1 "kubepods.slice"' in redirect[1]
    assert rules_of(wanted, "host-pods-guard", PODS)[0] == redirect[0]


def test_denied_host_network_pods_have_no_redirect() -> None:
    wanted = WantedState(HOST, 8181, CALI, host_network=HostNetwork.DENY)
    names = [chain.name for chain in wanted_chains(wanted, PODS)]
    assert "host-pods-redirect" not in names
    assert "host-pods-guard" in names


@pytest.mark.parametrize("host_network", list(HostNetwork))
def test_a_listing_of_the_wanted_state_does_not_differ(host_network: HostNetwork) -> None:
    wanted = WantedState(HOST, 8181, CALI, host_network=host_network)
    listing = listing_of(wanted, PODS)
    assert differences(wanted_chains(wanted, PODS), read(listing)) == []


@pytest.mark.parametrize("number", range(2 + len(COUNTERS), len(listing_of(WANTED)["nftables"])))
def test_whatever_chain_or_rule_is_missing_is_told(number: int) -> None:
    listing = listing_of(WANTED)
    del listing["nftables"][number]
    assert differences(wanted_chains(WANTED, HostPods()), read(listing))


def test_another_port_cgroup_or_counter_is_told() -> None:
    chains = wanted_chains(WantedState(HOST, 9999, CALI), HostPods())
    listing = listing_of(WANTED)
    assert ":9999" in differences(chains, read(listing))[0]
    assert differences(wanted_chains(WANTED, HostPods()), replace(read(listing), counters={}))

    wanted = WantedState(HOST, 8181, CALI, host_network=HostNetwork.DENY)
    remade = HostPods((Cgroup(PODS.pods[0].path, PODS.pods[0].name, 99),), PODS.agent)
    found = differences(wanted_chains(wanted, remade), read(listing_of(wanted, PODS)))
    assert any("cgroup 99" in line for line in found)


def test_a_cgroup_is_told_by_its_number_however_its_path_is_listed() -> None:
    wanted = WantedState(HOST, 8181, CALI, host_network=HostNetwork.DENY)
    listing = listing_of(wanted, PODS)
    for entry in listing["nftables"]:
        for statement in entry.get("rule", {}).get("expr", ()):
            if "socket" in str(statement):
                statement["match"] |= {"left": {"socket": {"key": "cgroupv2", "level": 1}}, "right": "/../elsewhere"}
    assert differences(wanted_chains(wanted, PODS), read(listing)) == []


def test_chains_that_stay_are_emptied_and_others_deleted() -> None:
    chains = wanted_chains(WANTED, HostPods())
    kept = chains[0]
    listed = [replace(kept, rules=()), replace(chains[1], rules=(), priority=0), Chain("older")]
    script = install_script(chains, Table("nft", FAMILY, TABLE, {chain.name: chain for chain in listed}))
    assert "flush chain inet kiam pods-redirect" in script
    assert "delete chain inet kiam pods-redirect" not in script
    assert "delete chain inet kiam pods-guard" in script
    assert "delete chain inet kiam older" in script
    assert script.count("delete ") == 2


def test_a_kernel_that_can_not_match_cgroups_is_told_apart() -> None:
    said = "Error: Could not process rule: Operation not supported"
    assert "Linux 5.13" in str(failure(said, with_cgroups=True))
    assert "Linux 5.13" not in str(failure(said))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("internal:0:0-0: Error: Could not process rule: Operation not permitted", "capability NET_ADMIN"),
        ("Error: Could not process rule: No such file or directory", "modprobe -a nf_tables"),
        ("Error: cgroupv2 path fails: No such file or directory", "--host-network=ignore"),
        ("Error: syntax error", "nftables refused the rules: syntax error"),
        ("", "it said nothing"),
    ],
)
def test_what_libnftables_complains_of_becomes_one_line_with_the_fix(said: str, expected: str) -> None:
    error = failure(said)
    assert isinstance(error, UserError)
    assert expected in str(error)
    assert "\n" not in str(error)
