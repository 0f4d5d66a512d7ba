"""Every kind of fix that a check can print, run on the state that made it print it; then verify again."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest
import yaml

from kiam.dataplane.cgroups import CGROUP_VARIABLE
from kiam.dataplane.contract import HostNetwork
from kiam.netfilter.interfaces import InterfacePattern
from kiam.verify.checks import services
from kiam.verify.checks.mounts import check_cgroup2
from kiam.verify.checks.prerequisites import check_addresses, check_forwarding
from kiam.verify.fix import FixKind
from kiam.verify.fixes import Fixes
from kiam.verify.results import CheckResult, Status
from tests.integration.verify.fixing import run_fix, the_fix
from tests.integration.verify.site import KIAM, Found, Site
from tests.integration.verify.test_prerequisites import foreign_program
from tests.sandbox.netns import NODE_IPV4, NODE_IPV6

PROVED: set[FixKind] = {FixKind.ADVICE}
"""Advice is words: there is nothing to run."""

Test = Callable[..., None]


def proves(*kinds: FixKind) -> Callable[[Test], Test]:
    """Note which kinds of fix a test runs."""
    PROVED.update(kinds)
    return lambda test: test


def test_no_kind_of_fix_is_left_out() -> None:
    assert set(FixKind) - PROVED == set()


@contextmanager
def stand_in(folder: Path, name: str, script: str = "") -> Iterator[Path]:
    """A program of that name that notes how it was called and runs a script; yields the note's path."""
    note = folder / f"{name}.called"
    program = folder / name
    program.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" > {shlex.quote(str(note))}\n{script}\n')
    program.chmod(0o755)
    yield note


def fix_by_itself(site: Site, kind: FixKind, check: str = "", *, live: bool = False) -> Found:
    before = site.verify_by_itself(live=live)
    line, _ = the_fix(before, kind, check)
    return run_fix(site, before, line, lambda: site.verify_by_itself(live=live))


def failures(found: Found) -> list[CheckResult]:
    return found.but(Status.PASS, Status.SKIP)


@proves(FixKind.INSTALL)
def test_install_on_a_node_with_nothing_is_what_the_documentation_recommends(site: Site) -> None:
    after = fix_by_itself(site, FixKind.INSTALL, "installed state")
    assert after.one("installed state").seen == "nftables is installed as wanted"
    assert failures(after) == []


@pytest.mark.parametrize("dataplane", ["iptables", "nftables", "ebpf"])
def test_a_healthy_node_is_given_no_command_that_changes_it_whatever_is_asked(site: Site, dataplane: str) -> None:
    """The first thing people do: verify without --port, where the chart's port isn't the flag's default."""
    site.install(dataplane)
    assert failures(site.verify_by_itself()) == []
    for flags in (
        {"port": 3100},
        {"interface": InterfacePattern.parse("docker0")},
        {"host_network": HostNetwork.DENY},
        {"host_address6": NODE_IPV6},
        {"port": 3100, "interface": InterfacePattern.parse("!eth0")},
    ):
        found = site.verify(dataplane, **flags)
        assert [line for line in found.lines if line.check != "bpffs" and line.fix and line.fix.kind.changes] == []
        differing = not (dataplane == "ebpf" and set(flags) == {"interface"})
        assert [line.check for line in failures(found)] == (["installed state"] if differing else [])
    for other in {"iptables", "nftables", "ebpf", "none"} - {dataplane}:
        found = site.verify(other)
        (line,) = failures(found)
        assert line.seen.startswith(f"{dataplane} is installed, you asked about ")
        assert line.fix is not None
        assert not line.fix.kind.changes


def test_the_whole_script_of_fixes_can_be_run_at_once(site: Site) -> None:
    site.by_hand(port="8080")
    site.by_hand(interface="-i weave")
    site.iptables("-A INPUT -i cali+ -p tcp --dport 8181 -j REJECT")
    site.node.sysctl(ipv4__ip_forward=0)
    done = site.node.run(KIAM, "dataplane", "verify", "--no-live", "--fix", check=False, timeout=300)
    assert done.returncode == 1
    site.shell(f"sh -e <<'EOF'\n{done.stdout}\nEOF")
    assert failures(site.verify_by_itself()) == []


@proves(FixKind.INSERT_RULE)
def test_a_rule_by_hand_is_put_ahead_of_what_takes_the_packet(site: Site) -> None:
    site.iptables("-t nat -A PREROUTING -i cali+ -j ACCEPT")
    site.by_hand()
    assert failures(fix_by_itself(site, FixKind.INSERT_RULE, "taken first")) == []


def test_a_rule_of_ours_is_put_ahead_by_the_dataplane_and_not_by_hand(site: Site) -> None:
    site.install("iptables")
    site.iptables("-t nat -I PREROUTING 1 -i cali+ -j ACCEPT")
    after = fix_by_itself(site, FixKind.INSTALL, "taken first")
    assert failures(after) == []
    assert "alike" not in after.one("redirect rule").seen


NEAR = {
    "another port": {"port": "8080"},
    "another address": {"address": "169.254.169.253/32"},
    "another interface": {"interface": "-i weave"},
    "udp": {"protocol": "udp"},
    "REDIRECT": {"target": "REDIRECT --to-ports 8181"},
    "a comment with blanks": {"port": "8080", "interface": "-i cali+ -m comment --comment 'a \"near\" miss'"},
}


@proves(FixKind.REPLACE_RULE)
@pytest.mark.parametrize("what", NEAR)
@pytest.mark.parametrize("times", [1, 3])
def test_a_near_miss_is_replaced_however_often_it_is_there(site: Site, what: str, times: int) -> None:
    for _ in range(times):
        site.by_hand(**NEAR[what])
    before = site.verify()
    line, _ = the_fix(before, FixKind.REPLACE_RULE, "near miss")
    after = run_fix(site, before, line, site.verify)
    assert failures(after) == []


@proves(FixKind.DELETE_RULE)
@pytest.mark.parametrize("what", NEAR)
@pytest.mark.parametrize("dataplane", ["none", "iptables", "nftables"])
def test_a_near_miss_beside_the_right_rule_is_deleted(site: Site, what: str, dataplane: str) -> None:
    if dataplane == "none":
        site.by_hand()
    else:
        site.install(dataplane)
    for _ in range(2):
        site.by_hand(**NEAR[what])
    after = fix_by_itself(site, FixKind.DELETE_RULE, "near miss")
    assert failures(after) == []


@proves(FixKind.MOVE_RULE)
@pytest.mark.parametrize("copies", [("iptables-legacy",), ("iptables-legacy", "iptables-nft")])
def test_a_rule_of_the_other_backend_is_moved(site: Site, copies: tuple[str, ...]) -> None:
    site.iptables("-t mangle -N KUBE-IPTABLES-HINT")
    for tool in copies:
        site.by_hand(tool)
    assert failures(fix_by_itself(site, FixKind.MOVE_RULE)) == []


@proves(FixKind.REMOVE_DATAPLANE)
@pytest.mark.parametrize("pair", [("iptables", "nftables"), ("nftables", "ebpf"), ("ebpf", "iptables")])
def test_of_two_dataplanes_one_is_taken_out_and_pods_are_still_led_to_the_agent(
    site: Site, pair: tuple[str, str]
) -> None:
    for dataplane in pair:
        site.install(dataplane)
    assert failures(fix_by_itself(site, FixKind.REMOVE_DATAPLANE, live=True)) == []


def test_a_dataplane_for_an_agent_that_is_no_more_is_the_one_that_goes(site: Site) -> None:
    site.install("nftables", replace(site.wanted, port=3100))
    site.install("iptables")
    before = site.verify_by_itself()
    line, _ = the_fix(before, FixKind.REMOVE_DATAPLANE)
    assert line.command == "kiam dataplane remove --dataplane=nftables"
    assert failures(run_fix(site, before, line, site.verify_by_itself)) == []


@proves(FixKind.LET_PASS)
@pytest.mark.parametrize("dataplane", ["none", "nftables"])
@pytest.mark.parametrize(
    "rule",
    [
        "iptables-nft -t raw -A PREROUTING -j NOTRACK",
        "iptables-nft -t mangle -A PREROUTING -p tcp --dport 80 -j DROP",
        "iptables-nft -t nat -A OUTPUT -p tcp --dport 80 -j REDIRECT --to-ports 3128",
        "nft 'add table ip mine; add chain ip mine pre { type nat hook prerouting priority -150; }; "
        "add rule ip mine pre tcp dport 80 dnat to 192.0.2.99:80'",
    ],
)
def test_a_rule_of_somebody_else_lets_metadata_traffic_past_and_stays(site: Site, dataplane: str, rule: str) -> None:
    if dataplane == "none":
        site.by_hand()
    else:
        site.install(dataplane)
    site.shell(rule)
    rules = site.node.run("iptables-nft-save").stdout + site.node.run("nft", "--stateless", "list", "ruleset").stdout
    kept = [
        line
        for line in rules.splitlines()
        if " -j CT" in line or "--dport 80 -j DROP" in line or "3128" in line or "192.0.2.99" in line
    ]
    assert failures(fix_by_itself(site, FixKind.LET_PASS)) == []
    rules = site.node.run("iptables-nft-save").stdout + site.node.run("nft", "--stateless", "list", "ruleset").stdout
    assert set(kept) <= set(rules.splitlines())


@proves(FixKind.OPEN_FIREWALL)
def test_the_firewall_is_opened(site: Site) -> None:
    site.install("nftables")
    site.iptables("-A INPUT -i cali+ -p tcp --dport 8181 -j REJECT")
    assert failures(fix_by_itself(site, FixKind.OPEN_FIREWALL)) == []


@proves(FixKind.ENABLE_FORWARDING)
def test_forwarding_is_enabled(site: Site) -> None:
    site.install("nftables")
    site.node.sysctl(ipv4__ip_forward=0)
    assert failures(fix_by_itself(site, FixKind.ENABLE_FORWARDING)) == []


def in_own_mounts(script: str) -> list[str]:
    """Run Python in a mount namespace of its own: the machine's mounts stay as they are."""
    python = str(Path(KIAM).with_name("python"))
    done = subprocess.run(["unshare", "--mount", python, "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.split()


@proves(FixKind.MOUNT_CGROUP2)
@pytest.mark.parametrize(
    "layout",
    [
        "",
        "mount -t tmpfs none /sys/fs/cgroup",
        "mount -t tmpfs none /sys/fs/cgroup && mount -o remount,ro /sys/fs/cgroup",
    ],
)
def test_cgroup2_is_mounted_on_whatever_is_there(layout: str) -> None:
    script = (
        "import subprocess\n"
        "from ipaddress import IPv4Address\n"
        "from kiam.dataplane.contract import WantedState\n"
        "from kiam.netfilter.interfaces import EVERY_INTERFACE\n"
        "from kiam.verify.checks.mounts import check_cgroup2\n"
        "wanted = WantedState(IPv4Address('192.0.2.10'), 8181, EVERY_INTERFACE)\n"
        "subprocess.run('umount --recursive /sys/fs/cgroup', shell=True)\n"
        f"subprocess.run({layout!r}, shell=True, check=True)\n"
        "before = check_cgroup2(wanted, True)\n"
        "subprocess.run(before.command, shell=True, check=True)\n"
        "print(before.status, before.fix.kind, check_cgroup2(wanted, True).status)\n"
    )
    assert in_own_mounts(script) == ["FAIL", "mount-cgroup2", "PASS"]


@proves(FixKind.MOUNT_BPFFS)
def test_bpffs_is_mounted() -> None:
    script = (
        "import subprocess\n"
        "from kiam.verify.checks.mounts import check_bpf_filesystem as check\n"
        "subprocess.run(['umount', '--all', '-t', 'bpf'])\n"
        "before = check()\n"
        "subprocess.run(before.command, shell=True, check=True)\n"
        "print(before.status, before.fix.kind, check().status)\n"
    )
    assert in_own_mounts(script) == ["SKIP", "mount-bpffs", "PASS"]


@proves(FixKind.START_KUBELET)
def test_kubelet_is_started_where_it_has_made_no_cgroup_yet(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hierarchy = tmp_path / "cgroup"
    hierarchy.mkdir()
    wanted = replace(site.wanted, host_network=HostNetwork.DENY)

    def look() -> CheckResult:
        monkeypatch.setenv(CGROUP_VARIABLE, str(hierarchy))
        return check_cgroup2(wanted, False, lambda: hierarchy)

    before = look()
    assert before.fix is not None
    assert before.fix.kind is FixKind.START_KUBELET
    with stand_in(tmp_path, "systemctl", f"mkdir {hierarchy}/kubepods.slice") as note:
        site.shell(before.command, tmp_path)
    assert note.read_text().split() == ["start", "kubelet"]
    assert look().status is Status.PASS


@proves(FixKind.RESTART_AGENT)
def test_the_agent_of_this_node_is_replaced_whatever_the_update_strategy(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NODE_NAME", "ip-10-0-0-1.ec2.internal")
    site.install("nftables")
    site.stop_agent()
    before = site.verify_by_itself()
    line, _ = the_fix(before, FixKind.RESTART_AGENT, "agent")
    with stand_in(tmp_path, "kubectl") as note:
        site.shell(line.command, tmp_path)
    flags = note.read_text().split()
    # "rollout restart" does nothing to a DaemonSet whose update strategy is OnDelete; deleting the pod does.
    assert flags[:4] == ["--namespace", "kube-system", "delete", "pod"]
    selector = dict(pair.split("=") for pair in flags[flags.index("--selector") + 1].split(","))
    manifest = Path(__file__).parents[3] / "deploy/manifests/agent-nftables/agent.yaml"
    (agent,) = [one for one in yaml.safe_load_all(manifest.read_text()) if one["kind"] == "DaemonSet"]
    assert selector.items() <= agent["spec"]["template"]["metadata"]["labels"].items()
    assert agent["metadata"]["namespace"] == "kube-system"
    assert flags[flags.index("--field-selector") + 1] == "spec.nodeName=ip-10-0-0-1.ec2.internal"
    site.start_agent()  # as the DaemonSet's controller does
    assert failures(site.verify_by_itself()) == []


@proves(FixKind.ROUTE_TO_METADATA)
def test_the_route_to_metadata_leads_through_an_interface_that_works(site: Site) -> None:
    site.install("nftables")
    # A second interface without a carrier, whose name and metric come first.
    site.node.ip("link add aaa0 type veth peer name aaa1", "link set aaa0 up", "route add default dev aaa0 metric 1")
    try:
        site.node.ip("route add unreachable 169.254.169.254/32")
        before = site.verify_by_itself()
        line, _ = the_fix(before, FixKind.ROUTE_TO_METADATA)
        assert line.command.endswith(" dev eth0")
        after = run_fix(site, before, line, site.verify_by_itself)
        assert after.one("instance metadata").status is Status.PASS
    finally:
        site.node.run("ip", "route", "flush", "169.254.169.254/32")
        site.node.ip("link del aaa0")


@pytest.fixture
def silent_metadata(site: Site) -> Iterator[None]:
    """The real service answers nobody, as where it is off for the instance."""
    aws = site.net.aws
    aws.run("nft", "add table inet off; add chain inet off in { type filter hook input priority 0; }")
    aws.run("nft", "add rule inet off in ip daddr 169.254.169.254 tcp dport 80 reject with tcp reset")
    try:
        yield
    finally:
        aws.run("nft", "delete table inet off", check=False)


@proves(FixKind.ENABLE_METADATA)
def test_metadata_is_enabled_for_the_instance_by_its_own_identifier(
    site: Site, silent_metadata: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "instance_id", lambda: "i-0123456789abcdef0")
    site.install("nftables")
    before = site.verify_by_itself()
    line, _ = the_fix(before, FixKind.ENABLE_METADATA)
    with stand_in(tmp_path, "aws") as note:
        site.shell(line.command, tmp_path)
    assert note.read_text().split()[-2:] == ["--instance-id", "i-0123456789abcdef0"]
    site.net.aws.run("nft", "delete table inet off")  # as EC2 does
    assert failures(site.verify_by_itself()) == []


@proves(FixKind.SHOW_ROUTE)
def test_elsewhere_than_on_ec2_the_route_is_shown(site: Site, silent_metadata: None) -> None:
    site.install("nftables")
    fix_by_itself(site, FixKind.SHOW_ROUTE, "instance metadata")


@proves(FixKind.INSTALL_PACKAGE)
def test_the_package_of_a_missing_tool_is_installed(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.install("nftables")
    programs = tmp_path / "bin"
    programs.mkdir()
    for folder in reversed(os.environ["PATH"].split(":")):
        for program in Path(folder).glob("*") if Path(folder).is_dir() else ():
            # Either would do.
            if program.name not in ("ip6tables-nft-save", "ip6tables-save"):
                shutil.rmtree(programs / program.name, ignore_errors=True)
                (programs / program.name).unlink(missing_ok=True)
                (programs / program.name).symlink_to(program)
    missing = shutil.which("ip6tables-nft-save")
    monkeypatch.setenv("PATH", str(programs))
    (programs / "apt-get").unlink(missing_ok=True)
    with stand_in(programs, "apt-get", f"ln -s {missing} {programs}/ip6tables-nft-save") as note:
        before = site.verify_by_itself()
        line, _ = the_fix(before, FixKind.INSTALL_PACKAGE)
        assert "ip6tables-nft" in line.seen
        assert failures(run_fix(site, before, line, site.verify_by_itself)) == []
    assert note.read_text().split() == ["install", "--yes", "iptables"]


@proves(FixKind.VERIFY_AGAIN)
def test_verifying_again_verifies_what_is_installed(site: Site) -> None:
    site.install("nftables")
    code, printed, _ = site.command("--port=3100", "--no-live")
    (line,) = [line for line in printed["checks"] if line["status"] == "FAIL"]
    assert (code, line["fix"]["kind"]) == (1, "verify-again")
    assert site.node.run(*by_name(line["fix"]["command"]), "--no-live", timeout=300).returncode == 0


def by_name(command: str) -> list[str]:
    """The words of a command, with kiam's path for its name."""
    return [KIAM if word == "kiam" else word for word in shlex.split(command)]


@proves(FixKind.VERIFY_FROM_POD)
def test_where_no_pod_can_be_wired_a_real_ones_namespace_is_used(site: Site) -> None:
    wanted = replace(site.wanted, interface=InterfacePattern.parse(site.pod.interface))
    site.install("nftables", wanted)
    uid = "7d9b2c4e-0000-4000-8000-0123456789ab"
    sleeper = site.pod.netns.popen(["sleep", "300"], cgroup=site.cgroups.pod(uid))
    try:
        before = site.verify_by_itself(live=True)
        line, _ = the_fix(before, FixKind.VERIFY_FROM_POD)
        # Other tests' pods are on this machine too; on a node there is one namespace for all.
        command = [*by_name(line.command.rpartition("/proc/")[0] + f"/proc/{sleeper.pid}/ns/net"), "--output=json"]
        done = site.node.run(*command, timeout=300)
        proof = {one["check"]: one["status"] for one in json.loads(done.stdout)["checks"]}
        assert proof["live: pod to agent"] == "PASS"
    finally:
        sleeper.kill()
        sleeper.wait()


NET_ADMIN_ONLY = ("setpriv", "--inh-caps=-all,+net_admin", "--bounding-set=-all,+net_admin")


@proves(FixKind.VERIFY_BY_HELM)
def test_in_the_agents_pod_the_charts_test_makes_the_proof(site: Site, tmp_path: Path) -> None:
    site.install("nftables")
    done = site.node.run(*NET_ADMIN_ONLY, KIAM, "dataplane", "verify", "--output=json", timeout=300)
    lines = {one["check"]: one for one in json.loads(done.stdout)["checks"]}
    fix = lines["live: pod to agent"]["fix"]
    assert (lines["live: pod to agent"]["status"], fix["kind"], fix["where"]) == ("SKIP", "verify-by-helm", "cluster")
    with stand_in(tmp_path, "helm", f"exec {KIAM} dataplane verify") as note:
        site.shell(fix["command"], tmp_path)
    assert note.read_text().split() == ["test", "kiam", "--namespace", "kube-system", "--logs"]


@proves(FixKind.VERIFY_WITH_RIGHTS)
def test_without_root_sudo_makes_the_proof(site: Site, tmp_path: Path) -> None:
    site.install("nftables")
    nobody = (
        "setpriv",
        *("--reuid=65534", "--clear-groups", "--inh-caps=-all,+net_admin", "--ambient-caps=-all,+net_admin"),
    )
    done = site.node.run(*nobody, KIAM, "dataplane", "verify", "--output=json", check=False, timeout=300)
    if "Permission denied" in done.stderr:
        pytest.skip("this checkout can be read by root only")
    line = {one["check"]: one for one in json.loads(done.stdout)["checks"]}["live: pod to agent"]
    assert (line["status"], line["fix"]["kind"]) == ("SKIP", "verify-with-rights")
    with stand_in(tmp_path, "sudo", 'exec "$@"'):
        site.shell(line["fix"]["command"], tmp_path)


@proves(FixKind.SHOW_PROGRAM)
def test_a_program_of_somebody_else_is_shown_and_left_alone(site: Site) -> None:
    site.install("nftables")
    with foreign_program(site.cgroups.root):
        fix_by_itself(site, FixKind.SHOW_PROGRAM)


@proves(FixKind.SHOW_CLASSIFIERS)
def test_a_classifier_of_somebody_else_is_shown_and_left_alone(site: Site) -> None:
    site.install("nftables")
    interface = site.pod.interface
    site.shell(f"tc qdisc add dev {interface} clsact; tc filter add dev {interface} ingress bpf bytecode '1,6 0 0 0,'")
    try:
        fix_by_itself(site, FixKind.SHOW_CLASSIFIERS)
    finally:
        site.shell(f"tc qdisc del dev {interface} clsact")


@proves(FixKind.SHOW_POLICIES)
def test_ciliums_policies_are_shown(site: Site, tmp_path: Path) -> None:
    site.install("nftables")
    with foreign_program(site.cgroups.root, b"cil_sock4_conne"), stand_in(tmp_path, "kubectl"):
        before = site.verify_by_itself()
        line, _ = the_fix(before, FixKind.SHOW_POLICIES)
        run_fix(site, before, line, site.verify_by_itself, tmp_path)


@proves(FixKind.SHOW_LISTENER)
def test_who_listens_in_the_agents_place_is_shown(site: Site) -> None:
    from tests.integration.verify.site import AGENT_PORT, Listener, RealService

    site.install("nftables")
    site.stop_agent()
    other = Listener(site.node, "0.0.0.0", AGENT_PORT, RealService)
    try:
        fix_by_itself(site, FixKind.SHOW_LISTENER, "agent")
    finally:
        other.close()


@proves(FixKind.SHOW_ADDRESSES)
def test_addresses_are_shown_where_none_can_be_recommended(site: Site) -> None:
    wanted = replace(site.wanted, host_address=IPv4Address("10.9.9.9"))
    line = site.node.call(lambda: check_addresses(wanted, Fixes(wanted, "nftables")))
    assert line.fix is not None
    assert line.fix.kind is FixKind.SHOW_ADDRESSES
    site.shell(line.command)


@proves(FixKind.SHOW_FORWARDING)
def test_forwarding_is_shown_where_it_cannot_be_read(site: Site, tmp_path: Path) -> None:
    line = check_forwarding(tmp_path)
    assert line.fix is not None
    assert line.fix.kind is FixKind.SHOW_FORWARDING
    site.shell(line.command)


def test_an_address_the_node_has_no_more_is_replaced_in_both_families(site: Site) -> None:
    site.node.ip("addr add 192.0.2.20/24 dev eth0", f"addr add {NODE_IPV6 + 1}/64 dev eth0")
    try:
        old = replace(site.wanted, host_address=IPv4Address("192.0.2.20"), host_address6=NODE_IPV6 + 1)
        site.install("nftables", old)
    finally:
        site.node.ip("addr del 192.0.2.20/24 dev eth0", f"addr del {NODE_IPV6 + 1}/64 dev eth0")
    after = fix_by_itself(site, FixKind.INSTALL, "host address")
    assert failures(after) == []
    assert after.one("host address").seen == f"{NODE_IPV4} and {NODE_IPV6} are addresses of this node"


def test_a_pattern_that_misses_the_pods_is_replaced_and_the_agent_mentioned(site: Site) -> None:
    site.install("nftables", replace(site.wanted, interface=InterfacePattern.parse("weave")))
    before = site.verify_by_itself()
    line, fix = the_fix(before, FixKind.INSTALL, "interface pattern")
    assert "give the agent the same" in fix.note
    assert failures(run_fix(site, before, line, site.verify_by_itself)) == []
