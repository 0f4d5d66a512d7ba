"""Compares what the kernel holds with what is wanted."""

from __future__ import annotations

from kiam.dataplane.cgroups import GONE, cgroup_of_id, find_cgroup2_root
from kiam.dataplane.contract import WantedState
from kiam.dataplane.ebpf import uplink
from kiam.dataplane.ebpf.guard import TABLE, Guard
from kiam.dataplane.ebpf.hooks import Attachment, read_configs
from kiam.dataplane.ebpf.state import UPLINK_HOOK, Config, differences, wanted_hooks
from kiam.dataplane.egress import find_uplinks
from kiam.netfilter.interfaces import EVERY_INTERFACE


def find_problems(ours: list[Attachment], wanted: Config, guard: Guard) -> list[str]:
    """What of the kernel's state isn't as wanted, one line each."""
    problems = []
    hooks = wanted_hooks(wanted.host_network)
    for hook in hooks:
        number = sum(one.hook == hook for one in ours)
        if number == 0:
            problems.append(f"the program {hook.program} is not attached")
        elif number > 1:
            problems.append(f"the program {hook.program} is attached {number} times")
    problems += [f"the program {one.hook.program} is attached for nothing" for one in ours if one.hook not in hooks]
    for found in read_configs(ours):
        lines = ["the programs are another version's"] if found is None else differences(wanted, found)
        problems += [line for line in lines if line not in problems]
    problems += _uplink_problems()
    if not guard.is_right():
        problems.append(f"the guard, nftables' table inet {TABLE}, is missing or changed")
    return problems


def read_back(ours: list[Attachment]) -> WantedState | None:
    """What the programs were installed for; None where they don't agree or another version's are among them."""
    configs = read_configs(ours)
    found = configs[0] if configs else None
    if found is None or any(other != found for other in configs):
        return None
    agent = None
    if found.agent is not None:
        alive = cgroup_of_id(find_cgroup2_root(), found.agent.cgroup_id, found.agent.level)
        agent = GONE if alive is None else alive.name
    return WantedState(
        host_address=found.host_address,
        port=found.port,
        interface=EVERY_INTERFACE,
        host_address6=found.host_address6,
        host_network=found.host_network,
        agent_cgroup=agent,
        forward_from=Guard().forwards_from(),
    )


def _uplink_problems() -> list[str]:
    attached = {device.index: len(device.programs) for device in uplink.find_ours()}
    problems = []
    for device in find_uplinks():
        number = attached.get(device.index, 0)
        if number == 0:
            problems.append(f"the program {UPLINK_HOOK.program} is not attached to {device.name}")
        elif number > 1:
            problems.append(f"the program {UPLINK_HOOK.program} is attached to {device.name} {number} times")
    return problems
