"""The process inside the throwaway namespace: ``python -I -m kiam.verify.live.prober``.

It speaks JSON lines with its parent: says ``{"ready": true}`` when its namespace is there, then answers orders. It
ends when its input does, and the kernel kills it with its parent; the namespace, having no name and no other
process, goes with it, and the veth pair with the namespace.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from kiam.metadata import METADATA_IPV4, METADATA_IPV6
from kiam.verify.live.attempts import Attempt, Order, Outcome, TunnelEnd
from kiam.verify.live.context import Context
from kiam.verify.live.frames import TCP, UDP, Seen
from kiam.verify.live.routes import ROUTES
from kiam.verify.live.tap import Tap

MAX_REPLY = 4096
PR_SET_PDEATHSIG = 1
CLONE_NEWNET = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> int:
    """Enter the namespace (``new``, ``host``, or a path), then answer orders until standard input ends."""
    parent, where = int(sys.argv[1]), sys.argv[2]
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        return 1  # it died before the line above
    try:
        enter(where)
    except OSError as error:
        _say({"error": f"can't enter a network namespace ({where}): {error.strerror}", "errno": error.errno})
        return 1
    _say({"ready": True})
    context: Context | None = None
    for line in sys.stdin:
        message = json.loads(line)
        if "configure" in message:
            _say(_configure(*message["configure"]))
        elif "order" in message:
            order = message["order"]
            tunnels = {route: TunnelEnd(**end) for route, end in order.pop("tunnels").items()}
            context = Context(Order(tuple(order.pop("routes")), tunnels=tunnels, **order))
            _say({"attempts": [dataclasses.asdict(attempt) for attempt in carry_out(context)]})
        elif "talk" in message and context is not None:
            _say({"reply": talk(context.open[message["talk"]], message["path"], message["timeout"])})
    return 0


def _configure(address: str, address6: str, next_hop: str) -> dict[str, Any]:
    # Imported only here: the probe in the host's namespace doesn't need it.
    from pyroute2.netlink.exceptions import NetlinkError

    from kiam.verify.live.inside import configure

    try:
        configure(address, address6, next_hop)
    except NetlinkError as error:
        return {"error": f"can't configure its namespace: {error}"}
    return {"configured": True}


def _say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def enter(where: str) -> None:
    """Go into a new network namespace, stay in the host's, or join that of a path. Raises OSError."""
    if where == "host":
        return
    if where == "new":
        if _libc.unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return
    with Path(where).open("rb") as handle:
        if _libc.setns(handle.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def carry_out(context: Context) -> list[Attempt]:
    """Try all routes at the same time, and add to each what of it left the namespace."""
    with Tap() as tap:
        # The first alone: it fills the ARP table, which the packet probes read.
        first, *others = context.order.routes
        attempts = [attempt(first, context)]
        with ThreadPoolExecutor(max_workers=max(len(others), 1)) as pool:
            attempts += pool.map(lambda route: attempt(route, context), others)
        left = [
            seen.packet
            for seen in tap.read()
            if seen.outgoing and seen.packet.destination in {METADATA_IPV4, METADATA_IPV6}
        ]
    return [dataclasses.replace(tried, sent=tried.sent or keys_of(tried, left)) for tried in attempts]


def keys_of(tried: Attempt, left: Sequence[Seen]) -> tuple[tuple[int, str], ...]:
    """The packets of one attempt among those that left, told by its own port, which no other attempt has."""
    protocol = UDP if tried.route == "udp" else TCP
    return tuple(
        {seen.key for seen in left if tried.port and (seen.protocol, seen.source_port) == (protocol, tried.port)}
    )


def attempt(route: str, context: Context) -> Attempt:
    """Try one route; what goes wrong in trying is reported, not raised."""
    try:
        return ROUTES[route](context)
    except OSError as error:
        return Attempt(route, Outcome.UNSUPPORTED, error.strerror or str(error))


def talk(connection: socket.socket, path: str, timeout: float) -> str:
    """Ask for a path over an open connection; the answer, or why there is none."""
    request = f"GET {path} HTTP/1.1\r\nHost: {METADATA_IPV4}\r\nConnection: close\r\n\r\n"
    connection.settimeout(timeout)
    reply = b""
    try:
        connection.sendall(request.encode())
        while len(reply) < MAX_REPLY and (piece := connection.recv(4096)):
            reply += piece
    except OSError as error:
        if not reply:
            return f"no answer: {error.strerror or error}"
    return reply.decode("latin-1")


if __name__ == "__main__":
    raise SystemExit(main())
