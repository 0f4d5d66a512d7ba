"""What is verified: what is installed, with the flags a person gave put over it, and what is then recommended."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from kiam.dataplane.cgroups import GONE
from kiam.dataplane.contract import Condition, HostNetwork, Inspection, WantedState
from kiam.netfilter.interfaces import EVERY_INTERFACE, InterfacePattern, IptablesBackend
from kiam.netfilter.model import Table
from kiam.verify.checks.installed import check_installed
from kiam.verify.checks.interfaces import Interface
from kiam.verify.discovery import AUTO, Node, discover
from kiam.verify.fix import FixKind
from kiam.verify.fixes import Fixes
from kiam.verify.results import Status
from kiam.verify.subject import Asked, Subject
from tests.unit.verify.listings import FIXES, nat

LOCAL = IPv4Address("127.0.0.1")
"""The only address every machine has; discovery doesn't mind that pods can't be led there."""
STATE = WantedState(LOCAL, 8181, InterfacePattern.parse("cali+"))
CALICO = [Interface("eth0"), Interface("cali0", kind="veth", other_namespace=True)]
RULE = "-A PREROUTING -d 169.254.169.254/32 -i weave -p tcp -m tcp --dport 80 -j DNAT --to-destination 127.0.0.1:3100"


def node(tables: list[Table] | None = None, host: IPv4Address | None = None, **changes: Any) -> Node:
    return replace(Node(tables or [], CALICO, ["eth0"], IptablesBackend.NFT, host), **changes)


def absent(error: str = "") -> Asked:
    return Asked(error=error) if error else Asked(Inspection(Condition.ABSENT))


def there(state: WantedState | None = STATE, condition: Condition = Condition.INSTALLED) -> Asked:
    return Asked(Inspection(condition, ("found",), (), state))


def all_asked(**answers: Asked) -> dict[str, Asked]:
    return {name: answers.get(name, absent()) for name in ("iptables", "nftables", "ebpf")}


def found(
    requested: str = AUTO,
    given: dict[str, Any] | None = None,
    pongs: tuple[tuple[str, int], ...] = (("127.0.0.1", 8181),),
    at: Node | None = None,
    **answers: Asked,
) -> Subject:
    def pong(address: IPv4Address, port: int) -> bool:
        return (str(address), port) in pongs

    return discover(requested, given or {}, all_asked(**answers), at or node(), pong)


def test_without_flags_what_is_installed_is_verified() -> None:
    subject = found(nftables=there())
    assert (subject.dataplane, subject.wanted, subject.difference) == ("nftables", STATE, "")


def test_a_flag_that_agrees_changes_nothing() -> None:
    given = {"port": 8181, "host_address": LOCAL, "iptables_backend": IptablesBackend.AUTO}
    subject = found(given=given, nftables=there())
    assert (subject.wanted, subject.difference) == (STATE, "")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"port": 3100}, "installed for :8181, you asked about :3100"),
        (
            {"host_address": IPv4Address("10.9.9.9")},
            "installed for 127.0.0.1, you asked about 10.9.9.9",
        ),
        (
            {"interface": InterfacePattern.parse("docker0")},
            "installed for interface cali+, you asked about interface docker0",
        ),
        (
            {"host_network": HostNetwork.DENY},
            "installed for host network ignore, you asked about host network deny",
        ),
        (
            {"host_address6": IPv6Address("fd00::1")},
            "installed for IPv6 address none, you asked about IPv6 address fd00::1",
        ),
    ],
)
@pytest.mark.parametrize("dataplane", ["iptables", "nftables"])
def test_a_flag_that_differs_is_said_and_what_is_installed_is_verified(
    given: dict[str, Any], said: str, dataplane: str
) -> None:
    asked = all_asked(**{dataplane: there()})
    subject = discover(AUTO, given, asked, node(), lambda _, port: port == 8181)
    assert subject.difference == f"{dataplane} is {said}"
    assert (subject.wanted, subject.target.port) == (STATE, 8181)
    (line,) = check_installed(subject, there(), asked, FIXES)
    assert (line.status, line.seen) == (Status.FAIL, subject.difference)
    assert line.fix is not None
    assert not line.fix.kind.changes


def test_the_person_is_right_where_the_agent_is_where_they_say_and_not_where_pods_are_led() -> None:
    subject = found(given={"port": 3100}, pongs=(("127.0.0.1", 3100),), nftables=there())
    assert subject.stale
    assert subject.wanted.port == 3100
    (line,) = check_installed(subject, there(), all_asked(nftables=there()), FIXES.with_dataplane("nftables"))
    assert line.fix is not None
    assert line.fix.kind is FixKind.INSTALL


def test_an_interface_pattern_is_no_difference_where_it_plays_no_part() -> None:
    state = replace(STATE, interface=EVERY_INTERFACE)
    subject = found(given={"interface": InterfacePattern.parse("cali+")}, ebpf=there(state))
    assert (subject.dataplane, subject.difference) == ("ebpf", "")


def test_the_nodes_own_backend_is_no_difference_and_the_other_one_is_read_back() -> None:
    assert found(iptables=there(replace(STATE, iptables_backend=IptablesBackend.NFT))).wanted == STATE
    legacy = replace(STATE, iptables_backend=IptablesBackend.LEGACY)
    assert found(iptables=there(legacy)).wanted == legacy
    given = {"iptables_backend": IptablesBackend.NFT}
    assert (
        "backend legacy, you asked about iptables backend nft" in found(given=given, iptables=there(legacy)).difference
    )
    same = found(given=given, iptables=there(replace(STATE, iptables_backend=IptablesBackend.NFT)))
    assert same.difference == ""


@pytest.mark.parametrize("requested", ["iptables", "ebpf", "none"])
def test_asking_for_another_dataplane_than_the_installed_one_is_a_difference_too(requested: str) -> None:
    subject = found(requested, nftables=there())
    assert subject.dataplane == "nftables"
    assert subject.difference.startswith("nftables is installed, you asked about ")


def test_of_several_the_one_an_agent_answers_behind_is_verified() -> None:
    elsewhere = replace(STATE, port=3100)
    assert found(iptables=there(), nftables=there(elsewhere)).dataplane == "iptables"
    assert found(iptables=there(elsewhere), nftables=there()).dataplane == "nftables"
    assert found(iptables=there(), nftables=there(), ebpf=there()).dataplane == "ebpf"
    assert found("iptables", iptables=there(), nftables=there()).dataplane == "iptables"


@pytest.mark.parametrize("kept", [Condition.INSTALLED, Condition.DIFFERENT])
def test_the_others_are_taken_out_and_the_one_that_stays_is_right_first(kept: Condition) -> None:
    asked = all_asked(iptables=there(), nftables=there(condition=kept))
    subject = found("nftables", iptables=there(), nftables=there(condition=kept))
    lines = check_installed(subject, asked["nftables"], asked, Fixes(STATE, "nftables"))
    assert lines[1].status is Status.WARN
    assert lines[1].seen == "iptables is installed too: found"
    *before, last = lines[1].command.split(" && ")
    assert last == "kiam dataplane remove --dataplane=iptables"
    assert bool(before) is (kept is Condition.DIFFERENT)


def test_a_rule_made_by_hand_says_what_it_is_for() -> None:
    subject = found(at=node(nat(RULE)), pongs=())
    assert subject.dataplane == "none"
    assert subject.wanted == WantedState(LOCAL, 3100, InterfacePattern.parse("cali+"))
    given = {"port": 8181}
    assert found(given=given, at=node(nat(RULE))).wanted.port == 8181


def test_with_nothing_installed_the_documentations_choice_is_recommended() -> None:
    subject = found(at=node(host=LOCAL), pongs=())
    assert (subject.dataplane, subject.wanted) == ("nftables", STATE)
    assert found(at=node(host=LOCAL), nftables=absent("libnftables isn't installed")).dataplane == "iptables"
    assert found("ebpf", at=node(host=LOCAL)).dataplane == "ebpf"


def test_the_port_is_the_one_an_agent_answers_at() -> None:
    assert found(at=node(host=LOCAL), pongs=(("127.0.0.1", 3100),)).wanted.port == 3100


def test_fixes_lead_to_an_address_of_the_node_and_a_pattern_that_finds_its_pods() -> None:
    wrong = replace(
        STATE,
        host_address6=IPv6Address("2001:db8::77"),
        interface=InterfacePattern.parse("weave"),
        agent_cgroup=GONE,
    )
    subject = found(nftables=there(wrong))
    assert subject.wanted == wrong
    assert subject.target.interface == InterfacePattern.parse("cali+")
    assert subject.target.host_address6 != wrong.host_address6
    assert subject.target.agent_cgroup is None


def test_an_agents_pod_that_is_no_more_is_the_agents_to_replace() -> None:
    state = replace(STATE, host_network=HostNetwork.DENY, agent_cgroup=GONE)
    subject = found(nftables=there(state))
    (line,) = check_installed(subject, Asked(error="no cgroup"), all_asked(nftables=there(state)), FIXES)
    assert line.fix is not None
    assert line.fix.kind is FixKind.RESTART_AGENT


@pytest.mark.parametrize(
    ("now", "status"),
    [
        (there(), Status.PASS),
        (there(condition=Condition.DIFFERENT), Status.FAIL),
        (absent(), Status.FAIL),
        (absent("libnftables isn't installed"), Status.FAIL),
    ],
)
def test_the_chosen_dataplanes_condition_is_reported(now: Asked, status: Status) -> None:
    subject = found("nftables", at=node(host=LOCAL))
    (line,) = check_installed(subject, now, all_asked(), FIXES.with_dataplane("nftables"))
    assert line.status is status
    assert status is Status.PASS or line.command.startswith("kiam dataplane install --dataplane=nftables ")
