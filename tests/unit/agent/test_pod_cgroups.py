"""Which pod a cgroup's path belongs to."""

from __future__ import annotations

from pathlib import PurePath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiam.agent.kernel.pod_cgroups import pod_uid

UID = "1f0c0d0e-1111-2222-3333-444455556666"
OTHER = "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"
SLICE, OTHER_SLICE = UID.replace("-", "_"), OTHER.replace("-", "_")
ROOTS = (PurePath("/cg/kubepods"), PurePath("/cg/kubepods.slice"), PurePath("/cg/kubelet.slice/kubelet-kubepods.slice"))


@pytest.mark.parametrize(
    "path",
    [
        f"/cg/kubepods/burstable/pod{UID}",
        f"/cg/kubepods/besteffort/pod{UID}/0123",
        f"/cg/kubepods/pod{UID}/0123",
        f"/cg/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{SLICE}.slice/cri-containerd-1.scope",
        f"/cg/kubepods.slice/kubepods-pod{SLICE}.slice",
        "/cg/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/"
        f"kubelet-kubepods-besteffort-pod{SLICE}.slice/c.scope",
        # Made inside the pod, after another one's name.
        f"/cg/kubepods/burstable/pod{UID}/kubepods/burstable/pod{OTHER}",
        f"/cg/kubepods/pod{UID}/pod{OTHER}",
        f"/cg/kubepods.slice/kubepods-pod{SLICE}.slice/c.scope/kubepods-pod{OTHER_SLICE}.slice",
    ],
)
def test_component_directly_under_kubelets_counts(path: str) -> None:
    assert pod_uid(PurePath(path), ROOTS) == UID


@pytest.mark.parametrize(
    "path",
    [
        "/cg",
        "/cg/kubepods",
        "/cg/kubepods/burstable",
        f"/cg/system.slice/pod{UID}",
        f"/cg/kubepods-of-mine/pod{UID}",
        f"/cg/kubepods/something/pod{UID}",
        f"/cg/kubepods/burstable/burstable/pod{UID}",
        f"/cg/kubepods/burstable/xpod{UID}",
        f"/cg/kubepods/burstable/pod{UID}x",
        # A static pod: a hash of its manifest.
        "/cg/kubepods/burstable/pod0123456789abcdef0123456789abcdef",
    ],
)
def test_anything_else_is_no_pod(path: str) -> None:
    assert pod_uid(PurePath(path), ROOTS) is None


@given(st.lists(st.sampled_from(["a", "kubepods", "burstable", f"pod{OTHER}", "kubepods.slice", ".."]), max_size=6))
def test_nothing_below_a_pod_changes_whose_it_is(parts: list[str]) -> None:
    assert pod_uid(PurePath("/cg/kubepods/burstable", f"pod{UID}", *parts), ROOTS) == UID
