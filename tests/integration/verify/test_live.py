"""The live proof on every dataplane and both wirings, and that it fails for what really is broken."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from kiam.dataplane.contract import HostNetwork
from kiam.dataplane.ebpf import uplink
from kiam.verify.checks.programs import read_programs
from kiam.verify.live.proof import LiveSettings
from kiam.verify.results import CheckResult, Status
from tests.integration.verify.site import AGENT_PORT, Found, Site
from tests.sandbox.netns import NODE_IPV4, NODE_IPV6
from tests.sandbox.node import NodeInABox
from tests.sandbox.process import wait_until

PROOF = "live: pod to agent"
MAPPED = "live: IPv4-mapped address, [::ffff:169.254.169.254]:80"
IPV6 = "live: IPv6, [fd00:ec2::254]:80"
RAW = "live: raw socket, a SYN made by hand"
PACKET = "live: packet socket, a frame made by hand"
HOST = "live: host to metadata"
HOST_POD = "live: host-network pod"
DATAPLANES = ("iptables", "nftables", "ebpf")


@pytest.fixture(scope="module")
def bridge_site() -> Iterator[Site]:
    with Site("bridge") as made:
        yield made


def live_lines(found: Found) -> list[CheckResult]:
    return [line for line in found.lines if line.check.startswith("live: ")]


def is_empty(cgroup: Path) -> bool:
    return not (cgroup / "cgroup.procs").read_text()


def failures(found: Found) -> list[str]:
    return [f"{line.check}: {line.seen}" for line in found.lines if line.status is Status.FAIL]


@pytest.mark.parametrize("dataplane", DATAPLANES)
@pytest.mark.parametrize("cni", ["calico", "bridge"])
def test_an_installed_dataplane_passes_every_check(
    calico_site: Site, bridge_site: Site, cni: str, dataplane: str
) -> None:
    site = {"calico": calico_site, "bridge": bridge_site}[cni]
    try:
        site.install(dataplane)
        code, output, errors = site.command(f"--dataplane={dataplane}")
    finally:
        site.reset()
    amiss = [line for line in output["checks"] if line["status"] not in {"PASS", "SKIP"}]
    assert (code, amiss, errors) == (0, [], "")
    live = [line for line in output["checks"] if line["check"].startswith("live: ")]
    assert [line["status"] for line in live] == ["PASS"] * 22
    assert site.leftovers() == []


@pytest.mark.parametrize("tool", ["iptables-nft", "iptables-legacy"])
def test_the_documented_rule_proves_itself_and_shows_what_it_leaves_open(site: Site, tool: str) -> None:
    site.by_hand(tool)
    lines = {line.check: line for line in live_lines(site.verify(live=True))}
    assert lines[PROOF].status is Status.PASS
    assert lines["live: another TCP port (443)"].status is Status.WARN
    # The real service answers over IPv6 here, and the rule is for IPv4 only: a pod has the node's role.
    assert lines[IPV6].status is Status.FAIL
    assert lines[HOST].status is Status.PASS
    site.shell(lines[IPV6].fix_text)
    after = site.verify("iptables", live=True)
    assert [line for line in live_lines(after) if line.status is not Status.PASS] == []


def test_without_a_redirect_the_pod_is_seen_to_reach_the_real_service(site: Site) -> None:
    found = site.verify(live=True)
    line = found.one(PROOF)
    assert line.status is Status.FAIL
    assert "the real service" in line.seen
    site.shell(line.fix_text)
    assert site.verify(live=True).one(PROOF).status is Status.PASS


@pytest.mark.parametrize("dataplane", DATAPLANES)
def test_it_is_proved_without_an_agent_too(site: Site, dataplane: str) -> None:
    site.install(dataplane)
    site.stop_agent()
    found = site.verify(dataplane, live=True)
    assert found.one(PROOF).status is Status.PASS
    assert failures(found) == ["agent: nothing answers at 192.0.2.10:8181: Connection refused"]


def test_something_else_on_the_agents_port_does_not_pass_for_the_agent(site: Site) -> None:
    from tests.integration.verify.site import AGENT_PORT, Listener, RealService

    site.by_hand()
    site.stop_agent()
    other = Listener(site.node, "0.0.0.0", AGENT_PORT, RealService)
    try:
        line = site.verify(live=True).one(PROOF)
    finally:
        other.close()
    assert line.status is Status.WARN
    assert "doesn't answer /ping" in line.seen


def test_a_redirect_to_something_that_says_it_is_the_agent_fails(site: Site) -> None:
    from tests.integration.verify.site import AgentPaths, Listener

    site.by_hand(target="DNAT --to-destination 192.0.2.10:9999")
    liar = Listener(site.node, "0.0.0.0", 9999, AgentPaths)
    try:
        line = site.verify(live=True).one(PROOF)
    finally:
        liar.close()
    assert line.status is Status.FAIL


def test_a_rewritten_source_address_is_seen(site: Site) -> None:
    site.by_hand()
    site.iptables("-t nat -A INPUT -p tcp --dport 8181 -j SNAT --to-source 192.0.2.10")
    line = site.verify(live=True).one(PROOF)
    assert line.status is Status.FAIL
    assert "source was rewritten" in line.seen


def test_a_firewall_no_listing_shows_is_seen(site: Site) -> None:
    site.install("nftables")
    site.shell("nft 'add table netdev x; add chain netdev x in { type filter hook ingress device eth0 priority 0; }'")
    site.iptables("-A INPUT -p tcp --dport 8181 -m mark ! --mark 0x1 -j DROP")
    found = site.verify("nftables", live=True)
    assert found.one(PROOF).status is Status.FAIL
    assert "no answer" in found.one(PROOF).seen


@pytest.mark.parametrize(
    ("dataplane", "broken", "check"),
    [
        ("nftables", "nft flush table inet kiam", PACKET),
        ("iptables", "ip6tables-nft -t mangle -F; ip6tables-nft -t nat -F", IPV6),
        ("iptables", "iptables-nft -t mangle -F", "live: UDP, port 80"),
    ],
)
def test_a_bypass_that_is_open_is_seen_and_closed(site: Site, dataplane: str, broken: str, check: str) -> None:
    site.install(dataplane)
    site.shell(broken)
    line = site.verify(dataplane, live=True).one(check)
    assert line.status is Status.FAIL
    assert "left the node" in line.seen
    site.shell(line.fix_text)
    assert failures(site.verify(dataplane, live=True)) == []


def detach_connect6(site: Site) -> None:
    (identifier,) = [one.program_id for one in read_programs([site.cgroups.root]) if one.hook == "connect6"]
    site.shell(f"bpftool cgroup detach {site.cgroups.root} cgroup_inet6_connect id {identifier}")


def test_ebpf_without_its_guards_lets_frames_out_and_is_fixed(site: Site) -> None:
    site.install("ebpf")
    site.shell("nft delete table inet kiam_ebpf")
    site.node.call(uplink.detach_all)
    found = site.verify("ebpf", live=True)
    assert [found.one(check).status for check in (RAW, PACKET)] == [Status.FAIL] * 2
    site.shell(found.one(PACKET).fix_text)
    assert failures(site.verify("ebpf", live=True)) == []


def test_ebpf_without_its_connect6_program_lets_mapped_addresses_out_and_is_fixed(site: Site) -> None:
    site.install("ebpf")
    site.shell("nft delete table inet kiam_ebpf")
    site.node.call(uplink.detach_all)
    detach_connect6(site)
    line = site.verify("ebpf", live=True).one(MAPPED)
    assert line.status is Status.FAIL
    site.shell(line.fix_text)
    assert failures(site.verify("ebpf", live=True)) == []


def test_a_host_that_is_redirected_is_seen_and_fixed(site: Site) -> None:
    site.by_hand()
    site.iptables("-t nat -A OUTPUT -d 169.254.169.254/32 -p tcp --dport 80 -j DNAT --to-destination 192.0.2.10:8181")
    line = site.verify(live=True).one(HOST)
    assert line.status is Status.FAIL
    assert "redirected to the agent" in line.seen
    site.shell(line.fix_text)
    assert site.verify(live=True).one(HOST).status is Status.PASS


FORWARDED = (
    "live: an interface that is no pod's",
    "live: inside VXLAN to the node",
    "live: inside Geneve to the node",
    "live: inside IPIP to the node",
    "live: inside GRE to the node",
    "live: IPv6 inside IPv4 (sit) to the node",
)


@pytest.mark.parametrize("dataplane", DATAPLANES)
def test_what_comes_in_on_no_pods_interface_is_not_forwarded(site: Site, dataplane: str) -> None:
    site.install(dataplane)
    found = site.verify_by_itself(live=True)
    assert {check: found.one(check).status for check in FORWARDED} == dict.fromkeys(FORWARDED, Status.PASS)
    assert found.one("live: a frame with a VLAN priority tag").status is Status.PASS
    assert found.one("live: a frame with a VLAN tag").status is Status.PASS
    assert site.leftovers() == []


def test_a_rule_by_hand_leaves_open_what_comes_in_on_no_pods_interface(site: Site) -> None:
    site.by_hand()
    found = site.verify_by_itself(live=True)
    assert {check: found.one(check).status for check in FORWARDED} == dict.fromkeys(FORWARDED, Status.WARN)
    line = found.one(FORWARDED[1])
    site.shell(line.command)
    assert site.verify_by_itself(live=True).one(FORWARDED[1]).status is Status.PASS


@pytest.mark.parametrize("dataplane", ["iptables", "nftables"])
def test_a_guard_that_lets_one_interface_forward_is_seen(site: Site, dataplane: str) -> None:
    site.install(dataplane)
    drops = {
        "iptables": "iptables-nft -t mangle -F KIAM-TO-METADATA",
        # Two of them: the forward hook drops once more what the prerouting hook let through.
        "nftables": "nft 'flush chain inet kiam pods-guard; flush chain inet kiam answers-guard'",
    }
    site.shell(drops[dataplane])
    line = site.verify_by_itself(live=True).one(FORWARDED[0])
    assert line.status is Status.FAIL
    assert "forwarded its packet to the real service" in line.seen
    site.shell(line.command)
    assert site.verify_by_itself(live=True).one(FORWARDED[0]).status is Status.PASS


def test_a_real_pods_namespace_serves_as_well(site: Site) -> None:
    site.install("nftables")
    found = site.verify("nftables", live=True, proof=LiveSettings(pod_netns=Path(site.pod.netns.path)))
    assert failures(found) == []
    assert f"{site.pod.address}:" in found.one(PROOF).seen
    assert found.one(PACKET).status is Status.PASS


@pytest.mark.timeout(300)
def test_a_node_with_kiams_own_agent_passes_with_each_dataplane() -> None:
    with NodeInABox("none") as box:
        box.add_namespace("team")
        box.add_pod("app", "team")
        box.start_server()
        box.start_agent()
        wanted = (
            *(f"--host={NODE_IPV4}", f"--host6={NODE_IPV6}", f"--port={AGENT_PORT}"),
            f"--host-interface={box.net.interface_pattern}",
        )
        for dataplane in DATAPLANES:
            assert box.kiam("dataplane", "install", f"--dataplane={dataplane}", *wanted).returncode == 0
            done = box.kiam("dataplane", "verify", *wanted, "--output=json")
            assert box.kiam("dataplane", "remove").returncode == 0
            checks = json.loads(done.stdout)["checks"]
            amiss = [line for line in checks if line["status"] not in {"PASS", "SKIP"}]
            assert (amiss, done.returncode) == ([], 0), amiss
            lines = {line["check"]: line["seen"] for line in checks}
            assert lines["installed state"] == f"{dataplane} is installed as wanted"
            assert "a kiam agent answered it" in lines[PROOF]
            assert lines[IPV6] == "landed on the agent"


def test_nothing_is_wired_where_the_pattern_names_no_interface(site: Site) -> None:
    from kiam.netfilter.interfaces import InterfacePattern

    line = site.verify(live=True, interface=InterfacePattern.parse("weave")).one(PROOF)
    assert line.status is Status.SKIP
    assert "--pod-netns" in line.fix_text


def test_a_firewall_that_knows_its_own_pods_only_is_no_failure_of_the_redirect(site: Site) -> None:
    # As Calico's Felix does: a chain for each interface it made, and a drop for every other of that name.
    site.by_hand()
    site.iptables("-N cali-from-wl-dispatch")
    site.iptables(f"-A cali-from-wl-dispatch -i {site.pod.interface} -j RETURN")
    site.iptables("-A cali-from-wl-dispatch -m comment --comment 'Unknown interface' -j DROP")
    site.iptables("-A INPUT -i cali+ -j cali-from-wl-dispatch")
    found = site.verify(live=True)
    assert found.one("host firewall").status is Status.PASS
    line = found.one(PROOF)
    assert line.status is Status.SKIP
    assert "Unknown interface" in line.seen
    assert "--pod-netns=" in line.fix_text
    real = site.verify(live=True, proof=LiveSettings(pod_netns=Path(site.pod.netns.path)))
    assert real.one(PROOF).status is Status.PASS


@pytest.mark.parametrize("dataplane", ["nftables", "ebpf"])
@pytest.mark.parametrize("mode", [HostNetwork.DENY, HostNetwork.REDIRECT])
def test_pods_on_the_host_network_are_proved_too(site: Site, dataplane: str, mode: HostNetwork) -> None:
    wanted = replace(site.wanted, host_network=mode)
    site.install(dataplane, wanted)
    found = site.verify(dataplane, live=True, host_network=mode)
    assert found.one(HOST_POD).status is Status.PASS
    assert found.one(HOST).status is Status.PASS
    assert failures(found) == []


def test_a_pod_on_the_host_network_that_is_not_denied_is_seen_and_fixed(site: Site) -> None:
    site.install("nftables", replace(site.wanted, host_network=HostNetwork.DENY))
    site.shell("nft flush chain inet kiam host-pods-guard")
    found = site.verify("nftables", live=True, host_network=HostNetwork.DENY)
    line = found.one(HOST_POD)
    assert line.status is Status.FAIL
    site.shell(line.fix_text)
    after = site.verify("nftables", live=True, host_network=HostNetwork.DENY)
    assert after.one(HOST_POD).status is Status.PASS


def test_no_live_leaves_the_proof_out(site: Site) -> None:
    site.by_hand()
    code, output, _ = site.command("--no-live")
    assert code == 0
    assert not [line for line in output["checks"] if line["check"].startswith("live: ")]


def test_the_probes_talk_to_the_metadata_service_and_the_host_only(site: Site) -> None:
    site.by_hand()
    site.shell(
        "nft 'add table inet watch; add counter inet watch elsewhere; "
        "add chain inet watch pre { type filter hook prerouting priority -500; }; "
        'add rule inet watch pre iifname "cali*" iifname != ' + site.pod.interface + " ip daddr != "
        "{ 169.254.169.254, 192.0.2.10 } counter name elsewhere; "
        'add rule inet watch pre iifname "cali*" iifname != ' + site.pod.interface + " ip6 daddr != "
        "{ fd00:ec2::254, fe80::/10, ff02::/16 } counter name elsewhere'"
    )
    site.verify(live=True)
    assert "packets 0 " in site.node.run("nft", "list", "counter", "inet", "watch", "elsewhere").stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_after_an_interruption(site: Site, number: signal.Signals) -> None:
    site.shell("iptables-nft -A INPUT -p tcp --dport 8181 -j DROP")  # so that the proof takes its time
    site.by_hand()
    process = site.node.popen(
        site.command_line("--dataplane=none"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )

    def wired() -> bool:
        assert process.poll() is None, process.communicate()
        return "198.1" in site.node.run("ip", "route").stdout

    wait_until(wired, "the throwaway pod")
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    if number is signal.SIGKILL:
        # The namespace, the veth pair and the routes go with the process; an empty cgroup stays.
        wait_until(lambda: all("kiamverify-" in line for line in site.leftovers()), "the kernel's cleaning up")
        for path in site.cgroups.root.rglob("kiamverify-*"):
            wait_until(partial(is_empty, path), "an empty cgroup")
            path.rmdir()
    else:
        assert process.returncode == 1
        assert errors.splitlines() == ["kiam dataplane: interrupted; everything made for the proof has been removed"]
    assert site.leftovers() == []
