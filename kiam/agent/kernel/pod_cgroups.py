"""From the cgroup of a socket to the pod it belongs to.

Kubelet makes one cgroup for each pod, directly below ``kubepods`` or below a quality-of-service class in it, and names
it after the pod's UID (Kubernetes, "Configuring a cgroup driver")::

    cgroupfs   kubepods/burstable/pod1f0c0d0e-…/<container>
    systemd    kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1f0c0d0e_….slice/cri-containerd-….scope
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePath

from kiam.dataplane.cgroups import find_pod_cgroups
from kiam.errors import UserError

_UID = r"(?P<uid>[0-9a-fA-F]{8}(?:[-_][0-9a-fA-F]{4}){3}[-_][0-9a-fA-F]{12})"
# The API server makes UIDs in this form. A static pod's cgroup has a hash of its manifest instead, which the API
# doesn't know the pod by: it is known by its address alone.
_POD = re.compile(rf"pod{_UID}|(?:[^/]*-)?pod{_UID.replace('?P<uid>', '?P<slice>')}\.slice")
_CLASS = re.compile(r"burstable|besteffort|(?:[^/]*-)?kubepods-(?:burstable|besteffort)\.slice")
_FILEID_KERNFS = 0xFE
"""linux/exportfs.h: a file handle that is a cgroup's identifier."""
_MOST_REMEMBERED = 8192


def pod_uid(path: PurePath, pods_roots: Sequence[PurePath]) -> str | None:
    """The UID of the pod that a cgroup is in; None: it is in none, or in a static pod.

    Which attack: a container that may make cgroups names one of its own like another pod's. It can do so only below its
    own pod's, and only the one component directly under kubelet's root or its class counts.
    """
    for root in pods_roots:
        if path.is_relative_to(root):
            parts = path.relative_to(root).parts
            break
    else:
        return None
    if parts and _CLASS.fullmatch(parts[0]):
        parts = parts[1:]
    found = _POD.fullmatch(parts[0]) if parts else None
    return None if found is None else (found["uid"] or found["slice"]).replace("_", "-").lower()


class _Handle(ctypes.Structure):
    """struct file_handle (open_by_handle_at(2))."""

    _fields_ = (("size", ctypes.c_uint32), ("kind", ctypes.c_int32), ("cgroup_id", ctypes.c_uint64))


class PodCgroups:
    """Pods by the identifiers of cgroups, which the kernel doesn't use twice."""

    def __init__(self, root: Path) -> None:
        """``root``: the real root of the cgroup2 hierarchy. Raises UserError without the capability for it."""
        self._root = root
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._mount = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._roots: tuple[Path, ...] = ()
        self._known: dict[int, str | None] = {}
        if self._path(root.stat().st_ino) is None:
            os.close(self._mount)
            raise UserError(
                "--pod-uid: cgroups can't be opened by their identifiers",
                "give the agent the capability DAC_READ_SEARCH, or leave --pod-uid off",
            )

    def close(self) -> None:
        """No more questions."""
        os.close(self._mount)

    def uid_of(self, cgroup_id: int) -> str | None:
        """The UID of the pod whose cgroup has that identifier, or is above it; None: there is none, or it has gone."""
        if cgroup_id in self._known:
            return self._known[cgroup_id]
        path = self._path(cgroup_id)
        if path is None:
            return None
        roots = self._pods_roots()
        if not roots:
            return None
        uid = pod_uid(path, roots)
        # Which attack: a pod that makes cgroups without end. Each costs one look, and forgetting costs little.
        if len(self._known) >= _MOST_REMEMBERED:
            self._known.clear()
        self._known[cgroup_id] = uid
        return uid

    def _pods_roots(self) -> tuple[Path, ...]:
        if not self._roots:
            found = find_pod_cgroups(self._root)
            # Kubelet's is the one nearest to the root: a container outside kubelet's may have one of that name inside.
            nearest = min((cgroup.level for cgroup in found), default=0)
            self._roots = tuple(cgroup.path for cgroup in found if cgroup.level == nearest)
        return self._roots

    def _path(self, cgroup_id: int) -> Path | None:
        handle = _Handle(8, _FILEID_KERNFS, cgroup_id)
        found = self._libc.open_by_handle_at(self._mount, ctypes.byref(handle), os.O_RDONLY | os.O_CLOEXEC)
        if found < 0:
            return None
        try:
            return Path(f"/proc/self/fd/{found}").readlink()
        finally:
            os.close(found)
