"""Compiled programs as data: their instructions, and the maps that they name.

An image's build writes them with bcc (``kiam.dataplane.ebpf.prebuild``), so that nodes need no compiler. They are right
for every kernel that has the helpers they call, as the source is (kiam.c); whether a node's kernel does, its verifier
says.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

from kiam.dataplane.ebpf.state import SOURCE, source_digest

PREBUILT = SOURCE.with_name("kiam.prebuilt.json")

_INSTRUCTION = struct.Struct("<BBhi")
_LOAD_64 = 0x18
"""BPF_LD | BPF_IMM | BPF_DW, which takes two instructions' places; linux/bpf_common.h, linux/bpf.h."""
_PSEUDO_MAP_FD = 1
"""Source register of such a load when its number stands for a map."""


@dataclass(frozen=True, slots=True)
class MapDefinition:
    """What a map is made with; numbers are those of linux/bpf.h, sizes are in bytes."""

    name: str
    map_type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


@dataclass(frozen=True, slots=True)
class Bytecode:
    """All programs of one version of the source. Instructions name a map by its place in ``maps``."""

    digest: bytes
    maps: tuple[MapDefinition, ...]
    programs: Mapping[str, bytes]

    def to_json(self) -> str:
        """As a file holds it."""
        programs = {name: base64.b64encode(code).decode() for name, code in sorted(self.programs.items())}
        maps = [asdict(definition) for definition in self.maps]
        return json.dumps({"digest": self.digest.hex(), "maps": maps, "programs": programs}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Bytecode:
        """What ``to_json`` wrote. Raises ValueError."""
        try:
            fields = json.loads(text)
            maps = tuple(MapDefinition(**definition) for definition in fields["maps"])
            programs = {name: base64.b64decode(code, validate=True) for name, code in fields["programs"].items()}
            return cls(bytes.fromhex(fields["digest"]), maps, programs)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no prebuilt programs: {error!r}") from error


def relocate(instructions: bytes, number_of: Callable[[int], int]) -> bytes:
    """The instructions with another number for each map that they name."""
    code = bytearray(instructions)
    offset = 0
    while offset < len(code):
        operation, registers, jump, number = _INSTRUCTION.unpack_from(code, offset)
        wide = operation == _LOAD_64
        if wide and registers >> 4 == _PSEUDO_MAP_FD:
            _INSTRUCTION.pack_into(code, offset, operation, registers, jump, number_of(number))
        offset += _INSTRUCTION.size * (2 if wide else 1)
    return bytes(code)


def read_prebuilt() -> Bytecode | None:
    """What the image was built with; None if there is nothing, or it was made from another source than is here."""
    try:
        found = Bytecode.from_json(PREBUILT.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return found if found.digest == source_digest() else None
