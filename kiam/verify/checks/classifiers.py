"""eBPF programs of others at traffic control, where they see a pod's packet before netfilter does."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from kiam.dataplane.ebpf import bpf
from kiam.verify.checks.programs import SHOW_POLICIES
from kiam.verify.fix import Fix, FixKind
from kiam.verify.results import CheckResult, passed, warned

CHECK = "tc programs"
CLSACT_INGRESS = 0xFFFFFFF2
INGRESS = 0xFFFF0000
"""Where filters of a clsact and of an ingress qdisc hang (TC_H_CLSACT with TC_H_MIN_INGRESS, linux/pkt_sched.h)."""
TCX_INGRESS = 46
"""enum bpf_attach_type, linux/bpf.h; since Linux 6.6."""
OURS = "kiam_"
CILIUM = ("cil_", "from-container", "bpf_lxc")


@dataclass(frozen=True, slots=True)
class Classifier:
    """One program on an interface's ingress."""

    interface: str
    name: str
    tcx: bool


def read_classifiers(interfaces: Sequence[str]) -> list[Classifier]:
    """The programs on the ingress of these interfaces; those that are gone meanwhile are left out."""
    found: list[Classifier] = []
    with IPRoute(groups=0) as netlink:
        for interface in interfaces:
            for parent in (CLSACT_INGRESS, INGRESS):
                with contextlib.suppress(NetlinkError):
                    for filter_ in netlink.get_filters(index=socket.if_nametoindex(interface), parent=parent):
                        options = filter_.get("options")
                        if filter_.get("kind") == "bpf" and options:
                            found.append(Classifier(interface, str(options.get("name") or ""), False))
            found += [Classifier(interface, name, True) for name in _tcx(interface)]
    return list(dict.fromkeys(found))


def _tcx(interface: str) -> list[str]:
    names = []
    with contextlib.suppress(OSError):  # before Linux 6.6, and without SYS_ADMIN
        for identifier in bpf.attached(socket.if_nametoindex(interface), TCX_INGRESS):
            with bpf.closing(bpf.open_program(identifier)) as program:
                names.append(bpf.program_info(program).name)
    return names


def check_classifiers(found: Sequence[Classifier]) -> list[CheckResult]:
    """One line for each program: it may drop or redirect what never comes to netfilter."""
    results = [_report(classifier) for classifier in found if not classifier.name.startswith(OURS)]
    return results or [passed(CHECK, "none of others on the interfaces of pods that were looked at")]


def _report(classifier: Classifier) -> CheckResult:
    seen = f"{classifier.name or 'a program without a name'} on {classifier.interface} sees packets before netfilter"
    if classifier.name.startswith(CILIUM):
        more = "Cilium, which hands metadata traffic on unless a CiliumLocalRedirectPolicy names it"
        return warned(CHECK, f"{seen}: {more}", Fix(FixKind.SHOW_POLICIES, SHOW_POLICIES))
    # Not ours to take off; the live proof tells whether it is in the way.
    interface = classifier.interface
    command = f"bpftool net show dev {interface}" if classifier.tcx else f"tc filter show dev {interface} ingress"
    return warned(CHECK, seen, Fix(FixKind.SHOW_CLASSIFIERS, command, "in the way if the live proof fails"))
