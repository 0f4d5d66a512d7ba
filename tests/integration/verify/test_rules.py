"""What is wrong with the redirect, broken one thing at a time, and fixed by running what verify prints."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from kiam.netfilter.interfaces import InterfacePattern
from kiam.verify.results import CheckResult, Status
from tests.integration.verify.site import Found, Site

RULES = ("redirect rule", "near miss", "iptables backend", "taken first", "host firewall", "host untouched")


def rule_lines(found: Found) -> list[CheckResult]:
    return [line for line in found.lines if line.check in RULES]


def amiss(found: Found) -> list[CheckResult]:
    return [line for line in rule_lines(found) if line.status is not Status.PASS]


def fixed(site: Site, line: CheckResult, dataplane: str = "none") -> Found:
    site.shell(line.fix_text)
    return site.verify(dataplane)


def test_a_documented_rule_made_by_hand_passes(site: Site) -> None:
    site.by_hand()
    assert amiss(site.verify()) == []
    assert site.verify("auto").one("redirect rule").status is Status.PASS


def test_a_missing_rule_is_seen_and_fixed(site: Site) -> None:
    line = site.verify().one("redirect rule")
    assert line.status is Status.FAIL
    assert amiss(fixed(site, line)) == []


def test_a_rule_installed_twice_is_said_to_be_harmless(site: Site) -> None:
    site.by_hand()
    site.by_hand()
    line = site.verify().one("redirect rule")
    assert line.status is Status.PASS
    assert "2 rules alike" in line.seen
    assert "harmless" in line.seen


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"port": "8080"}, "destination port 8080 instead of 80"),
        ({"address": "169.254.169.253/32"}, "address 169.254.169.253/32 instead of 169.254.169.254/32"),
        ({"interface": "-i weave"}, "interface weave instead of cali+"),
        ({"interface": "'!' -i cali+"}, "interface not cali+ instead of cali+"),
        ({"protocol": "udp"}, "protocol udp instead of tcp"),
        ({"target": "DNAT --to-destination 192.0.2.10:3100"}, "to 192.0.2.10:3100 instead of 192.0.2.10:8181"),
        ({"target": "DNAT --to-destination 192.0.2.11:8181"}, "to 192.0.2.11:8181 instead of 192.0.2.10:8181"),
        ({"target": "REDIRECT --to-ports 8181"}, "REDIRECT to port 8181 instead of DNAT"),
    ],
)
def test_a_near_miss_is_told_from_the_rule_and_fixed(site: Site, changes: dict[str, str], told: str) -> None:
    site.by_hand(**changes)
    found = site.verify()
    assert found.one("redirect rule").status is Status.FAIL
    line = found.one("near miss")
    assert line.status is Status.FAIL
    assert told in line.seen
    assert amiss(fixed(site, line)) == []


def test_a_near_miss_beside_the_right_rule_is_a_warning(site: Site) -> None:
    site.by_hand()
    site.by_hand(port="8080")
    found = site.verify()
    assert found.one("redirect rule").status is Status.PASS
    line = found.one("near miss")
    assert line.status is Status.WARN
    assert amiss(fixed(site, line)) == []


def test_a_rule_for_any_interface_works_and_is_a_warning(site: Site) -> None:
    site.by_hand(interface="")
    found = site.verify()
    assert found.one("redirect rule").status is Status.PASS
    line = found.one("near miss")
    assert line.status is Status.WARN
    assert "any interface" in line.seen
    assert amiss(fixed(site, line)) == []


def test_a_rule_of_the_other_backend_is_seen_and_moved(site: Site) -> None:
    site.iptables("-t mangle -N KUBE-IPTABLES-HINT")
    site.by_hand("iptables-legacy")
    found = site.verify()
    assert found.one("redirect rule").status is Status.PASS
    line = found.one("iptables backend")
    assert line.status is Status.WARN
    assert "iptables-legacy" in line.seen
    after = fixed(site, line)
    assert amiss(after) == []
    assert "169.254.169.254" not in site.node.run("iptables-legacy-save").stdout


def test_a_rule_in_legacy_is_right_where_the_nodes_rules_are_legacy(site: Site) -> None:
    site.iptables("-t mangle -N KUBE-IPTABLES-HINT", "iptables-legacy")
    site.by_hand("iptables-legacy")
    assert amiss(site.verify()) == []


@pytest.mark.parametrize("dataplane", ["iptables", "nftables", "ebpf"])
def test_what_an_agent_on_another_port_left_is_seen_and_brought_up_to_date(site: Site, dataplane: str) -> None:
    from dataclasses import replace

    site.install(dataplane, replace(site.wanted, port=3100))
    line = site.verify(dataplane).one("installed state")
    assert line.status is Status.FAIL
    assert line.seen == f"{dataplane} is installed for :3100, you asked about :8181, where an agent answers"
    after = fixed(site, line, dataplane)
    assert after.one("installed state").status is Status.PASS
    assert amiss(after) == []


@pytest.mark.parametrize("dataplane", ["iptables", "nftables", "ebpf"])
def test_a_dataplane_that_is_not_installed_is_seen_and_installed(site: Site, dataplane: str) -> None:
    line = site.verify(dataplane).one("installed state")
    assert line.status is Status.FAIL
    assert "not installed" in line.seen
    assert fixed(site, line, dataplane).one("installed state").status is Status.PASS


def test_another_dataplane_of_ours_beside_the_chosen_one_is_taken_out(site: Site) -> None:
    site.install("iptables")
    site.install("nftables")
    line = site.verify("nftables").one("other dataplanes")
    assert line.status is Status.WARN
    assert "iptables" in line.seen
    assert fixed(site, line, "nftables").of("other dataplanes") == []


TAKERS = {
    "hand-made DNAT": ("iptables-nft -t nat -A PREROUTING -d 169.254.0.0/16 -p tcp -j DNAT --to 192.0.2.99:80",),
    "hand-made redirect": ("iptables-nft -t nat -A PREROUTING -p tcp --dport 80 -j REDIRECT --to-ports 3128",),
    "an ACCEPT ahead": ("iptables-nft -t nat -A PREROUTING -i cali+ -j ACCEPT",),
    "kube-proxy": (
        "iptables-nft -t nat -N KUBE-SERVICES",
        "iptables-nft -t nat -N KUBE-SEP-A",
        "iptables-nft -t nat -A PREROUTING -m comment --comment 'kubernetes service portals' -j KUBE-SERVICES",
        "iptables-nft -t nat -A KUBE-SERVICES -d 169.254.169.254/32 -p tcp -m tcp --dport 80 -j KUBE-SEP-A",
        "iptables-nft -t nat -A KUBE-SEP-A -p tcp -m tcp -j DNAT --to-destination 10.42.0.99:80",
    ),
    "Docker": (
        "iptables-nft -t nat -N DOCKER",
        "iptables-nft -t nat -A PREROUTING -j DOCKER",
        "iptables-nft -t nat -A DOCKER -p tcp -m tcp --dport 80 -j DNAT --to-destination 172.17.0.2:80",
    ),
    "not tracked": ("iptables-nft -t raw -A PREROUTING -d 169.254.169.254/32 -j NOTRACK",),
    "dropped early": ("iptables-nft -t mangle -A PREROUTING -d 169.254.0.0/16 -j DROP",),
    "the other backend": (
        "iptables-nft -t mangle -N KUBE-IPTABLES-HINT",
        "iptables-legacy -t mangle -A PREROUTING -i cali+ -p tcp --dport 80 -j DROP",
    ),
    "nft before dstnat": (
        "nft 'add table ip mine; add chain ip mine pre { type nat hook prerouting priority -110; }; "
        "add rule ip mine pre ip daddr 169.254.169.254 tcp dport 80 dnat to 192.0.2.99:80'",
    ),
    "kube-proxy in nftables mode": (
        "nft 'add table ip kube-proxy; add chain ip kube-proxy endpoint; add chain ip kube-proxy nat-prerouting "
        "{ type nat hook prerouting priority -110; }; add map ip kube-proxy service-ips "
        "{ type ipv4_addr . inet_proto . inet_service : verdict; }; "
        "add element ip kube-proxy service-ips { 169.254.169.254 . tcp . 80 : goto endpoint }; "
        "add rule ip kube-proxy endpoint meta l4proto tcp dnat to 10.42.0.99:80; "
        "add rule ip kube-proxy nat-prerouting ip daddr . meta l4proto . th dport vmap @service-ips'",
    ),
}


@pytest.mark.parametrize("what", TAKERS)
def test_what_takes_the_packet_first_is_seen_and_fixed(site: Site, what: str) -> None:
    for command in TAKERS[what]:
        site.shell(command)
    site.by_hand()
    (line,) = amiss(site.verify())
    assert line.check == "taken first"
    assert line.status is Status.FAIL
    if what.startswith(("kube-proxy", "Docker")):
        assert what.split(" in ")[0] in line.seen
    assert amiss(fixed(site, line)) == []


def test_rules_of_kube_proxy_that_leave_metadata_alone_are_left_alone(site: Site) -> None:
    from tests.integration.dataplane.kube_proxy import iptables_rules

    site.node.run("iptables-nft-restore", "--noflush", stdin=iptables_rules(200))
    site.by_hand()
    assert amiss(site.verify()) == []


def test_a_rule_that_only_sometimes_matches_is_a_warning(site: Site) -> None:
    site.iptables("-t nat -A PREROUTING -m statistic --mode random --probability 0.5 -j ACCEPT")
    site.by_hand()
    (line,) = amiss(site.verify())
    assert (line.check, line.status) == ("taken first", Status.WARN)
    assert amiss(fixed(site, line)) == []


FIREWALLS = {
    "a policy": ("iptables-nft -P INPUT DROP",),
    "a rule": ("iptables-nft -A INPUT -p tcp --dport 8181 -j REJECT",),
    "a chain": ("iptables-nft -N INNER", "iptables-nft -A INNER -j DROP", "iptables-nft -A INPUT -i cali+ -j INNER"),
    "nftables": (
        "nft 'add table inet fw; add chain inet fw input { type filter hook input priority 0; policy drop; }'",
    ),
}


@pytest.mark.parametrize(
    ("what", "dataplane"), [*((what, "none") for what in FIREWALLS), ("a chain", "nftables"), ("a rule", "ebpf")]
)
def test_a_firewall_of_the_host_is_seen_and_opened(site: Site, what: str, dataplane: str) -> None:
    if dataplane == "none":
        site.by_hand()
    else:
        site.install(dataplane)
    try:
        for command in FIREWALLS[what]:
            site.shell(command)
        (line,) = amiss(site.verify(dataplane))
        assert (line.check, line.status) == ("host firewall", Status.FAIL)
        assert amiss(fixed(site, line, dataplane)) == []
    finally:
        site.iptables("-P INPUT ACCEPT")


def test_a_rule_that_redirects_the_host_is_seen_and_taken_out(site: Site) -> None:
    site.by_hand()
    site.iptables("-t nat -A OUTPUT -d 169.254.169.254/32 -p tcp --dport 80 -j DNAT --to-destination 192.0.2.10:8181")
    (line,) = amiss(site.verify())
    assert (line.check, line.status) == ("host untouched", Status.FAIL)
    assert amiss(fixed(site, line)) == []


def test_a_pattern_that_misses_the_pods_is_seen_and_the_right_one_suggested(site: Site) -> None:
    site.by_hand(interface="-i weave")
    line = site.verify(interface=InterfacePattern.parse("weave")).one("interface pattern")
    assert line.status is Status.FAIL
    assert "Calico" in line.seen
    assert "-i cali+" in line.fix_text
    site.shell(line.fix_text)
    assert site.verify().one("interface pattern").status is Status.PASS


def test_the_route_to_the_metadata_service_is_no_pods_interface(site: Site) -> None:
    # A node that is itself a container has veths as its uplinks, and not only the one of its default route.
    site.node.ip("link add up0 type veth peer up1 netns " + site.net.aws.name, "link set up0 up")
    try:
        assert site.verify().one("interface pattern").status is Status.FAIL
        site.node.ip("route add 169.254.169.254/32 dev up0")
        assert site.verify().one("interface pattern").status is Status.PASS
    finally:
        site.node.ip("link del up0")


def test_an_address_of_another_machine_is_seen_and_the_nodes_own_suggested(site: Site) -> None:
    line = site.verify("nftables", host_address=IPv4Address("192.0.2.77")).one("host address")
    assert line.status is Status.FAIL
    assert "192.0.2.77 is not an address of this node" in line.seen
    site.shell(line.fix_text)
    assert site.verify("nftables").one("installed state").status is Status.PASS
