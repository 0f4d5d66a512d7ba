"""Our programs on a cgroup's hooks: finding, attaching, replacing and taking them off."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from kiam.dataplane.ebpf import bpf
from kiam.dataplane.ebpf.node import kernel_lacks
from kiam.dataplane.ebpf.state import ALL_HOOKS, CONFIG_MAP, CONFIG_SIZE, PREFIX, Config, Hook
from kiam.errors import UserError


@dataclass(frozen=True, slots=True)
class Attachment:
    """One of our programs on one hook."""

    hook: Hook
    program: bpf.ProgramInfo


@contextmanager
def open_cgroup(cgroup: Path) -> Iterator[int]:
    """A descriptor of the cgroup's directory, which is what bpf(2) takes as the place to attach to."""
    with bpf.closing(os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as descriptor:
        yield descriptor


def find_ours(cgroup: int) -> list[Attachment]:
    """Every program of ours on the cgroup's hooks, also of other versions and attached twice. Raises UserError."""
    found = []
    for hook in ALL_HOOKS:
        try:
            identifiers = bpf.attached(cgroup, hook.attach_type)
        except OSError as error:
            raise kernel_lacks(f"to list the programs on the hook of {hook.program} ({error.strerror})") from error
        for identifier in identifiers:
            try:
                with bpf.closing(bpf.open_program(identifier)) as program:
                    info = bpf.program_info(program)
            except FileNotFoundError:
                continue  # detached since it was listed
            if info.name.startswith(PREFIX):
                found.append(Attachment(hook, info))
    return found


@contextmanager
def open_maps(attachments: list[Attachment]) -> Iterator[dict[str, int]]:
    """Descriptors of the maps that our programs use, by name; where versions are mixed, those of the last program."""
    with ExitStack() as stack:
        maps: dict[str, int] = {}
        for identifier in {map_id: None for one in attachments for map_id in one.program.map_ids}:
            try:
                descriptor = stack.enter_context(bpf.closing(bpf.open_map(identifier)))
            except FileNotFoundError:
                continue
            maps[bpf.map_info(descriptor).name] = descriptor
        yield maps


def read_configs(attachments: list[Attachment]) -> list[Config | None]:
    """What each of our programs goes by; None for one whose layout is another version's."""
    configs: list[Config | None] = []
    for attachment in attachments:
        with open_maps([attachment]) as maps:
            if CONFIG_MAP not in maps:
                # getpeername needs no configuration: where it goes by the sockets' own notes.
                continue
            size = bpf.map_info(maps[CONFIG_MAP]).value_size
            configs.append(Config.unpack(bpf.lookup(maps[CONFIG_MAP], 0, size)) if size == CONFIG_SIZE else None)
    return configs


def attach_all(cgroup: int, programs: Mapping[Hook, int]) -> None:
    """Put each program on its hook, in the place of ours that is there, and take our others off.

    On an error everything is put back as it was. Raises UserError.
    """
    with ExitStack() as stack, ExitStack() as undo:
        before = find_ours(cgroup)
        for hook in ALL_HOOKS:
            old = [
                stack.enter_context(bpf.closing(bpf.open_program(one.program.program_id)))
                for one in before
                if one.hook == hook
            ]
            new = programs.get(hook)
            if new is not None:
                _put(cgroup, hook, new, old, undo)
            for superfluous in old[1:] if new is not None else old:
                bpf.detach(cgroup, superfluous, hook.attach_type)
        undo.pop_all()


def _put(cgroup: int, hook: Hook, new: int, old: list[int], undo: ExitStack) -> None:
    try:
        bpf.attach(cgroup, new, hook.attach_type, replace=old[0] if old else None)
    except OSError as error:
        raise _attach_error(hook, error) from error
    if old:
        undo.callback(bpf.attach, cgroup, old[0], hook.attach_type, replace=new)
    else:
        undo.callback(bpf.detach, cgroup, new, hook.attach_type)


def _attach_error(hook: Hook, error: OSError) -> UserError:
    if error.errno == errno.EPERM:
        return UserError(
            f"another program holds the hook of {hook.program} for itself (attached without BPF_F_ALLOW_MULTI): "
            "see 'bpftool cgroup tree', detach it or have it attached with the flag 'multi'"
        )
    return kernel_lacks(f"to attach {hook.program} ({error.strerror})")


def detach_all(cgroup: int) -> None:
    """Take all of ours off the cgroup's hooks."""
    for attachment in find_ours(cgroup):
        with bpf.closing(bpf.open_program(attachment.program.program_id)) as program:
            bpf.detach(cgroup, program, attachment.hook.attach_type)
