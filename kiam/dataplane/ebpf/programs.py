"""Where the programs come from: what the image was built with, or bcc, which compiles them here."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from kiam.dataplane.ebpf import node
from kiam.dataplane.ebpf.bytecode import Bytecode, read_prebuilt, relocate
from kiam.dataplane.ebpf.state import HEADERS, SOURCE, Hook
from kiam.dataplane.ebpf.syscalls import allow_locked_memory, create_map, load_program
from kiam.errors import UserError

_Result = TypeVar("_Result")


class Programs(Protocol):
    """Programs that can be loaded, with their maps made. Both methods raise UserError."""

    def map(self, name: str) -> int:
        """A map's descriptor, which the programs are loaded with: another map put in its place is theirs."""

    def load(self, hook: Hook) -> int:
        """Load a hook's program; its descriptor."""


class Prebuilt:
    """Programs that were compiled before; needs neither bcc nor LLVM."""

    def __init__(self, bytecode: Bytecode) -> None:
        """Makes the maps. Raises UserError."""
        self._bytecode = bytecode
        self._maps: dict[str, int] = {}
        allow_locked_memory()
        for definition in bytecode.maps:
            try:
                self._maps[definition.name] = create_map(definition)
            except OSError as error:
                raise node.kernel_lacks(f"the map {definition.name} ({error.strerror})") from error

    def map(self, name: str) -> int:
        """See Programs.map."""
        return self._maps[name]

    def load(self, hook: Hook) -> int:
        """See Programs.load."""
        names = [definition.name for definition in self._bytecode.maps]
        code = relocate(self._bytecode.programs[hook.program], lambda place: self._maps[names[place]])
        try:
            return load_program(hook.program, hook.program_type, hook.attach_type, code)
        except OSError as error:
            raise node.kernel_lacks(f"the program {hook.program} ({error.strerror})") from error


class Compiled:
    """Programs that bcc compiles now."""

    def __init__(self) -> None:
        """Compiles them and makes the maps. Raises UserError, ImportError without bcc."""
        self._module = compile_source()

    def map(self, name: str) -> int:
        """See Programs.map."""
        # Not module[name]: bcc's Python knows no socket storage.
        from bcc.libbcc import lib

        return int(lib.bpf_table_fd(self._module.module, name.encode()))

    def load(self, hook: Hook) -> int:
        """See Programs.load."""
        try:
            return int(self._module.load_func(hook.program, hook.program_type, attach_type=hook.attach_type).fd)
        except Exception as error:  # bcc raises nothing more specific; the verifier's words are on standard error
            raise node.kernel_lacks(f"the program {hook.program} ({error})") from error


def compile_source() -> Any:
    """bcc's module of kiam.c. Raises UserError, ImportError without bcc."""
    # bcc looks for kernel headers in /lib/modules, which few nodes have; it takes ours in their place.
    os.environ["BCC_KERNEL_SOURCE"] = str(HEADERS.resolve())
    from bcc import BPF

    try:
        return BPF(src_file=str(SOURCE))
    except Exception as error:  # bcc raises nothing more specific; clang's words are on standard error
        # The maps are made while compiling, so that a kernel without them fails here.
        raise node.kernel_lacks(f"the programs' maps, or bcc could not compile them ({error})") from error


def with_programs(use: Callable[[Programs], _Result]) -> _Result:
    """Use the prebuilt programs, or bcc's where there are none or the kernel refuses them. Raises UserError."""
    bytecode = read_prebuilt()
    refusal: UserError | None = None
    if bytecode is not None:
        try:
            return use(Prebuilt(bytecode))
        except UserError as error:
            refusal = error
    try:
        compiled = Compiled()
    except ImportError as error:
        if refusal is not None:
            raise UserError(
                f"{refusal}; these programs were compiled when the image was built: "
                "the image with bcc (deploy/Dockerfile, target agent-bcc) compiles them for this kernel"
            ) from error
        raise UserError(
            "there are no prebuilt eBPF programs of this version, and bcc, which would compile them, is missing",
            "install the Debian package python3-bpfcc, or use an image built from deploy/Dockerfile",
        ) from error
    return use(compiled)
