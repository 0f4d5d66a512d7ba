"""Which interfaces are pods', which CNI they tell of, and what pattern is suggested."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kiam.netfilter.interfaces import InterfacePattern
from kiam.verify.checks.interfaces import Interface, check_interfaces, guess_cni, recommended_pattern
from kiam.verify.live.wiring import CannotWireError, plan
from kiam.verify.results import CheckResult, Status
from tests.unit.verify.listings import FIXES, WANTED


def veth(name: str, master: str = "") -> Interface:
    return Interface(name, "veth", master, other_namespace=True)


def bridge(name: str, ports: int = 1) -> Interface:
    return Interface(name, "bridge", ports=ports)


UPLINKS = [Interface("lo"), Interface("eth0"), Interface("eth1")]
CALICO = [*UPLINKS, veth("cali0123456789a"), veth("cali0123456789b"), Interface("tunl0", "ipip")]
AWS = [*UPLINKS, veth("eni0123456789a"), veth("eni0123456789b")]
CILIUM = [*UPLINKS, Interface("cilium_host", "veth"), veth("lxc0123456789a"), veth("lxc_health")]
FLANNEL = [*UPLINKS, bridge("cni0", 2), veth("veth01", "cni0"), veth("veth02", "cni0"), Interface("flannel.1", "vxlan")]
WEAVE = [*UPLINKS, bridge("weave", 2), veth("vethwepl01", "weave"), veth("vethwepl02", "weave")]
ROUTER = [*UPLINKS, bridge("kube-bridge"), veth("veth01", "kube-bridge")]
KUBENET = [*UPLINKS, bridge("cbr0"), veth("veth01", "cbr0")]
KIND = [Interface("lo"), veth("eth0"), veth("veth0a"), veth("veth0b")]
AZURE = [*UPLINKS, veth("azv01"), veth("azv02")]
DOCKER = [*UPLINKS, bridge("docker0"), veth("veth99", "docker0")]

NODES = {
    "cali+": (CALICO, "Calico"),
    "eni+": (AWS, "AWS VPC CNI"),
    "lxc+": (CILIUM, "Cilium"),
    "cni0": (FLANNEL, "flannel or the bridge plugin"),
    "weave": (WEAVE, "Weave Net"),
    "kube-bridge": (ROUTER, "kube-router"),
    "cbr0": (KUBENET, "kubenet"),
    "veth+": (KIND, "the ptp plugin (kindnet)"),
    "azv+": (AZURE, "Azure CNI"),
    "docker0": (DOCKER, "Docker's own bridge"),
}


def check(interfaces: list[Interface], pattern: str, uplinks: tuple[str, ...] = ("eth0",)) -> CheckResult:
    parsed = InterfacePattern.parse(pattern)
    recommended = recommended_pattern(interfaces, parsed, uplinks)
    fixes = replace(FIXES, target=replace(WANTED, interface=recommended))
    (line,) = check_interfaces(interfaces, parsed, uplinks, fixes)
    return line


@pytest.mark.parametrize("pattern", NODES)
def test_each_cni_is_guessed_and_its_pattern_passes(pattern: str) -> None:
    interfaces, cni = NODES[pattern]
    assert guess_cni(interfaces, ["eth0"]) == (cni, pattern)
    line = check(interfaces, pattern)
    assert line.status is Status.PASS
    assert cni in line.seen


@pytest.mark.parametrize("right", NODES)
@pytest.mark.parametrize("wrong", NODES)
def test_a_pattern_of_another_cni_fails_and_the_right_one_is_suggested(right: str, wrong: str) -> None:
    if right == wrong:
        return
    line = check(NODES[right][0], wrong)
    assert line.status is Status.FAIL
    assert f"-i {right} " in line.fix_text


def test_the_documented_inverted_pattern_passes_for_the_aws_vpc_cni() -> None:
    assert check(AWS, "!eth0").status is Status.PASS


def test_an_inverted_pattern_that_takes_in_the_uplink_is_a_warning() -> None:
    renamed = [Interface("lo"), Interface("ens5"), *AWS[3:]]
    line = check(renamed, "!eth0", ("ens5",))
    assert line.status is Status.WARN
    assert "ens5" in line.seen
    assert "-i eni+" in line.fix_text


def test_a_container_bridge_of_docker_beside_real_pods_is_not_missed() -> None:
    assert check([*CALICO, *DOCKER[3:]], "cali+").status is Status.PASS


def test_a_node_without_pods_is_skipped_or_warned_about() -> None:
    assert check(UPLINKS, "cali+").status is Status.SKIP
    empty = check([*UPLINKS, bridge("cni0", 0)], "cali+")
    assert empty.status is Status.WARN
    assert "-i cni0" in empty.fix_text


def test_some_pods_missed_is_a_failure() -> None:
    line = check([*CALICO, veth("veth77")], "cali+")
    assert line.status is Status.FAIL
    assert "veth77" in line.seen


def test_unknown_interfaces_get_a_pattern_from_their_common_prefix() -> None:
    line = check([*UPLINKS, veth("vethabc1"), veth("vethabc2"), veth("pod9x")], "cali+")
    assert line.status is Status.FAIL


def test_many_interfaces_are_not_all_named() -> None:
    line = check([*UPLINKS, *(veth(f"cali{number}") for number in range(100))], "eni+")
    assert "and 96 more" in line.seen


def test_ebpf_needs_no_pattern() -> None:
    (line,) = check_interfaces(
        CALICO, InterfacePattern.parse("weave"), ["eth0"], FIXES.with_dataplane("ebpf"), by_namespace=True
    )
    assert line.status is Status.PASS


@pytest.mark.parametrize(
    ("pattern", "interfaces", "on_bridge"),
    [
        ("cali+", CALICO, None),
        ("!eth0", AWS, None),
        ("lxc+", CILIUM, None),
        ("weave", WEAVE, "weave"),
        ("cni0", FLANNEL, "cni0"),
        ("cni+", FLANNEL, "cni0"),
        ("!eth0", FLANNEL, "cni0"),
        ("veth+", KIND, None),
        ("cali+", UPLINKS, None),
    ],
)
def test_the_throwaway_pod_is_wired_as_the_nodes_pods_are(
    pattern: str, interfaces: list[Interface], on_bridge: str | None
) -> None:
    parsed = InterfacePattern.parse(pattern)
    made = plan(parsed, interfaces)
    assert made.bridge == on_bridge
    assert len(made.host_name) <= 15
    assert parsed.matches(on_bridge or made.host_name)
    assert made.host_name != plan(parsed, interfaces).host_name


@pytest.mark.parametrize("pattern", ["weave", "eth0", "abcdefghijklmn+"])
def test_what_cannot_be_wired_says_why(pattern: str) -> None:
    with pytest.raises(CannotWireError):
        plan(InterfacePattern.parse(pattern), CALICO)


def test_the_name_follows_the_pods_where_the_pattern_is_inverted() -> None:
    assert plan(InterfacePattern.parse("!eth0"), AWS).host_name.startswith("eni")
