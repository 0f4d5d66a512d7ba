"""connect(2) by way of io_uring, without liburing: one ring, one request (io_uring_setup(2), linux/io_uring.h)."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import socket
import struct
import time
from collections.abc import Iterator

IO_URING_SETUP = 425
IO_URING_ENTER = 426
"""System call numbers, the same on every architecture (asm-generic/unistd.h)."""
IORING_OP_CONNECT = 16
IORING_OFF_SQES = 0x10000000
IORING_FEAT_SINGLE_MMAP = 1
PARAMETERS_SIZE = 120
SQE_SIZE = 64

_libc = ctypes.CDLL(None, use_errno=True)


def connect(connection: socket.socket, address: tuple[str, int], timeout: float) -> None:
    """Connect an IPv4 socket. Raises OSError; TimeoutError after ``timeout`` seconds without an answer."""
    sockaddr = ctypes.create_string_buffer(
        struct.pack("=H", socket.AF_INET) + struct.pack("!H", address[1]) + socket.inet_aton(address[0]) + bytes(8), 16
    )
    with _ring() as (ring, parameters):
        _submit(ring, parameters, connection.fileno(), ctypes.addressof(sockaddr))
        result = _completion(ring, parameters, timeout)
    if result < 0:
        raise OSError(-result, os.strerror(-result))


@contextlib.contextmanager
def _ring() -> Iterator[tuple[int, bytes]]:
    parameters = ctypes.create_string_buffer(PARAMETERS_SIZE)
    ring = _libc.syscall(IO_URING_SETUP, 1, parameters)
    if ring < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"io_uring_setup: {os.strerror(error)}")
    try:
        yield ring, parameters.raw
    finally:
        os.close(ring)


def _submit(ring: int, parameters: bytes, descriptor: int, sockaddr: int) -> None:
    # struct io_uring_params: sq_entries, cq_entries, flags, cpu, idle, features, wq_fd, resv[3], sq_off, cq_off;
    # sq_off: head, tail, ring_mask, ring_entries, flags, dropped, array.
    (sq_entries,) = struct.unpack_from("=I", parameters, 0)
    tail, array = struct.unpack_from("=I", parameters, 44)[0], struct.unpack_from("=I", parameters, 64)[0]
    with mmap.mmap(ring, SQE_SIZE * sq_entries, offset=IORING_OFF_SQES) as entries:
        # opcode, flags, ioprio, fd, off (for connect: the length of the address), addr.
        struct.pack_into("=BBHiQQ", entries, 0, IORING_OP_CONNECT, 0, 0, descriptor, 16, sockaddr)
    with mmap.mmap(ring, array + 4 * sq_entries) as queue:
        struct.pack_into("=I", queue, array, 0)
        struct.pack_into("=I", queue, tail, 1)
    if _libc.syscall(IO_URING_ENTER, ring, 1, 0, 0, None, 0) < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"io_uring_enter: {os.strerror(error)}")


def _completion(ring: int, parameters: bytes, timeout: float) -> int:
    (features,) = struct.unpack_from("=I", parameters, 20)
    if not features & IORING_FEAT_SINGLE_MMAP:
        raise OSError(95, "io_uring of this kernel is older than 5.4")
    # cq_off: head, tail, ring_mask, ring_entries, overflow, cqes.
    tail, cqes = struct.unpack_from("=I", parameters, 84)[0], struct.unpack_from("=I", parameters, 100)[0]
    (cq_entries,) = struct.unpack_from("=I", parameters, 4)
    deadline = time.monotonic() + timeout
    with mmap.mmap(ring, cqes + 16 * cq_entries) as queue:
        while struct.unpack_from("=I", queue, tail)[0] == 0:
            if time.monotonic() > deadline:
                raise TimeoutError("no answer")
            time.sleep(0.005)
        result: int = struct.unpack_from("=i", queue, cqes + 8)[0]
        return result
