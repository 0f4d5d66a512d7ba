"""What the node lacks, and what the node has that it shouldn't have."""

from __future__ import annotations

import ctypes
import json
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from kiam.dataplane.ebpf import bpf
from kiam.verify.results import Status
from tests.integration.verify.site import KIAM, Site

PROG_TYPE_CGROUP_SOCK_ADDR = 18
BPF_PROG_LOAD = 5


def test_switched_off_forwarding_is_seen_and_fixed(site: Site) -> None:
    site.node.sysctl(ipv4__ip_forward=0)
    line = site.verify().one("forwarding")
    assert line.status is Status.WARN
    site.shell(line.fix_text)
    assert site.verify().one("forwarding").status is Status.PASS


def test_a_missing_agent_is_seen(site: Site) -> None:
    site.stop_agent()
    line = site.verify().one("agent")
    assert line.status is Status.FAIL
    assert "192.0.2.10:8181: Connection refused" in line.seen
    assert "kubectl --namespace kube-system delete pod --selector app=kiam,component=agent" in line.fix_text
    site.start_agent()
    assert site.verify().one("agent").status is Status.PASS


def test_something_else_on_the_agents_port_is_seen(site: Site) -> None:
    line = site.verify(port=22 + 8159, host_address=site.wanted.host_address).one("agent")
    assert line.status is Status.PASS
    site.stop_agent()
    from tests.integration.verify.site import AGENT_PORT, Listener, RealService

    other = Listener(site.node, "0.0.0.0", AGENT_PORT, RealService)
    try:
        line = site.verify().one("agent")
    finally:
        other.close()
    assert line.status is Status.FAIL
    assert "no kiam agent" in line.seen
    site.shell(line.fix_text)


def test_an_unreachable_metadata_service_is_seen_and_fixed(site: Site) -> None:
    site.node.ip("route add unreachable 169.254.169.254/32")
    try:
        line = site.verify().one("instance metadata")
        assert line.status is Status.WARN
        assert "host" in line.seen
        site.shell(line.fix_text)
        assert site.verify().one("instance metadata").status is Status.PASS
    finally:
        site.node.run("ip", "route", "flush", "169.254.169.254/32")


def test_without_the_right_to_read_rules_it_says_so_and_does_not_call_them_missing(site: Site) -> None:
    done = site.node.run("setpriv", "--inh-caps=-all", "--bounding-set=-all", *site.command_line(), check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "needs root and the capability NET_ADMIN" in line


def test_rights_for_reading_only_leave_the_proof_out(site: Site) -> None:
    # As in the agent's own container: NET_ADMIN and nothing else.
    site.by_hand()
    only = ("setpriv", "--inh-caps=-all,+net_admin", "--bounding-set=-all,+net_admin")
    done = site.node.run(*only, *site.command_line("--dataplane=none", "--output=json"), check=False)
    checks = {line["check"]: line for line in json.loads(done.stdout)["checks"]}
    assert done.returncode == 0
    assert checks["redirect rule"]["status"] == "PASS"
    proof = checks["live: pod to agent"]
    assert proof["status"] == "SKIP"
    assert proof["fix"]["command"] == "helm test kiam --namespace kube-system --logs"


def test_a_namespace_that_is_not_there_is_one_line(site: Site) -> None:
    done = site.node.run(*site.command_line("--pod-netns=/nowhere"), check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "kiam dataplane: --pod-netns: nothing at '/nowhere'; give a path such as /proc/<pid>/ns/net"
    ]


def test_bpffs_is_found_and_its_fix_mounts_it() -> None:
    # In a mount namespace of its own: the machine's mounts stay as they are.
    script = (
        "from kiam.verify.checks.mounts import check_bpf_filesystem as check\n"
        "import os, subprocess\n"
        "subprocess.run(['umount', '--all', '-t', 'bpf'])\n"
        "before = check()\n"
        "subprocess.run(before.command, shell=True, check=True)\n"
        "print(before.status, check().status)\n"
    )
    python = str(Path(KIAM).with_name("python"))
    done = subprocess.run(["unshare", "--mount", python, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["SKIP", "PASS"]


def test_cgroup2_that_is_not_mounted_is_seen_and_its_fix_mounts_it() -> None:
    script = (
        "from ipaddress import IPv4Address\n"
        "import subprocess\n"
        "from kiam.dataplane.contract import InterfacePattern, WantedState\n"
        "from kiam.verify.checks.mounts import check_cgroup2\n"
        "wanted = WantedState(IPv4Address('192.0.2.10'), 8181, InterfacePattern.parse('cali+'))\n"
        "subprocess.run(['umount', '--all', '-t', 'cgroup2'])\n"
        "before = check_cgroup2(wanted, True)\n"
        "print(before.status, check_cgroup2(wanted, False).status)\n"
        "subprocess.run(before.command, shell=True, check=True)\n"
        "print(check_cgroup2(wanted, True).status)\n"
    )
    python = str(Path(KIAM).with_name("python"))
    done = subprocess.run(["unshare", "--mount", python, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["FAIL", "SKIP", "PASS"]


def test_a_tc_program_on_a_pods_interface_is_seen_and_shown(site: Site) -> None:
    interface = site.pod.interface
    site.shell(f"tc qdisc add dev {interface} clsact")
    # A classic program that matches nothing; to the kernel it is a bpf filter like any other.
    site.shell(f"tc filter add dev {interface} ingress bpf bytecode '1,6 0 0 0,'")
    try:
        line = site.verify().one("tc programs")
        assert line.status is Status.WARN
        assert interface in line.seen
        site.shell(line.command)
    finally:
        site.shell(f"tc qdisc del dev {interface} clsact")


@contextmanager
def foreign_program(cgroup: Path, name: bytes = b"somebody") -> Iterator[None]:
    """A program that lets every connection be, on connect4."""
    code = struct.pack("=BBhi", 0xB7, 0, 0, 1) + struct.pack("=BBhi", 0x95, 0, 0, 0)  # r0 = 1; exit
    instructions, licence = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack(
        "=IIQQIIQII16sII",
        *(PROG_TYPE_CGROUP_SOCK_ADDR, 2, ctypes.addressof(instructions), ctypes.addressof(licence), 0, 0, 0, 0, 0),
        *(name, 0, 10),
    )
    with (
        bpf.closing(bpf.bpf(BPF_PROG_LOAD, attributes)) as program,
        bpf.closing(os.open(cgroup, os.O_RDONLY)) as target,
    ):
        bpf.attach(target, program, 10)
        try:
            yield
        finally:
            with suppress(FileNotFoundError):
                bpf.detach(target, program, 10)


@pytest.mark.parametrize("where", [".", "kubepods"])
def test_an_ebpf_program_of_somebody_else_is_seen_and_shown(site: Site, where: str) -> None:
    with foreign_program(site.cgroups.root / where):
        line = site.verify().one("eBPF programs")
        assert line.status is Status.WARN
        assert "somebody" in line.seen
        assert "connect4" in line.seen
        site.shell(line.command)


def test_ciliums_load_balancer_is_known_by_name_and_not_detached(site: Site) -> None:
    with foreign_program(site.cgroups.root, b"cil_sock4_conne"):
        line = site.verify().one("eBPF programs")
    assert line.status is Status.WARN
    assert "Cilium" in line.seen
    assert "detach" not in line.fix_text
