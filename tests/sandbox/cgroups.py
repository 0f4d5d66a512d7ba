"""A cgroup2 subtree shaped like a node's: kubelet's pods below kubepods, everything else beside it."""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import signal
from pathlib import Path

from tests.sandbox.netns import unique_name
from tests.sandbox.process import wait_until


def cgroup2_mount() -> Path:
    """Where cgroup2 is mounted, alone or beside version 1. Raises LookupError if it isn't."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.startswith("cgroup2 "):
            return Path(before.split()[4])
    raise LookupError("no cgroup2 is mounted on this machine")


class NodeCgroup:
    """``<root>/system`` for the node's software, ``<root>/kubepods/burstable/pod<uid>`` for pods; gone on close."""

    def __init__(self) -> None:
        sweep()
        self.root = cgroup2_mount() / unique_name("node")
        self.system = self.root / "system"
        self.kubepods = self.root / "kubepods"
        for path in (self.system, self.kubepods / "burstable", self.kubepods / "besteffort"):
            path.mkdir(parents=True)
        atexit.register(self.close)

    def __enter__(self) -> NodeCgroup:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def pod(self, uid: str, quality: str = "burstable") -> Path:
        """The cgroup of a pod, made if need be; ``quality`` empty is the Guaranteed class."""
        path = self.kubepods / quality / f"pod{uid}"
        path.mkdir(exist_ok=True)
        return path

    def close(self) -> None:
        """Kill what is still inside and remove the subtree; safe to call twice."""
        atexit.unregister(self.close)
        _remove(self.root)


def _remove(root: Path) -> None:
    if not root.is_dir():
        return
    directories = [Path(directory) for directory, _, _ in os.walk(root, topdown=False)]

    def emptied() -> bool:
        pids = [int(pid) for path in directories for pid in (path / "cgroup.procs").read_text().split()]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not pids

    wait_until(emptied, f"the end of the processes in {root}")
    for path in directories:
        path.rmdir()


def sweep() -> None:
    """Remove subtrees whose owner is no more, as after a SIGKILL."""
    for path in cgroup2_mount().iterdir():
        owner = re.fullmatch(r"kiam-(\d+)-\d+-node", path.name)
        if owner and path.is_dir() and not Path("/proc", owner.group(1)).exists():
            with contextlib.suppress(OSError):
                _remove(path)
