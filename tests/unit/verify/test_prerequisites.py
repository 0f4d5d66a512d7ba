"""Prerequisites from what is read, without breaking the machine."""

from __future__ import annotations

import http.client
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from kiam.dataplane.contract import HostNetwork
from kiam.errors import UserError
from kiam.verify.checks.classifiers import Classifier, check_classifiers
from kiam.verify.checks.mounts import check_bpf_filesystem, check_cgroup2
from kiam.verify.checks.prerequisites import check_addresses, check_forwarding, check_kernel, kernel_version
from kiam.verify.checks.programs import Attached, check_programs, check_unreadable
from kiam.verify.checks.services import Answer, check_agent, check_metadata, instance_id
from kiam.verify.fix import FixKind
from kiam.verify.results import Status
from tests.unit.verify.listings import FIXES, WANTED


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
        ("nftables", "5.8", HostNetwork.IGNORE, Status.FAIL),
        ("nftables", "5.9", HostNetwork.IGNORE, Status.PASS),
        ("nftables", "5.10", HostNetwork.DENY, Status.FAIL),
        ("nftables", "5.13", HostNetwork.REDIRECT, Status.PASS),
        ("iptables", "4.4", HostNetwork.IGNORE, Status.PASS),
        ("none", "4.4", HostNetwork.IGNORE, Status.PASS),
    ],
)
def test_a_kernel_too_old_is_told(dataplane: str, release: str, host_network: HostNetwork, status: Status) -> None:
    line = check_kernel(replace(WANTED, host_network=host_network), FIXES.with_dataplane(dataplane), release)
    assert line.status is status
    assert status is Status.PASS or "--dataplane=iptables" in line.fix_text


@pytest.mark.parametrize(("value", "status"), [("1", Status.PASS), ("0", Status.WARN)])
def test_forwarding_is_read(tmp_path: Path, value: str, status: Status) -> None:
    (tmp_path / "ipv4").mkdir()
    (tmp_path / "ipv4/ip_forward").write_text(f"{value}\n")
    assert check_forwarding(tmp_path).status is status


def test_forwarding_that_cannot_be_read_is_skipped(tmp_path: Path) -> None:
    assert check_forwarding(tmp_path).status is Status.SKIP


def test_a_loopback_address_is_no_address_for_pods() -> None:
    line = check_addresses(replace(WANTED, host_address=IPv4Address("127.0.0.1")), FIXES)
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
    line = check_cgroup2(replace(WANTED, host_network=host_network), dataplane == "ebpf", unmounted, mountinfo="")
    assert line.status is status
    assert "mount -t cgroup2" in line.fix_text


CGROUP_V1 = "30 24 0:26 / /sys/fs/cgroup {options},nosuid - tmpfs tmpfs {options}\n"


@pytest.mark.parametrize(
    ("mountinfo", "command"),
    [
        ("", "mount -t cgroup2 none /sys/fs/cgroup"),
        (
            CGROUP_V1.format(options="rw"),
            "mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified",
        ),
        (
            CGROUP_V1.format(options="ro"),
            "mount -o remount,rw /sys/fs/cgroup && mkdir -p /sys/fs/cgroup/unified && "
            "mount -t cgroup2 none /sys/fs/cgroup/unified && mount -o remount,ro /sys/fs/cgroup",
        ),
    ],
)
def test_cgroup2_is_mounted_where_it_can_be(mountinfo: str, command: str) -> None:
    assert check_cgroup2(WANTED, True, unmounted, mountinfo).command == command


def test_a_containers_own_part_of_cgroup2_is_not_mounted_over() -> None:
    line = check_cgroup2(WANTED, True, unmounted, "30 24 0:26 /x /sys/fs/cgroup ro - cgroup2 cgroup ro\n")
    assert line.fix is not None
    assert line.fix.kind is FixKind.ADVICE
    assert "hostPath" in line.fix.note


def test_no_kubepods_cgroup_fails_for_host_network_pods(tmp_path: Path) -> None:
    wanted = replace(WANTED, host_network=HostNetwork.DENY)
    assert check_cgroup2(wanted, True, lambda: tmp_path).status is Status.FAIL
    (tmp_path / "kubepods.slice").mkdir()
    assert check_cgroup2(wanted, True, lambda: tmp_path).status is Status.PASS


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
    line = check_agent(WANTED, answer)
    assert (line.status, told in line.seen) == (status, True)


@pytest.mark.parametrize(
    ("answer", "status", "command"),
    [
        (Answer(200), Status.PASS, ""),
        (Answer(401), Status.PASS, ""),
        (Answer(error=OSError(113, "No route to host")), Status.WARN, "ip route replace 169.254.169.254/32 dev eth0"),
        (
            Answer(error=TimeoutError()),
            Status.WARN,
            "aws ec2 modify-instance-metadata-options --http-endpoint enabled --instance-id i-0123456789abcdef0",
        ),
    ],
)
def test_whether_the_real_service_answers_the_host_is_told(answer: Answer, status: Status, command: str) -> None:
    line = check_metadata("eth0", answer, lambda: "i-0123456789abcdef0")
    assert (line.status, line.fix_text) == (status, command)


def test_where_no_instance_is_known_the_route_is_shown() -> None:
    line = check_metadata("eth0", Answer(error=TimeoutError()), lambda: "")
    assert line.command == "ip -4 route get 169.254.169.254"


def test_an_instances_identifier_is_read_where_the_firmware_or_cloud_init_has_it(tmp_path: Path) -> None:
    tag, note = tmp_path / "board_asset_tag", tmp_path / "instance-id"
    assert instance_id((tag, note)) == ""
    tag.write_text("Not Specified\n")
    note.write_text("i-0123456789abcdef0\n")
    assert instance_id((tag, note)) == "i-0123456789abcdef0"
    note.write_text("iid-datasource-none\n")
    assert instance_id((tag, note)) == ""


def test_programs_of_ours_are_not_reported_and_others_are() -> None:
    root = Path("/sys/fs/cgroup")
    ours = Attached(root, "connect4", 1, "kiam_connect4")
    other = Attached(root, "connect6", 2, "somebody")
    assert check_programs([ours])[0].status is Status.PASS
    (line,) = check_programs([ours, other])
    # Whoever attached it may need it.
    assert line.command == "bpftool prog show id 2"
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
    assert "detach" not in cilium.fix_text
    assert mine.command == "tc filter show dev cali0 ingress"
    assert tcx.command == "bpftool net show dev cali0"
