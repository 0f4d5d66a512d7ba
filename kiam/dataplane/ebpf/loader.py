"""Compile, load and attach, in a process of its own: ``python -m kiam.dataplane.ebpf.loader < request``.

LLVM, which bcc compiles with, is some hundred megabytes; when this process ends they are gone, and the programs live on
attached to the cgroup, with the maps they use.
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
from dataclasses import replace
from pathlib import Path
from typing import Any

from kiam.dataplane.cgroups import find_cgroup2_root
from kiam.dataplane.contract import WantedState
from kiam.dataplane.ebpf import bpf, node, uplink
from kiam.dataplane.ebpf.guard import Guard
from kiam.dataplane.ebpf.hooks import attach_all, find_ours, open_cgroup, open_maps, read_configs
from kiam.dataplane.ebpf.inspection import find_problems
from kiam.dataplane.ebpf.request import parse_request
from kiam.dataplane.ebpf.state import (
    CONFIG_MAP,
    COUNTERS_MAP,
    HEADERS,
    PEERS_MAP,
    PROBE_HOOK,
    SOURCE,
    UPLINK_HOOK,
    Config,
    Hook,
    wanted_hooks,
)
from kiam.errors import UserError

_PROBE_MAP = "kiam_probe_map"
_SO_COOKIE = 57
"""asm-generic/socket.h, since Linux 4.12."""


def _compile() -> Any:
    # bcc looks for kernel headers in /lib/modules, which few nodes have; it takes ours in their place.
    os.environ["BCC_KERNEL_SOURCE"] = str(HEADERS.resolve())
    try:
        from bcc import BPF
    except ImportError as error:
        raise UserError("bcc's Python binding is missing: install the Debian package python3-bpfcc") from error
    try:
        return BPF(src_file=str(SOURCE))
    except Exception as error:  # bcc raises nothing more specific; clang's words are on standard error
        # The maps are made while compiling, so that a kernel without them fails here.
        raise node.kernel_lacks(f"the programs' maps, or bcc could not compile them ({error})") from error


def _load(module: Any, hook: Hook) -> int:
    try:
        return int(module.load_func(hook.program, hook.program_type, attach_type=hook.attach_type).fd)
    except Exception as error:  # bcc raises nothing more specific; the verifier's words are on standard error
        raise node.kernel_lacks(f"the program {hook.program} ({error})") from error


def _map(module: Any, name: str) -> int:
    # Not module[name]: bcc's Python knows no socket storage.
    from bcc.libbcc import lib

    return int(lib.bpf_table_fd(module.module, name.encode()))


def _keep_map(module: Any, name: str, old: dict[str, int]) -> None:
    """Let programs loaded from now on use the old map of that name, so that what it holds outlives an upgrade."""
    if name not in old:
        return
    new = _map(module, name)
    new_info, old_info = bpf.map_info(new), bpf.map_info(old[name])
    if (new_info.map_type, new_info.key_size, new_info.value_size, new_info.max_entries) == (
        old_info.map_type,
        old_info.key_size,
        old_info.value_size,
        old_info.max_entries,
    ):
        # The compiled instructions name the map by this descriptor's number.
        os.dup2(old[name], new, inheritable=False)


def _ask_netns_cookie(module: Any) -> int:
    """The cookie of our network namespace on kernels without SO_NETNS_COOKIE: a program asks when we connect."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own, open_cgroup(find_cgroup2_root()) as cgroup:
        bpf.update(_map(module, _PROBE_MAP), 0, own.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8))
        program = _load(module, PROBE_HOOK)
        bpf.attach(cgroup, program, PROBE_HOOK.attach_type)
        try:
            with suppress(OSError):  # whether there is a route makes no difference: the hook comes first
                own.connect(("127.0.0.1", 9))
        finally:
            bpf.detach(cgroup, program, PROBE_HOOK.attach_type)
    (cookie,) = struct.unpack("=Q", bpf.lookup(_map(module, _PROBE_MAP), 1, 8))
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
        if not find_problems(ours, config, Guard(wanted.forward_from)) and all(
            one is not None and one.agent == config.agent for one in known
        ):
            return
        module = _compile()
        if config.host_netns is None:
            config = replace(config, host_netns=_ask_netns_cookie(module))
        with open_maps(ours) as old:
            _keep_map(module, COUNTERS_MAP, old)
            _keep_map(module, PEERS_MAP, old)
            instructed = _map(module, CONFIG_MAP)
            bpf.update(instructed, 0, config.pack())
            bpf.freeze(instructed)
            programs = {hook: _load(module, hook) for hook in wanted_hooks(wanted.host_network)}
            _activate(descriptor, programs, _load(module, UPLINK_HOOK), Guard(wanted.forward_from))


def _activate(cgroup: int, programs: dict[Hook, int], on_uplinks: int, guard: Guard) -> None:
    was_guarded = guard.is_present()
    guard.install()
    try:
        uplink.attach(on_uplinks)
        attach_all(cgroup, programs)
    except BaseException:
        # Where something of ours was before, pods are refused until the next attempt; else it's as if nothing was.
        if not was_guarded:
            uplink.detach_all()
            guard.remove()
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
