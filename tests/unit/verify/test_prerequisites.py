"""Prerequisites from what is read, without breaking the machine."""

from __future__ import annotations

import http.client
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from kiam.dataplane.contract import Condition, HostNetwork, Inspection
from kiam.errors import UserError
from kiam.verify.checks.classifiers import Classifier, check_classifiers
from kiam.verify.checks.installed import AUTO, Asked, check_installed, choose
from kiam.verify.checks.prerequisites import (
    Answer,
    check_agent,
    check_bpf_filesystem,
    check_cgroup2,
    check_forwarding,
    check_host_address,
    check_kernel,
    check_metadata,
    kernel_version,
)
from kiam.verify.checks.programs import BPFTOOL_NAMES, HOOKS, Attached, check_programs, check_unreadable
from kiam.verify.results import Status
from tests.unit.verify.listings import MENDS, WANTED


@pytest.mark.parametrize(
    ("release", "version"),
    [("6.1.0-18-cloud-amd64", (6, 1)), ("5.10.0", (5, 10)), ("5.15.0-1051-aws", (5, 15)), ("strange", (0, 0))],
)
def test_kernel_versions_are_read(release: str, version: tuple[int, int]) -> None:
    assert kernel_version(release) == version


@pytest.mark.parametrize(
    ("dataplane", "release", "host_network", "status"),
    [
        ("ebpf", "5.7.1", HostNetwork.IGNORE, Status.FAIL),
        ("ebpf", "5.8.0", HostNetwork.IGNORE, Status.PASS),
        ("nftables", "5.1", HostNetwork.IGNORE, Status.FAIL),
        ("nftables", "5.2", HostNetwork.IGNORE, Status.PASS),
        ("nftables", "5.10", HostNetwork.DENY, Status.FAIL),
        ("nftables", "5.13", HostNetwork.REDIRECT, Status.PASS),
        ("iptables", "4.4", HostNetwork.IGNORE, Status.PASS),
        ("none", "4.4", HostNetwork.IGNORE, Status.PASS),
    ],
)
def test_a_kernel_too_old_is_told(dataplane: str, release: str, host_network: HostNetwork, status: Status) -> None:
    line = check_kernel(replace(WANTED, host_network=host_network), MENDS.with_dataplane(dataplane), release)
    assert line.status is status
    assert status is Status.PASS or "--dataplane=iptables" in line.mend


@pytest.mark.parametrize(("value", "status"), [("1", Status.PASS), ("0", Status.WARN)])
def test_forwarding_is_read(tmp_path: Path, value: str, status: Status) -> None:
    (tmp_path / "ipv4").mkdir()
    (tmp_path / "ipv4/ip_forward").write_text(f"{value}\n")
    assert check_forwarding(tmp_path).status is status


def test_forwarding_that_cannot_be_read_is_skipped(tmp_path: Path) -> None:
    assert check_forwarding(tmp_path).status is Status.SKIP


def test_a_loopback_address_is_no_address_for_pods() -> None:
    line = check_host_address(replace(WANTED, host_address=IPv4Address("127.0.0.1")), MENDS)
    assert line.status is Status.FAIL
    assert "can't be reached from pods" in line.seen


def unmounted() -> Path:
    raise UserError("no cgroup2 hierarchy is mounted")


@pytest.mark.parametrize(
    ("dataplane", "host_network", "status"),
    [
        ("ebpf", HostNetwork.IGNORE, Status.FAIL),
        ("nftables", HostNetwork.DENY, Status.FAIL),
        ("nftables", HostNetwork.IGNORE, Status.SKIP),
        ("none", HostNetwork.IGNORE, Status.SKIP),
    ],
)
def test_cgroup2_fails_only_where_it_is_needed(dataplane: str, host_network: HostNetwork, status: Status) -> None:
    line = check_cgroup2(replace(WANTED, host_network=host_network), dataplane, unmounted)
    assert line.status is status
    assert "mount -t cgroup2" in line.mend


def test_no_kubepods_cgroup_fails_for_host_network_pods(tmp_path: Path) -> None:
    wanted = replace(WANTED, host_network=HostNetwork.DENY)
    assert check_cgroup2(wanted, "ebpf", lambda: tmp_path).status is Status.FAIL
    (tmp_path / "kubepods.slice").mkdir()
    assert check_cgroup2(wanted, "ebpf", lambda: tmp_path).status is Status.PASS


def test_bpffs_is_found_in_mountinfo() -> None:
    line = "28 24 0:25 / /sys/fs/bpf rw,nosuid shared:9 - bpf bpf rw,mode=700\n"
    assert check_bpf_filesystem(line).seen == "mounted at /sys/fs/bpf"
    assert check_bpf_filesystem("24 1 0:22 / /sys rw - sysfs sysfs rw\n").status is Status.SKIP


@pytest.mark.parametrize(
    ("answer", "status", "told"),
    [
        (Answer(200, "pong"), Status.PASS, "answers"),
        (Answer(200, "hello"), Status.FAIL, "no kiam agent"),
        (Answer(404), Status.FAIL, "404"),
        (Answer(error=ConnectionRefusedError(111, "Connection refused")), Status.FAIL, "refused"),
        (Answer(error=TimeoutError()), Status.FAIL, "no answer in 3 s"),
        (Answer(error=http.client.BadStatusLine("x")), Status.FAIL, "not HTTP"),
    ],
)
def test_what_answers_on_the_agents_port_is_told(answer: Answer, status: Status, told: str) -> None:
    line = check_agent(WANTED, MENDS, answer)
    assert (line.status, told in line.seen) == (status, True)


@pytest.mark.parametrize(
    ("answer", "status", "mend"),
    [
        (Answer(200), Status.PASS, ""),
        (Answer(401), Status.PASS, ""),
        (Answer(error=OSError(113, "No route to host")), Status.WARN, "ip route replace 169.254.169.254/32 dev eth0"),
        (Answer(error=TimeoutError()), Status.WARN, "aws ec2 modify-instance-metadata-options"),
    ],
)
def test_whether_the_real_service_answers_the_host_is_told(answer: Answer, status: Status, mend: str) -> None:
    line = check_metadata(("eth0",), answer)
    assert line.status is status
    assert line.mend.startswith(mend)


def asked(**conditions: Condition | str) -> dict[str, Asked]:
    return {
        name: Asked(Inspection(value, ("found",), ("a problem",)))
        if isinstance(value, Condition)
        else Asked(error=value)
        for name, value in conditions.items()
    }


@pytest.mark.parametrize(
    ("answers", "chosen"),
    [
        (asked(iptables=Condition.ABSENT, nftables=Condition.INSTALLED), "nftables"),
        (asked(iptables=Condition.DIFFERENT, nftables=Condition.INSTALLED), "nftables"),
        (asked(iptables=Condition.DIFFERENT, nftables=Condition.ABSENT), "iptables"),
        (asked(iptables=Condition.ABSENT, nftables=Condition.ABSENT, ebpf="no capability"), "none"),
    ],
)
def test_the_dataplane_that_is_there_is_chosen(answers: dict[str, Asked], chosen: str) -> None:
    assert choose(AUTO, answers) == chosen
    assert choose("ebpf", answers) == "ebpf"


@pytest.mark.parametrize(
    ("value", "status"),
    [
        (Condition.INSTALLED, Status.PASS),
        (Condition.ABSENT, Status.FAIL),
        (Condition.DIFFERENT, Status.FAIL),
        ("libnftables isn't installed", Status.FAIL),
    ],
)
def test_the_chosen_dataplanes_condition_is_reported(value: Condition | str, status: Status) -> None:
    (line,) = check_installed("nftables", asked(nftables=value), MENDS.with_dataplane("nftables"))
    assert line.status is status
    assert status is Status.PASS or line.mend.startswith("kiam dataplane install --dataplane=nftables ")


def test_a_second_dataplane_is_a_warning() -> None:
    answers = asked(iptables=Condition.DIFFERENT, nftables=Condition.INSTALLED)
    line = check_installed("nftables", answers, MENDS)[1]
    assert line.status is Status.WARN
    assert line.mend == "kiam dataplane remove --dataplane=iptables"


def test_programs_of_ours_are_not_reported_and_others_are() -> None:
    root = Path("/sys/fs/cgroup")
    ours = Attached(root, "connect4", 1, "kiam_connect4")
    other = Attached(root, "connect6", 2, "somebody")
    assert check_programs([ours])[0].status is Status.PASS
    (line,) = check_programs([ours, other])
    assert line.mend == "bpftool cgroup detach /sys/fs/cgroup cgroup_inet6_connect id 2"
    assert check_unreadable(OSError(1, "Operation not permitted")).status is Status.SKIP


def test_programs_at_traffic_control_are_told_apart() -> None:
    assert check_classifiers([])[0].status is Status.PASS
    assert check_classifiers([Classifier("cali0", "kiam_guard", True)])[0].status is Status.PASS
    cilium, mine, tcx = check_classifiers(
        [
            Classifier("lxc0", "cil_from_contai", True),
            Classifier("cali0", "", False),
            Classifier("cali0", "somebody", True),
        ]
    )
    assert "Cilium" in cilium.seen
    assert "detach" not in cilium.mend
    assert mine.mend == "tc filter del dev cali0 ingress"
    assert tcx.mend == "bpftool net detach tcx_ingress dev cali0"


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_has_the_name_bpftool_knows(hook: str) -> None:
    (line,) = check_programs([Attached(Path("/sys/fs/cgroup"), hook, 7, "somebody")])
    assert line.mend.endswith(f" {BPFTOOL_NAMES[hook]} id 7")
