"""A cgroup of its own for each probe, as kubelet gives each pod one."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from kiam.dataplane.cgroups import CGROUP_VARIABLE, find_cgroup2_root, find_pod_cgroups
from kiam.errors import ErrorKind, UserError

PREFIX = "kiamverify-"
STALE_SECONDS = 60.0
"""An empty cgroup of ours that is older was left by a run that was killed."""


def top() -> Path | None:
    """The cgroup below which the node's processes are; None where no cgroup2 is mounted (or only a container's own)."""
    # The eBPF dataplane may be attached elsewhere than at the root of the hierarchy; probes have to be below that.
    if CGROUP_VARIABLE in os.environ:
        return Path(os.environ[CGROUP_VARIABLE])
    try:
        return find_cgroup2_root()
    except UserError:
        return None


def pods_cgroup(root: Path) -> Path | None:
    """The cgroup kubelet keeps pods in; None before kubelet has made one."""
    return next((found.path for found in find_pod_cgroups(root)), None)


@contextlib.contextmanager
def throwaway(parent: Path | None) -> Iterator[Path | None]:
    """Make ``kiamverify-xxxxxxxx`` below ``parent`` and remove it at the end; None stays None. Raises UserError."""
    if parent is None:
        yield None
        return
    path = parent / f"{PREFIX}{secrets.token_hex(4)}"
    try:
        _sweep(parent)
        path.mkdir()
    except OSError as error:
        raise UserError(f"can't make the cgroup {path}: {error.strerror}", kind=ErrorKind.RIGHTS) from error
    try:
        yield path
    finally:
        _remove(path)


def _sweep(parent: Path) -> None:
    for path in parent.glob(f"{PREFIX}*"):
        # rmdir fails where a process is inside, and that one is in use.
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.rmdir()


def _remove(path: Path) -> None:
    # The probe is dead by now, but the kernel lets go of a cgroup only when it has been reaped and freed.
    deadline = time.monotonic() + 5
    while True:
        try:
            path.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return
