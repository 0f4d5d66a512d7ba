"""Which listener of one port the kernel gives a connection to, by the address it comes from.

Two sockets listen on the port (SO_REUSEPORT): the front, which bounds strangers and takes certificates that gRPC's TLS
refuses, and gRPC's own. A classic BPF program on the group says which: gRPC's for addresses that are expected there at
this moment, the front for everyone else. Needs no privilege; Linux 4.5.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address

FRONT, DIRECT = 0, 1
"""Indexes in the group: sockets have them in the order in which they began to listen (net/core/sock_reuseport.c)."""
MOST = 400
"""Addresses in one program; it may have 4,096 instructions (BPF_MAXINSNS), and an IPv6 address takes nine."""

# asm-generic/socket.h; Python's socket module has no name for it.
_SO_ATTACH_REUSEPORT_CBPF = 51
# linux/bpf_common.h and linux/filter.h.
_LOAD_WORD, _LOAD_BYTE = 0x20, 0x30  # BPF_LD | BPF_ABS with BPF_W, BPF_B
_JUMP_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_RETURN = 0x06  # BPF_RET | BPF_K
_AND = 0x54  # BPF_ALU | BPF_AND | BPF_K
_NETWORK_HEADER = 0xFFF00000  # SKF_NET_OFF, -0x100000: offsets from there count from the IP header
_IPV4_SOURCE, _IPV6_SOURCE = 12, 8
"""Bytes into the header (RFC 791, 3.1; RFC 8200, 3)."""

Instruction = tuple[int, int, int, int]


def program(addresses: Iterable[IPv4Address | IPv6Address]) -> list[Instruction]:
    """Code, jump if true, jump if false, operand: returns DIRECT for packets from these addresses, else FRONT.

    Raises ValueError for more than MOST addresses.
    """
    chosen = sorted(set(addresses), key=lambda address: (address.version, int(address)))
    if len(chosen) > MOST:
        raise ValueError(f"{len(chosen)} addresses don't fit in one program")
    fours = [int(address) for address in chosen if isinstance(address, IPv4Address)]
    sixes = [address.packed for address in chosen if isinstance(address, IPv6Address)]
    four_part: list[Instruction] = [(_LOAD_WORD, 0, 0, _NETWORK_HEADER + _IPV4_SOURCE)]
    for four in fours:
        four_part += [(_JUMP_EQUAL, 0, 1, four), (_RETURN, 0, 0, DIRECT)]
    four_part.append((_RETURN, 0, 0, FRONT))
    six_part: list[Instruction] = []
    for six in sixes:
        words = struct.unpack("!4I", six)
        for number, word in enumerate(words):
            six_part.append((_LOAD_WORD, 0, 0, _NETWORK_HEADER + _IPV6_SOURCE + 4 * number))
            # To behind this address's return.
            six_part.append((_JUMP_EQUAL, 0, 2 * (len(words) - 1 - number) + 1, word))
        six_part.append((_RETURN, 0, 0, DIRECT))
    six_part.append((_RETURN, 0, 0, FRONT))
    # The version is the upper half of the header's first byte. Jumps reach 255 instructions, so the unequal one steps
    # over a jump that is as long as need be.
    start: list[Instruction] = [
        (_LOAD_BYTE, 0, 0, _NETWORK_HEADER),
        (_AND, 0, 0, 0xF0),
        (_JUMP_EQUAL, 1, 0, 0x40),
        (0x05, 0, 0, len(four_part)),  # BPF_JMP | BPF_JA
    ]
    return start + four_part + six_part


def attach(sock: socket.socket, instructions: list[Instruction]) -> None:
    """Have the group of a socket go by a program, in place of the one before. Raises OSError."""
    packed = b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
    buffer = ctypes.create_string_buffer(packed, len(packed))
    # struct sock_fprog (linux/filter.h): how many instructions, and where they are.
    sock.setsockopt(
        socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, struct.pack("HP", len(instructions), ctypes.addressof(buffer))
    )
