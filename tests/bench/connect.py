"""A client program: connect, one request, close, to two addresses in turn; prints the times as JSON.

The two alternate, so that whatever else the machine does falls on both. Connections are few and are reset at the end:
with thousands a second in TIME_WAIT, conntrack and ports would be what is measured.
"""

from __future__ import annotations

import argparse
import gc
import json
import socket
import struct
import time

REQUEST = b"GET /ping HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n"
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER on, 0 seconds: close() resets (socket(7))."""


def once(target: tuple[str, int]) -> int:
    """Nanoseconds from socket() to the answer's first bytes."""
    started = time.perf_counter_ns()
    with socket.socket() as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        client.connect(target)
        client.sendall(REQUEST)
        answer = client.recv(4096)
        took = time.perf_counter_ns() - started
    if not answer.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"{target}: {answer[:60]!r}")
    return took


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--direct", required=True)
    parser.add_argument("--through", required=True)
    parser.add_argument("--connections", type=int, required=True)
    arguments = parser.parse_args()
    targets = []
    for text in (arguments.direct, arguments.through):
        host, _, port = text.partition(":")
        targets.append((host, int(port)))
    for _ in range(50):
        for target in targets:
            once(target)
    times: list[list[int]] = [[], []]
    gc.disable()
    for number in range(arguments.connections):
        # Whoever goes second finds warmer caches, so they take turns at that, too.
        for which in (0, 1) if number % 2 else (1, 0):
            times[which].append(once(targets[which]))
    print(json.dumps({"direct_ns": times[0], "through_ns": times[1]}))


if __name__ == "__main__":
    main()
