"""What gRPC's C core is told by environment variables. It reads them when it is first used."""

from __future__ import annotations

import os


def prepare_grpc() -> None:
    """To be called before grpc is imported."""
    # Its lines come before and beside ours, aren't JSON, and say less than what we say of connections.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # uvloop starts programs with fork(), and in the child, before exec, gRPC would stop its threads and shut down what
    # it has: that aborts the child, and writes to connections it shares with this process. Nothing here goes on to use
    # gRPC after a fork.
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
