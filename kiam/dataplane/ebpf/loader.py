"""Load and attach, in a process of its own: ``python -m kiam.dataplane.ebpf.loader < request``.

It may have to compile, and LLVM, which bcc compiles with, is some hundred megabytes; when this process ends they are
gone, and the programs live on attached to the cgroup, with the maps they use.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import socket
import struct
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from kiam.dataplane.cgroups import find_cgroup2_root
from kiam.dataplane.contract import WantedState
from kiam.dataplane.ebpf import bpf, node, uplink
from kiam.dataplane.ebpf.guard import Guard
from kiam.dataplane.ebpf.hooks import attach_all, detach_all, find_ours, open_cgroup, open_maps, read_configs
from kiam.dataplane.ebpf.inspection import find_problems
from kiam.dataplane.ebpf.programs import Programs, with_programs
from kiam.dataplane.ebpf.request import parse_request
from kiam.dataplane.ebpf.state import (
    CONFIG_MAP,
    COUNTERS_MAP,
    PEERS_MAP,
    PROBE_HOOK,
    UPLINK_HOOK,
    Config,
    Hook,
    wanted_hooks,
)
from kiam.errors import UserError

_PROBE_MAP = "kiam_probe_map"
_SO_COOKIE = 57
"""asm-generic/socket.h, since Linux 4.12."""


def _keep_map(loadable: Programs, name: str, old: dict[str, int]) -> None:
    """Let programs loaded from now on use the old map of that name, so that what it holds outlives an upgrade."""
    if name not in old:
        return
    new = loadable.map(name)
    new_info, old_info = bpf.map_info(new), bpf.map_info(old[name])
    if (new_info.map_type, new_info.key_size, new_info.value_size, new_info.max_entries) == (
        old_info.map_type,
        old_info.key_size,
        old_info.value_size,
        old_info.max_entries,
    ):
        # The instructions name the map by this descriptor's number.
        os.dup2(old[name], new, inheritable=False)


def _ask_netns_cookie(loadable: Programs) -> int:
    """The cookie of our network namespace on kernels without SO_NETNS_COOKIE: a program asks when we connect."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own, open_cgroup(find_cgroup2_root()) as cgroup:
        bpf.update(loadable.map(_PROBE_MAP), 0, own.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8))
        program = loadable.load(PROBE_HOOK)
        bpf.attach(cgroup, program, PROBE_HOOK.attach_type)
        try:
            with suppress(OSError):  # whether there is a route makes no difference: the hook comes first
                own.connect(("127.0.0.1", 9))
        finally:
            bpf.detach(cgroup, program, PROBE_HOOK.attach_type)
    (cookie,) = struct.unpack("=Q", bpf.lookup(loadable.map(_PROBE_MAP), 1, 8))
    if not cookie:
        raise node.kernel_lacks("to tell this network namespace's cookie")
    return int(cookie)


def _keep_agent(config: Config, old: list[Config | None]) -> Config:
    """A reinstall from outside the agent's pod (a systemd unit) doesn't take its exception away while the pod lives."""
    if config.agent is not None:
        return config
    for known in old:
        if known is not None and known.agent is not None and node.is_alive(known.agent):
            return replace(config, agent=known.agent)
    return config


def install(wanted: WantedState, cgroup: Path) -> None:
    """Bring the cgroup's hooks and the guard to the wanted state. Raises UserError."""
    node.require_capabilities()
    config = node.configuration(wanted, cgroup)
    with open_cgroup(cgroup) as descriptor:
        # Two at once (an init container, the agent, someone's shell) would each add their own programs.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        ours = find_ours(descriptor)
        known = read_configs(ours)
        config = _keep_agent(config, known)
        if not find_problems(ours, config, Guard(wanted)) and all(
            one is not None and one.agent == config.agent for one in known
        ):
            return
        with open_maps(ours) as old:
            loaded = with_programs(lambda loadable: _load_all(loadable, config, wanted, old))
            _activate(descriptor, loaded, Guard(wanted))


@dataclass(frozen=True, slots=True)
class _Loaded:
    """Descriptors of programs that are to be attached."""

    on_hooks: dict[Hook, int]
    on_uplinks: int


def _load_all(loadable: Programs, config: Config, wanted: WantedState, old: dict[str, int]) -> _Loaded:
    if config.host_netns is None:
        config = replace(config, host_netns=_ask_netns_cookie(loadable))
    _keep_map(loadable, COUNTERS_MAP, old)
    _keep_map(loadable, PEERS_MAP, old)
    instructed = loadable.map(CONFIG_MAP)
    bpf.update(instructed, 0, config.pack())
    bpf.freeze(instructed)
    on_hooks = {hook: loadable.load(hook) for hook in wanted_hooks(wanted.host_network)}
    return _Loaded(on_hooks, loadable.load(UPLINK_HOOK))


def _activate(cgroup: int, loaded: _Loaded, guard: Guard) -> None:
    was_there = guard.is_present() or bool(find_ours(cgroup))
    # The programs first: a connection that began under another dataplane's rules would never get past the guard, while
    # one that the programs sent to the agent doesn't meet it.
    attach_all(cgroup, loaded.on_hooks)
    try:
        guard.install()
        uplink.attach(loaded.on_uplinks)
    except BaseException:
        # Where something of ours was before, the next attempt puts the rest right; else it's as if nothing was.
        if not was_there:
            uplink.detach_all()
            guard.remove()
            detach_all(cgroup)
        raise


def main() -> int:
    """Read one request; on a user's error write it as a JSON object and exit with 1."""
    wanted, cgroup = parse_request(sys.stdin.read())
    try:
        install(wanted, cgroup)
    except UserError as error:
        json.dump({"error": str(error)}, sys.stdout)
        return 1
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOSYS):
            raise
        json.dump(
            {"error": f"kernel {platform.release()} refuses bpf(2) ({error.strerror}): is it locked down?"}, sys.stdout
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
