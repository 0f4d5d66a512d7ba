"""The eBPF dataplane: programs on the root cgroup's connect hooks send pods' connections to the agent.

No packet is rewritten: a pod's socket connects to the agent itself, from the pod's own address, and is told that it is
connected to 169.254.169.254. See kiam.dataplane.ebpf.guard for packets that never called connect.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

from kiam.dataplane.addresses import check_addresses
from kiam.dataplane.contract import Condition, Counters, Inspection, Traits, WantedState
from kiam.dataplane.ebpf import bpf, node, uplink
from kiam.dataplane.ebpf.guard import TABLE, Guard
from kiam.dataplane.ebpf.hooks import Attachment, detach_all, find_ours, open_cgroup, open_maps
from kiam.dataplane.ebpf.inspection import find_problems, read_back
from kiam.dataplane.ebpf.request import write_request
from kiam.dataplane.ebpf.state import COUNTERS_MAP, DROP_REASONS, REDIRECTS, UPLINK_HOOK
from kiam.dataplane.egress import EgressGuard
from kiam.errors import UserError

log = logging.getLogger(__name__)

EGRESS = EgressGuard("kiam_ebpf")
_LOADER_SECONDS = 180.0
"""Half a second of work, but a node that starts is busy, and the agent is to wait rather than to fail."""


class EbpfDataplane:
    """Redirects in the socket layer. Pods are told from the host by network namespace; the interface pattern plays no
    part, neither in the redirect nor in the guard, which covers every interface but ``lo``.
    """

    name = "ebpf"
    traits = Traits(
        tells_pods_by="network namespace",
        needs="bcc to compile the programs, or the image, which has them; `nft` for its guard",
        rights="privileged",
        oldest_kernel=node.OLDEST_KERNEL,
        oldest_kernel_for_host_network=node.OLDEST_KERNEL,
        why_these_kernels="the getpeername hooks came with 5.8",
        by_interface=False,
    )

    def __init__(self, cgroup: Path | None = None) -> None:
        """``cgroup``: attach there instead of to the hierarchy's root; processes outside it are not redirected."""
        self._given_cgroup = cgroup

    def install(self, wanted: WantedState) -> None:
        """See Dataplane.install. Nothing is compiled when the kernel already holds the wanted state."""
        check_addresses(wanted)
        node.require_capabilities()
        _run_loader(write_request(wanted, self._cgroup()))
        EGRESS.install(wanted)

    def remove(self) -> None:
        """See Dataplane.remove."""
        node.require_capabilities()
        with open_cgroup(self._cgroup()) as descriptor:
            detach_all(descriptor)
        uplink.detach_all()
        Guard().remove()
        EGRESS.remove()

    def inspect(self, wanted: WantedState | None = None) -> Inspection:
        """See Dataplane.inspect. Where rights are missing the guard, which takes fewer to see, tells of the rest."""
        if hidden := _hidden_for_lack_of_rights():
            return Inspection(Condition.DIFFERENT, (f"table inet {TABLE}",), (f"only the guard can be seen: {hidden}",))
        cgroup = self._cgroup()
        with open_cgroup(cgroup) as descriptor:
            ours = find_ours(descriptor)
            guarded = Guard().is_present()
            uplinks = uplink.find_ours()
            if not ours and not guarded and not uplinks:
                return Inspection(Condition.ABSENT)
            lines = [
                f"{cgroup} attach type {one.hook.attach_type} id {one.program.program_id} name {one.program.name} "
                f"tag {one.program.tag} multi"
                for one in ours
            ]
            lines += [
                f"device {device.name} {program} name {UPLINK_HOOK.program}"
                for device in uplinks
                for program in device.programs
            ]
            lines += [f"table inet {TABLE}"] if guarded else []
            problems = [] if wanted is None else _problems(ours, wanted, cgroup)
            installed = read_back(ours)
        condition = Condition.DIFFERENT if problems else Condition.INSTALLED
        return Inspection(condition, lines, problems, installed)

    def counters(self) -> Counters:
        """See Dataplane.counters."""
        redirects, drops = 0, dict.fromkeys(DROP_REASONS.values(), 0)
        guarded = Guard().dropped()
        if hidden := _hidden_for_lack_of_rights():
            log.debug("only the guard's counter can be read: %s", hidden)
            return Counters(redirects, {**drops, "bypass": guarded})
        with open_cgroup(self._cgroup()) as descriptor, open_maps(find_ours(descriptor)) as maps:
            counters = maps.get(COUNTERS_MAP)
            if counters is not None:
                redirects = bpf.sum_over_processors(counters, REDIRECTS)
                drops = {reason: bpf.sum_over_processors(counters, index) for index, reason in DROP_REASONS.items()}
        drops["bypass"] += guarded
        drops["host-network"] += EGRESS.dropped()
        return Counters(redirects, drops)

    def _cgroup(self) -> Path:
        return self._given_cgroup or node.attach_point()


def _hidden_for_lack_of_rights() -> str:
    """Why only the guard can be seen; empty with all rights. Raises UserError if there is no guard either."""
    try:
        node.require_capabilities()
    except UserError as error:
        if not Guard().is_present():
            raise
        return str(error)
    return ""


def _problems(ours: list[Attachment], wanted: WantedState, cgroup: Path) -> list[str]:
    problems = find_problems(ours, node.configuration(wanted, cgroup), Guard(wanted))
    return problems + EGRESS.problems(wanted)


def _run_loader(line: str) -> None:
    """Have a short-lived process compile, load and attach. Raises UserError."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "kiam.dataplane.ebpf.loader"],
            input=line,
            capture_output=True,
            text=True,
            timeout=_LOADER_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(f"compiling and loading the eBPF programs took more than {_LOADER_SECONDS:.0f} s") from error
    if done.returncode == 0:
        return
    try:
        message = str(json.loads(done.stdout)["error"])
    except (ValueError, KeyError):
        raise RuntimeError(f"the eBPF loader failed with exit {done.returncode}:\n{done.stderr}") from None
    raise UserError(message)
