"""eBPF programs of others on the hooks where a pod's connection could be decided."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kiam.dataplane.ebpf import bpf
from kiam.verify.fix import Fix, FixKind
from kiam.verify.fixes import verify_with_rights
from kiam.verify.results import CheckResult, passed, skipped, warned

CHECK = "eBPF programs"
HOOKS = {
    "connect4": 10,
    "connect6": 11,
    "sendmsg4": 14,
    "sendmsg6": 15,
    "getpeername4": 29,
    "getpeername6": 30,
    "egress": 1,
}
"""Hook: its number (enum bpf_attach_type, linux/bpf.h)."""
OURS = "kiam_"
SHOW_POLICIES = "kubectl get ciliumlocalredirectpolicies --all-namespaces"
CILIUM = ("cil_", "sock4_", "sock6_")
"""Names of Cilium's socket load balancer's programs, newer and older."""


@dataclass(frozen=True, slots=True)
class Attached:
    """One program on a hook of a cgroup."""

    cgroup: Path
    hook: str
    program_id: int
    name: str


def read_programs(cgroups: Sequence[Path]) -> list[Attached]:
    """All programs on the hooks of these cgroups. Raises OSError without CAP_SYS_ADMIN or on an old kernel."""
    return [attached for cgroup in cgroups for attached in _of_cgroup(cgroup)]


def _of_cgroup(cgroup: Path) -> Iterator[Attached]:
    with bpf.closing(os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as descriptor:
        for hook, attach_type in HOOKS.items():
            for identifier in bpf.attached(descriptor, attach_type):
                try:
                    with bpf.closing(bpf.open_program(identifier)) as program:
                        yield Attached(cgroup, hook, identifier, bpf.program_info(program).name)
                except FileNotFoundError:
                    continue


def check_programs(found: Sequence[Attached]) -> list[CheckResult]:
    """One line for each program that isn't ours: it may send a connection elsewhere before or after ours."""
    others = [attached for attached in found if not attached.name.startswith(OURS)]
    results = [_report(attached) for attached in others]
    return results or [passed(CHECK, "none of others on the connect and sendmsg hooks of pods")]


def _report(attached: Attached) -> CheckResult:
    name = attached.name or "without a name"
    seen = f"program {attached.program_id} ({name}) on {attached.hook} of {attached.cgroup}"
    if attached.name.startswith(CILIUM):
        more = "Cilium's load balancer, which leaves metadata alone unless a CiliumLocalRedirectPolicy names it"
        return warned(CHECK, f"{seen}: {more}", Fix(FixKind.SHOW_POLICIES, SHOW_POLICIES))
    # Whoever attached it may need it, so it isn't ours to detach: the live proof tells whether it is in the way.
    show = Fix(
        FixKind.SHOW_PROGRAM, f"bpftool prog show id {attached.program_id}", "in the way if the live proof fails"
    )
    return warned(CHECK, f"{seen} could send pods' connections elsewhere, or stop them", show)


def check_unreadable(error: OSError) -> CheckResult:
    """The hooks couldn't be read."""
    seen = f"can't list the programs on the cgroup hooks: {error.strerror}"
    return skipped(CHECK, seen, verify_with_rights())
