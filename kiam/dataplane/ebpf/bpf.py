"""The few commands of bpf(2) that bcc's Python binding lacks, and that the agent needs without loading LLVM.

Layouts are those of ``union bpf_attr``, ``struct bpf_prog_info`` and ``struct bpf_map_info`` in linux/bpf.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

F_ALLOW_MULTI = 1 << 1
F_REPLACE = 1 << 2

_MAP_LOOKUP_ELEM = 1
_MAP_UPDATE_ELEM = 2
_PROG_ATTACH = 8
_PROG_DETACH = 9
_PROG_GET_FD_BY_ID = 13
_MAP_GET_FD_BY_ID = 14
_OBJ_GET_INFO_BY_FD = 15
_PROG_QUERY = 16
_MAP_FREEZE = 22

_SYSCALL_NUMBERS = {"x86_64": 321, "aarch64": 280}
_ATTRIBUTES_SIZE = 256
"""More than any kernel's union bpf_attr so far; kernels accept zeros behind the fields they know."""
_MAX_PROGRAMS = 64
"""BPF_CGROUP_MAX_PROGS, linux/bpf-cgroup.h: the kernel allows no more on one hook of one cgroup."""
_MAX_MAPS = 64

_libc = ctypes.CDLL(None, use_errno=True)


def bpf(command: int, attributes: bytes | bytearray) -> int:
    """One call of bpf(2); a bytearray gets back what the kernel wrote into the attributes. Raises OSError."""
    number = _SYSCALL_NUMBERS.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"bpf(2) is not known on {platform.machine()}")
    # Some commands answer into fields behind those they were given, whatever size they were told.
    buffer = ctypes.create_string_buffer(bytes(attributes), _ATTRIBUTES_SIZE)
    result: int = _libc.syscall(number, command, buffer, _ATTRIBUTES_SIZE)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    if isinstance(attributes, bytearray):
        attributes[:] = buffer.raw[: len(attributes)]
    return result


@contextmanager
def closing(descriptor: int) -> Iterator[int]:
    """Close a descriptor when done with it."""
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class ProgramInfo:
    """What the kernel says about a loaded program."""

    program_id: int
    name: str
    tag: str
    """First 8 bytes of the SHA-1 of its instructions, as bpftool prints it."""
    map_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MapInfo:
    """What the kernel says about a map."""

    map_id: int
    name: str
    map_type: int
    key_size: int
    value_size: int
    max_entries: int


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode(errors="replace")


def attached(target: int, attach_type: int) -> list[int]:
    """Identifiers of the programs on one hook of a cgroup or a device, in the order in which they run."""
    identifiers = (ctypes.c_uint32 * _MAX_PROGRAMS)()
    attributes = bytearray(
        struct.pack("=IIIIQII", target, attach_type, 0, 0, ctypes.addressof(identifiers), _MAX_PROGRAMS, 0)
    )
    bpf(_PROG_QUERY, attributes)
    (found,) = struct.unpack_from("=I", attributes, 24)
    return list(identifiers[:found])


def attach(target: int, program: int, attach_type: int, replace: int | None = None, flags: int = F_ALLOW_MULTI) -> None:
    """Add a program to a hook, or put it in the place of another in one step. Others' stay.

    ``target`` is the descriptor of a cgroup, or for a device's hooks the device's index.
    """
    flags |= 0 if replace is None else F_REPLACE
    bpf(_PROG_ATTACH, struct.pack("=IIIIIIQ", target, program, attach_type, flags, replace or 0, 0, 0))


def detach(target: int, program: int, attach_type: int) -> None:
    """Take one program off a hook of a cgroup or a device."""
    bpf(_PROG_DETACH, struct.pack("=IIIII", target, program, attach_type, 0, 0))


def open_program(identifier: int) -> int:
    """A descriptor for a loaded program. Needs CAP_SYS_ADMIN. Raises OSError (ENOENT: no longer there)."""
    return bpf(_PROG_GET_FD_BY_ID, struct.pack("=III", identifier, 0, 0))


def open_map(identifier: int) -> int:
    """A descriptor for a map. Needs CAP_SYS_ADMIN. Raises OSError (ENOENT: no longer there)."""
    return bpf(_MAP_GET_FD_BY_ID, struct.pack("=III", identifier, 0, 0))


def program_info(program: int) -> ProgramInfo:
    """Describe the program open as ``program``."""
    map_ids = (ctypes.c_uint32 * _MAX_MAPS)()
    info = bytearray(80)
    struct.pack_into("=I", info, 52, _MAX_MAPS)
    struct.pack_into("=Q", info, 56, ctypes.addressof(map_ids))
    buffer = (ctypes.c_char * len(info)).from_buffer(info)
    bpf(_OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", program, len(info), ctypes.addressof(buffer)))
    identifier, tag = struct.unpack_from("=I8s", info, 4)
    (maps,) = struct.unpack_from("=I", info, 52)
    return ProgramInfo(identifier, _text(bytes(info[64:80])), tag.hex(), tuple(map_ids[:maps]))


def map_info(descriptor: int) -> MapInfo:
    """Describe the map open as ``descriptor``."""
    info = bytearray(40)
    buffer = (ctypes.c_char * len(info)).from_buffer(info)
    bpf(_OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", descriptor, len(info), ctypes.addressof(buffer)))
    map_type, identifier, key_size, value_size, max_entries = struct.unpack_from("=IIIII", info)
    return MapInfo(identifier, _text(bytes(info[24:40])), map_type, key_size, value_size, max_entries)


def lookup(descriptor: int, index: int, size: int) -> bytes:
    """The value at an index of an array map; ``size`` is the number of bytes the kernel writes."""
    key = ctypes.c_uint32(index)
    value = ctypes.create_string_buffer(size)
    bpf(
        _MAP_LOOKUP_ELEM,
        struct.pack("=IIQQQ", descriptor, 0, ctypes.addressof(key), ctypes.addressof(value), 0),
    )
    return value.raw


def update(descriptor: int, index: int, value: bytes) -> None:
    """Write the value at an index of an array map."""
    key = ctypes.c_uint32(index)
    buffer = ctypes.create_string_buffer(value, len(value))
    bpf(
        _MAP_UPDATE_ELEM,
        struct.pack("=IIQQQ", descriptor, 0, ctypes.addressof(key), ctypes.addressof(buffer), 0),
    )


def freeze(descriptor: int) -> None:
    """Let no process write to the map any more (Linux 5.2)."""
    bpf(_MAP_FREEZE, struct.pack("=I", descriptor))


def possible_processors() -> int:
    """How many values a per-CPU map holds for one index: one for every processor that could ever be there."""
    # cpu/possible is a list such as "0-3" or "0,2-7" (admin-guide/cputopology.rst); its last number is the highest.
    text = Path("/sys/devices/system/cpu/possible").read_text().strip()
    return int(text.replace(",", "-").split("-")[-1]) + 1


def sum_over_processors(descriptor: int, index: int) -> int:
    """The sum of a per-CPU array's 64-bit counters at an index."""
    raw = lookup(descriptor, index, 8 * possible_processors())
    return sum(struct.unpack(f"={len(raw) // 8}Q", raw))
