"""Which rule of others could take a packet before ours does."""

from __future__ import annotations

import pytest

from kiam.dataplane.iptables.ours import taken_first
from kiam.netfilter.interfaces import InterfacePattern
from kiam.netfilter.iptables_listing import make_rule, parse_tables, split_words
from kiam.netfilter.model import Chain, Rule, Table
from tests.integration.dataplane.kube_proxy import iptables_rules

CALI = InterfacePattern.parse("cali+")
OURS = make_rule("PREROUTING", "-d", "169.254.169.254/32", "-j", "DNAT", "--to-destination", "10.0.0.1:8181")


def table_of(text: str) -> Table:
    chains: dict[str, list[Rule]] = {"PREROUTING": []}
    for line in text.strip().splitlines():
        chain, _, rule = line.strip().partition(": ")
        chains.setdefault(chain, []).append(make_rule(chain, *split_words(rule)))
    return Table("iptables-nft", "ip", "nat", {name: Chain(name, rules) for name, rules in chains.items()})


def first_taker(text: str, local: bool = False) -> str | None:
    taker = taken_first(table_of(text), OURS, CALI, local)
    return None if taker is None else taker.text


@pytest.mark.parametrize(
    "text",
    [
        "-j DNAT --to-destination 10.0.0.9:1",
        "-d 169.254.169.254/32 -j ACCEPT",
        "-d 169.254.0.0/16 -p tcp -j DNAT",
        "-p tcp -m tcp --dport 80 -j REDIRECT --to-ports 9",
        "-p tcp -m multiport --dports 22,80:90 -j ACCEPT",
        "-i cali1234 -j ACCEPT",
        "-i ca+ -j ACCEPT",
        "! -i eth0 -j ACCEPT",
        "! -d 10.0.0.0/8 -j ACCEPT",
        "-s 10.0.0.0/8 -j ACCEPT",
        "-m mark --mark 0x1 -j ACCEPT",
        "! -p udp -j ACCEPT",
        "-m addrtype ! --dst-type LOCAL -j ACCEPT",
    ],
)
def test_rules_that_could_match_metadata_traffic_of_a_pod(text: str) -> None:
    assert first_taker(f"PREROUTING: {text}") is not None


@pytest.mark.parametrize(
    "text",
    [
        "-d 10.96.0.1/32 -p tcp -m tcp --dport 80 -j KUBE-SVC",
        "! -d 169.254.0.0/16 -j ACCEPT",
        "-p udp -j ACCEPT",
        "! -p tcp -j ACCEPT",
        "-p tcp -m tcp --dport 443 -j ACCEPT",
        "-p tcp -m multiport --dports 22,81:90 -j ACCEPT",
        "-i docker0 -j ACCEPT",
        "! -i cali+ -j ACCEPT",
        "! -i ca+ -j ACCEPT",
        "-m addrtype --dst-type LOCAL -j KUBE-NODEPORTS",
        "-p tcp -m tcp ! --dport 80 -j ACCEPT",
    ],
)
def test_rules_that_could_not(text: str) -> None:
    assert first_taker(f"PREROUTING: {text}") is None


def test_the_taker_is_found_behind_jumps() -> None:
    assert (
        first_taker("""
        PREROUTING: -j ONE
        ONE: -p udp -j ACCEPT
        ONE: -j TWO
        TWO: -j MARK --set-xmark 0x1/0x1
        TWO: -j RETURN
        TWO: -d 169.254.169.254/32 -j DNAT --to-destination 10.0.0.9:1
        """)
        == "-A TWO -d 169.254.169.254/32 -j DNAT --to-destination 10.0.0.9:1"
    )


def test_marks_logs_returns_and_drops_take_nothing() -> None:
    assert (
        first_taker("""
        PREROUTING: -j LOG
        PREROUTING: -j MARK --set-xmark 0x1/0x1
        PREROUTING: -d 169.254.169.254/32
        PREROUTING: -j ONE
        PREROUTING: -j DROP
        ONE: -j RETURN
        """)
        is None
    )


def test_a_return_in_a_built_in_chain_ends_the_walk() -> None:
    assert first_taker("PREROUTING: -i cali+ -j RETURN") == "-A PREROUTING -i cali+ -j RETURN"


def test_a_goto_in_a_built_in_chain_ends_the_walk() -> None:
    assert first_taker("PREROUTING: -p tcp -g A\nA: -j LOG") == "-A PREROUTING -p tcp -g A"
    assert first_taker("PREROUTING: -j B\nB: -g A\nA: -j LOG") is None


def test_chains_that_go_round_in_circles_end() -> None:
    assert first_taker("PREROUTING: -j A\nA: -j B\nB: -j A") is None


def test_no_service_of_kube_proxy_takes_metadata_traffic() -> None:
    saved = iptables_rules(50).replace("-I ", "-A ")
    table = parse_tables(saved, "iptables-nft")["nat"]
    assert len(table.rules("PREROUTING")) == 1
    assert taken_first(table, OURS, CALI) is None


def test_a_port_of_the_node_takes_it_where_the_metadata_address_is_the_nodes_own() -> None:
    text = """
        PREROUTING: -m addrtype --dst-type LOCAL -j DOCKER
        DOCKER: -p tcp -m tcp --dport 80 -j DNAT
    """
    assert first_taker(text) is None
    assert first_taker(text, local=True) == "-A DOCKER -p tcp -m tcp --dport 80 -j DNAT"


@pytest.mark.parametrize(
    "text",
    [
        "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-m conntrack --ctstate INVALID -j ACCEPT",
        "-m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT",
        "-m rpfilter --invert -j ACCEPT",
        "-f -j ACCEPT",
        "-j TARGET-OF-TOMORROW",
    ],
)
def test_what_lets_older_or_odd_packets_out_takes_them(text: str) -> None:
    """The guards are there for connections older than the redirect, too."""
    assert first_taker(f"PREROUTING: {text}") is not None


def test_what_a_drop_leaves_may_still_be_taken() -> None:
    text = """
        PREROUTING: -p tcp -m tcp --dport 80 -j DROP
        PREROUTING: -j ACCEPT
    """
    assert first_taker(text) == "-A PREROUTING -j ACCEPT"


def test_what_returns_for_one_port_may_still_be_taken_for_another() -> None:
    text = """
        PREROUTING: -j ONE
        ONE: -p tcp -m tcp --dport 80 -j RETURN
        ONE: -j ACCEPT
    """
    assert first_taker(text) == "-A ONE -j ACCEPT"


def test_chains_deeper_than_nfts_limit_are_followed() -> None:
    text = "PREROUTING: -j C0\n" + "\n".join(f"C{depth}: -j C{depth + 1}" for depth in range(30)) + "\nC30: -j ACCEPT"
    assert first_taker(text) == "-A C30 -j ACCEPT"
