"""A cgroup of its own for each probe, as kubelet gives each pod one."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from kiam.dataplane.cgroups import find_cgroup2_root, find_pod_cgroups
from kiam.errors import UserError

ATTACH_POINT_VARIABLE = "KIAM_EBPF_CGROUP"
"""Where the eBPF dataplane is attached if not at the root of the hierarchy; probes have to be below it."""


def top() -> Path | None:
    """The cgroup below which the node's processes are; None where no cgroup2 is mounted (or only a container's own)."""
    if ATTACH_POINT_VARIABLE in os.environ:
        return Path(os.environ[ATTACH_POINT_VARIABLE])
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
    path = parent / f"kiamverify-{secrets.token_hex(4)}"
    try:
        path.mkdir()
    except OSError as error:
        raise UserError(f"can't make the cgroup {path}: {error.strerror}; run as root on the node") from error
    try:
        yield path
    finally:
        _remove(path)


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
