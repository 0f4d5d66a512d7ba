"""Compile the programs for nodes without a compiler, when an image is built.

``python -m kiam.dataplane.ebpf.prebuild``. bcc makes a module's maps in the kernel while it compiles, which an image's
build may not: there, preload a library whose ``bpf_map_create`` answers with a descriptor of anything
(deploy/no-maps.c). Nothing is loaded, and no right is needed.
"""

from __future__ import annotations

import ctypes

from kiam.dataplane.ebpf.bytecode import PREBUILT, Bytecode, MapDefinition, relocate
from kiam.dataplane.ebpf.programs import compile_source
from kiam.dataplane.ebpf.state import ALL_HOOKS, PROBE_HOOK, UPLINK_HOOK, source_digest


def compile_bytecode() -> Bytecode:
    """The programs as bcc compiles them here. Raises UserError, ImportError without bcc."""
    module = compile_source()
    from bcc.libbcc import lib

    # What bcc itself doesn't declare: without it, ctypes would cut the module's address to 32 bits.
    lib.bpf_num_tables.restype = ctypes.c_size_t
    lib.bpf_num_tables.argtypes = [ctypes.c_void_p]
    lib.bpf_table_name.restype = ctypes.c_char_p
    lib.bpf_table_name.argtypes = [ctypes.c_void_p, ctypes.c_ulonglong]
    sizes = (lib.bpf_table_key_size_id, lib.bpf_table_leaf_size_id)
    for size in sizes:
        size.restype = ctypes.c_size_t
        size.argtypes = [ctypes.c_void_p, ctypes.c_ulonglong]
    maps: list[MapDefinition] = []
    places: dict[int, int] = {}
    for place in range(lib.bpf_num_tables(module.module)):
        name = lib.bpf_table_name(module.module, place)
        places[lib.bpf_table_fd(module.module, name)] = place
        maps.append(
            MapDefinition(
                name=name.decode(),
                map_type=lib.bpf_table_type_id(module.module, place),
                key_size=sizes[0](module.module, place),
                value_size=sizes[1](module.module, place),
                max_entries=lib.bpf_table_max_entries_id(module.module, place),
                flags=lib.bpf_table_flags_id(module.module, place),
            )
        )
    hooks = (*ALL_HOOKS, UPLINK_HOOK, PROBE_HOOK)
    programs = {hook.program: relocate(module.dump_func(hook.program.encode()), places.__getitem__) for hook in hooks}
    return Bytecode(source_digest(), tuple(maps), programs)


if __name__ == "__main__":
    PREBUILT.write_text(compile_bytecode().to_json())
    print(f"wrote {PREBUILT}")
