"""The program that chooses a listener, in the kernel and against a model of it."""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiam.server.grpc.steering import DIRECT, FRONT, MOST, Instruction, attach, program

Address = IPv4Address | IPv6Address
fours = st.integers(0, 2**32 - 1).map(IPv4Address)
sixes = st.integers(0, 2**128 - 1).map(IPv6Address)


def _run(instructions: list[Instruction], source: Address) -> int:
    """What classic BPF makes of a packet's IP header (Documentation/networking/filter.rst)."""
    if isinstance(source, IPv4Address):
        header = b"\x45" + bytes(11) + source.packed + bytes(4)
    else:
        header = b"\x60" + bytes(7) + source.packed + bytes(16)
    accumulator, counter = 0, 0
    while True:
        code, jump_true, jump_false, operand = instructions[counter]
        counter += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("!I", header, operand - 0xFFF00000)
        elif code == 0x30:
            accumulator = header[operand - 0xFFF00000]
        elif code == 0x54:
            accumulator &= operand
        elif code == 0x15:
            counter += jump_true if accumulator == operand else jump_false
        elif code == 0x05:
            counter += operand
        else:
            assert code == 0x06
            return operand


@given(chosen=st.sets(st.one_of(fours, sixes), max_size=40), other=st.one_of(fours, sixes))
def test_exactly_the_chosen_addresses_go_past_the_front(chosen: set[Address], other: Address) -> None:
    instructions = program(chosen)
    for source in (*chosen, other):
        assert _run(instructions, source) == (DIRECT if source in chosen else FRONT)


def test_largest_program_is_one_that_the_kernel_takes() -> None:
    for addresses in (
        [IPv4Address(number) for number in range(MOST)],
        [IPv6Address(number << 96) for number in range(MOST)],
    ):
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(("127.0.0.1", 0))
            attach(sock, program(addresses))
    with pytest.raises(ValueError, match="don't fit"):
        program(IPv4Address(number) for number in range(MOST + 1))


@pytest.mark.parametrize(
    ("family", "host", "chosen", "other"),
    [(socket.AF_INET, "127.0.0.1", "127.0.0.2", "127.0.0.3"), (socket.AF_INET6, "::1", "::1", None)],
)
def test_kernel_goes_by_the_program(family: socket.AddressFamily, host: str, chosen: str, other: str | None) -> None:
    listeners = []
    try:
        for _ in range(2):
            sock = socket.socket(family)
            listeners.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind((host, listeners[0].getsockname()[1] if len(listeners) > 1 else 0))
            sock.listen(64)
            sock.settimeout(10)
        attach(listeners[0], program([ip_address(chosen)]))
        for source, index in ((chosen, DIRECT), (other, FRONT)):
            for _ in range(8 if source else 0):
                with socket.socket(family) as client:
                    client.bind((source, 0))
                    client.connect(listeners[0].getsockname())
                    connection, peer = listeners[index].accept()
                    connection.close()
                    assert peer[0] == source
    finally:
        for sock in listeners:
            sock.close()
