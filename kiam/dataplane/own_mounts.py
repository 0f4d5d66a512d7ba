"""Why a process doesn't see what the node has mounted: ``ip netns exec`` gives it a /sys of its own."""

from __future__ import annotations

import os
from pathlib import Path

NAMED = Path("/run/netns")
"""Where ip-netns(8) keeps network namespaces."""


def lost_with_sys(kind: str, first: Path = Path("/proc/1/mountinfo"), named: Path = NAMED) -> str:
    """What to say of a file system of this type that the node's first process has mounted and this one hasn't.

    Empty where that isn't so, or can't be seen. ``ip netns exec`` mounts /sys anew, to show the namespace's own
    devices, and everything below it is hidden (ip-netns(8)); nsenter(1) leaves mounts alone.
    """
    try:
        lines = [line.split() for line in first.read_text().splitlines()]
    except OSError:
        return ""
    places = [fields[4] for fields in lines if fields[fields.index("-") + 1] == kind]
    if not places:
        return ""
    return (
        f"{kind} is mounted at {places[0]} on the node, and hidden from this process, which has mounts of its own, as "
        f"'ip netns exec' makes them; run it with 'nsenter --net={_own_name(named)}' instead, which doesn't"
    )


def _own_name(named: Path) -> str:
    """The path of this process's network namespace, by its name if it has one."""
    own = Path("/proc/self/ns/net").stat()
    for path in sorted(named.iterdir()) if named.is_dir() else ():
        if os.path.samestat(own, path.stat()):
            return str(path)
    return f"{named}/NAME"
