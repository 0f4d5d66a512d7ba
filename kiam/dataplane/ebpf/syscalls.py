"""bpf(2)'s commands that make maps and programs. bcc has its own; these need neither it nor LLVM.

Layouts are those of ``union bpf_attr`` in linux/bpf.h and of btf.h.
"""

from __future__ import annotations

import ctypes
import resource
import struct
from collections.abc import Sequence
from contextlib import suppress

from kiam.dataplane.ebpf.bpf import bpf, closing
from kiam.dataplane.ebpf.bytecode import MapDefinition

_MAP_CREATE = 0
_PROG_LOAD = 5
_BTF_LOAD = 18
_SK_STORAGE = 24
_LICENSE = b"GPL"
"""What bcc declares for programs that name none; some helpers are for GPL programs only."""
_LOG_SIZE = 1 << 20

_BTF_HEADER = struct.Struct("=HBBIIIII")
_BTF_MAGIC = 0xEB9F
_BTF_INT = 1 << 24
_BTF_ARRAY = 3 << 24
_BTF_STRINGS = b"\0int\0"
_KEY_TYPE, _VALUE_TYPE = 1, 2


def allow_locked_memory() -> None:
    """Before Linux 5.11 maps and programs count as locked memory, of which a process may have 64 KiB by default."""
    with suppress(ValueError, OSError):  # without CAP_SYS_RESOURCE; newer kernels don't look
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def type_information(value_size: int) -> bytes:
    """BTF for a map whose key is an int and whose value an array of ints: type 1 and type 2."""
    integer = struct.pack("=IIII", _BTF_STRINGS.index(b"int"), _BTF_INT, 4, 32)
    array = struct.pack("=IIIIII", 0, _BTF_ARRAY, 0, _KEY_TYPE, _KEY_TYPE, value_size // 4)
    types = integer + array
    sections = (0, len(types), len(types), len(_BTF_STRINGS))
    return _BTF_HEADER.pack(_BTF_MAGIC, 1, 0, _BTF_HEADER.size, *sections) + types + _BTF_STRINGS


def _load_types(blob: bytes) -> int:
    buffer = ctypes.create_string_buffer(blob, len(blob))
    return bpf(_BTF_LOAD, struct.pack("=QQIII", ctypes.addressof(buffer), 0, len(blob), 0, 0))


def _create_map(definition: MapDefinition, types: Sequence[int]) -> int:
    sizes = (definition.map_type, definition.key_size, definition.value_size, definition.max_entries, definition.flags)
    name = definition.name.encode()[:15]
    return bpf(_MAP_CREATE, struct.pack("=IIIIIII16sIIII", *sizes, 0, 0, name, 0, *types))


def create_map(definition: MapDefinition) -> int:
    """A new map's descriptor. Raises OSError."""
    if definition.map_type != _SK_STORAGE:
        return _create_map(definition, (0, 0, 0))
    # The kernel makes no socket storage without a description of what is in it.
    with closing(_load_types(type_information(definition.value_size))) as types:
        return _create_map(definition, (types, _KEY_TYPE, _VALUE_TYPE))


def load_program(name: str, program_type: int, attach_type: int, instructions: bytes) -> int:
    """A loaded program's descriptor. Raises OSError; its ``strerror`` ends with the verifier's last words."""
    try:
        return _load_program(name, program_type, attach_type, instructions, None)
    except OSError as error:
        log = ctypes.create_string_buffer(_LOG_SIZE)
        with suppress(OSError):
            return _load_program(name, program_type, attach_type, instructions, log)
        lines = log.value.decode(errors="replace").strip().splitlines()
        said = [line for line in lines if not line.startswith(("processed ", "verification time"))][-1:]
        raise OSError(error.errno, "; the verifier: ".join([str(error.strerror), *said])) from error


def _load_program(
    name: str, program_type: int, attach_type: int, instructions: bytes, log: ctypes.Array[ctypes.c_char] | None
) -> int:
    code = ctypes.create_string_buffer(instructions, len(instructions))
    license_text = ctypes.create_string_buffer(_LICENSE)
    logging = (0, 0, 0) if log is None else (1, len(log), ctypes.addressof(log))
    attributes = struct.pack(
        "=IIQQIIQII16sII",
        *(program_type, len(instructions) // 8, ctypes.addressof(code), ctypes.addressof(license_text)),
        *logging,
        *(0, 0, name.encode()[:15], 0, attach_type),
    )
    return bpf(_PROG_LOAD, attributes)
