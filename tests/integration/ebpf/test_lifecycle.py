"""Installing, replacing, removing, and what other programs and people do in between."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kiam.dataplane.contract import Condition, HostNetwork, WantedState
from kiam.dataplane.ebpf import bpf
from kiam.dataplane.ebpf.hooks import open_cgroup
from kiam.dataplane.ebpf.state import SOCKET_HOOKS
from kiam.errors import UserError
from kiam.metadata import METADATA_IPV4
from tests.integration.ebpf.world import AGENT_PORT, OTHER_AGENT_PORT, World, ask, wanted_state
from tests.sandbox.netns import PodNet

CONNECT4 = 10
CGROUP_SOCK_ADDR = 18
MOV_R0, EXIT = 0xB7, 0x95


def identifiers(world: World) -> list[str]:
    return [line.split(" id ")[1].split()[0] for line in world.inspect(None).found if " id " in line]


def load_foreign_program(answer: int) -> int:
    """A connect4 program of somebody else that allows (1) or refuses (0) everything."""
    instructions = struct.pack("=BBhi", MOV_R0, 0, 0, answer) + struct.pack("=BBhi", EXIT, 0, 0, 0)
    code, license_ = ctypes.create_string_buffer(instructions), ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack(
        "=IIQQIIQII16sII",
        *(CGROUP_SOCK_ADDR, 2, ctypes.addressof(code), ctypes.addressof(license_)),
        *(0, 0, 0, 0, 0, b"foreign", 0, CONNECT4),
    )
    return bpf.bpf(5, attributes)  # BPF_PROG_LOAD


@contextmanager
def foreign_program(world: World, answer: int, flags: int = bpf.F_ALLOW_MULTI) -> Iterator[int]:
    with bpf.closing(load_foreign_program(answer)) as program, open_cgroup(world.cgroup.root) as cgroup:
        bpf.bpf(8, struct.pack("=IIIII", cgroup, program, CONNECT4, flags, 0))  # BPF_PROG_ATTACH
        try:
            yield bpf.program_info(program).program_id
        finally:
            bpf.detach(cgroup, program, CONNECT4)


def attached(world: World) -> list[int]:
    with open_cgroup(world.cgroup.root) as cgroup:
        return bpf.attached(cgroup, CONNECT4)


def test_counters_are_zero_where_nothing_is_installed(clean: World) -> None:
    assert clean.redirects() == 0
    assert set(clean.drops().values()) == {0}


def test_installing_again_changes_nothing(redirected: World) -> None:
    before = identifiers(redirected)
    redirected.install(wanted_state())
    assert identifiers(redirected) == before


def test_counters_outlive_an_upgrade(redirected: World, pod: PodNet) -> None:
    redirected.from_pod(pod, ask)
    before = redirected.redirects()
    redirected.install(wanted_state(port=OTHER_AGENT_PORT))
    assert redirected.redirects() == before
    redirected.install(wanted_state())


def test_a_process_that_installs_keeps_neither_llvm_nor_a_helper(clean: World) -> None:
    def install() -> tuple[bool, str]:
        clean.dataplane.install(wanted_state())
        mapped = Path("/proc/self/maps").read_text()
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
        return "LLVM" in mapped or "libbcc" in mapped or "libclang" in mapped or "bcc" in sys.modules, children

    assert clean.from_host(install) == (False, "")


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_another_program_on_the_same_hook_keeps_working_beside_ours(clean: World, pod: PodNet, first: str) -> None:
    if first == "ours":
        clean.install(wanted_state())
    with foreign_program(clean, answer=1) as theirs:
        clean.install(wanted_state())
        clean.install(wanted_state(port=OTHER_AGENT_PORT))
        assert theirs in attached(clean)
        assert len(attached(clean)) == 2
        assert clean.from_pod(pod, ask).who == "agent"
        clean.remove()
        assert attached(clean) == [theirs]


def test_another_programs_refusal_still_counts(redirected: World, pod: PodNet) -> None:
    with foreign_program(redirected, answer=0):
        assert redirected.from_pod(pod, ask).refused
    assert redirected.from_pod(pod, ask).who == "agent"


def test_a_hook_that_another_program_keeps_to_itself_is_a_clear_error_and_nothing_is_left(clean: World) -> None:
    before = clean.state_of_machine()
    with foreign_program(clean, answer=1, flags=0):
        with pytest.raises(UserError, match=r"another program holds the hook of kiam_connect4 for itself"):
            clean.install(wanted_state())
        assert clean.inspect(None).condition is Condition.ABSENT
    assert clean.state_of_machine() == before


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (wanted_state(port=OTHER_AGENT_PORT), "port is 8181, wanted is 8182"),
        (wanted_state(ipv6=True), "host IPv6 address is none, wanted is fd42::10"),
        (wanted_state(host_network=HostNetwork.REDIRECT), "host network is ignore, wanted is redirect"),
    ],
)
def test_inspection_tells_what_differs(redirected: World, other: WantedState, what: str) -> None:
    inspection = redirected.inspect(other)
    assert inspection.condition is Condition.DIFFERENT
    assert what in inspection.problems


def test_a_program_that_somebody_detached_is_missed_and_put_back(redirected: World, pod: PodNet) -> None:
    with open_cgroup(redirected.cgroup.root) as cgroup, bpf.closing(bpf.open_program(attached(redirected)[0])) as ours:
        bpf.detach(cgroup, ours, CONNECT4)
    # Until it is put back the guard refuses: the pod gets an error, not the node's role.
    assert redirected.from_pod(pod, ask, str(METADATA_IPV4), 80, 0, None, 0.3).error
    assert redirected.inspect(wanted_state()).problems == ["the program kiam_connect4 is not attached"]
    redirected.install(wanted_state())
    assert redirected.inspect(wanted_state()).condition is Condition.INSTALLED
    assert redirected.from_pod(pod, ask).who == "agent"


def test_a_program_that_is_attached_twice_is_noticed_and_taken_off_once(redirected: World) -> None:
    # Attaching the same program again is refused by the kernel, so a second version is what can be there twice.
    before = attached(redirected)
    with open_cgroup(redirected.cgroup.root) as cgroup, bpf.closing(bpf.open_program(before[0])) as ours:
        redirected.install(wanted_state(port=OTHER_AGENT_PORT))
        bpf.attach(cgroup, ours, CONNECT4)
    assert "the program kiam_connect4 is attached 2 times" in redirected.inspect(wanted_state()).problems
    redirected.install(wanted_state())
    assert len(attached(redirected)) == 1
    assert redirected.inspect(wanted_state()).condition is Condition.INSTALLED


@pytest.mark.parametrize(
    "command",
    [
        "delete table inet kiam_ebpf",
        "flush chain inet kiam_ebpf requests",
        "insert rule inet kiam_ebpf requests accept",
    ],
)
def test_a_guard_that_somebody_broke_is_noticed_and_mended(redirected: World, command: str) -> None:
    redirected.node.run("nft", *command.split())
    assert redirected.inspect(wanted_state()).problems == [
        "the guard, nftables' table inet kiam_ebpf, is missing or changed"
    ]
    redirected.install(wanted_state())
    assert redirected.inspect(wanted_state()).condition is Condition.INSTALLED


def test_two_that_install_at_once_attach_one_program_a_hook(clean: World) -> None:
    threads = [
        threading.Thread(target=clean.install, args=(wanted_state(port=port),))
        for port in (AGENT_PORT, OTHER_AGENT_PORT)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(attached(clean)) == 1
    assert len(identifiers(clean)) == len(SOCKET_HOOKS) + 1
