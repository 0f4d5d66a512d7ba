"""Compiled programs as data."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiam.dataplane.ebpf import bytecode
from kiam.dataplane.ebpf.bytecode import Bytecode, MapDefinition, read_prebuilt, relocate
from kiam.dataplane.ebpf.state import source_digest
from kiam.dataplane.ebpf.syscalls import type_information

LOAD_64, PSEUDO_MAP_FD = 0x18, 1


def instruction(operation: int, registers: int = 0, jump: int = 0, number: int = 0) -> bytes:
    return struct.pack("<BBhi", operation, registers, jump, number)


def wide(registers: int, low: int, high: int) -> bytes:
    """A load of 64 bits: two places, the second of which has an operation of 0 and the number's upper half."""
    return instruction(LOAD_64, registers, 0, low) + instruction(0, 0, 0, high)


class Piece(NamedTuple):
    """Some of a program: a load of a map, or anything else."""

    before: bytes
    number: int | None = None

    def after(self) -> bytes:
        """With the map's number inverted."""
        return self.before if self.number is None else wide(self.before[1], ~self.number, 0)


numbers = st.integers(-(2**31), 2**31 - 1)
registers = st.integers(0, 10)
map_loads = st.builds(lambda to, number: Piece(wide(PSEUDO_MAP_FD << 4 | to, number, 0), number), registers, numbers)
constants = st.builds(lambda to, low, high: Piece(wide(to, low, high)), registers, numbers, numbers)
others = st.builds(
    lambda operation, both, jump, number: Piece(instruction(operation, both, jump, number)),
    st.integers(0, 255).filter(lambda operation: operation != LOAD_64),
    st.integers(0, 255),
    st.integers(-(2**15), 2**15 - 1),
    numbers,
)
# An upper half may look like an instruction of any kind, a load of a map included.
disguised = st.builds(lambda to: Piece(instruction(LOAD_64, to, 0, 7) + instruction(LOAD_64, 0x11, 0, 9)), registers)


@given(st.lists(map_loads | constants | others | disguised))
def test_only_the_numbers_of_maps_change(program: list[Piece]) -> None:
    before, after = b"".join(p.before for p in program), b"".join(p.after() for p in program)
    assert relocate(before, lambda number: ~number) == after


BYTECODE = Bytecode(source_digest(), (MapDefinition("m", 2, 4, 8, 1, 0),), {"p": b"\0" * 16, "q": bytes(range(8))})


def test_a_file_holds_all_of_it() -> None:
    assert Bytecode.from_json(BYTECODE.to_json()) == BYTECODE


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"digest": "00", "maps": [{"name": "m"}], "programs": {}}', '{"digest": "x", "maps": []}']
)
def test_a_file_that_holds_something_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Bytecode.from_json(text)


def test_what_was_made_from_another_source_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bytecode, "PREBUILT", tmp_path / "prebuilt.json")
    assert read_prebuilt() is None
    bytecode.PREBUILT.write_text(BYTECODE.to_json())
    assert read_prebuilt() == BYTECODE
    bytecode.PREBUILT.write_text(Bytecode(bytes(16), BYTECODE.maps, BYTECODE.programs).to_json())
    assert read_prebuilt() is None
    bytecode.PREBUILT.write_text("{")
    assert read_prebuilt() is None


def test_type_information_is_as_long_as_its_header_says() -> None:
    blob = type_information(20)
    magic, version, _, header, types_at, types, strings_at, strings = struct.unpack_from("=HBBIIIII", blob)
    assert (magic, version, header) == (0xEB9F, 1, 24)
    assert (types_at, strings_at) == (0, types)
    assert len(blob) == header + types + strings
    assert struct.unpack_from("=I", blob, header + types - 4) == (5,)  # elements of 4 bytes
