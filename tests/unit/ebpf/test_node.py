"""What the node lacks is named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kiam.dataplane.cgroups import CGROUP_VARIABLE
from kiam.dataplane.ebpf import node
from kiam.dataplane.ebpf.guard import wanted_objects
from kiam.errors import UserError


@pytest.mark.parametrize(
    ("effective", "missing"),
    [
        ("000001ffffffffff", []),
        ("0000000000201000", []),
        ("0000000000200000", ["NET_ADMIN"]),
        # What a container has by default, and CAP_BPF with CAP_NET_ADMIN, which is not enough.
        ("00000000a80425fb", ["NET_ADMIN", "SYS_ADMIN"]),
        ("0000008000001000", ["SYS_ADMIN"]),
        ("0000000000000000", ["NET_ADMIN", "SYS_ADMIN"]),
    ],
)
def test_missing_capabilities_are_read_from_the_process_status(effective: str, missing: list[str]) -> None:
    status = f"Name:\tkiam\nCapPrm:\t000001ffffffffff\nCapEff:\t{effective}\nCapBnd:\t000001ffffffffff\n"
    assert node.missing_capabilities(status) == missing


def test_a_kernel_that_refuses_is_told_by_its_release_and_what_to_use_instead() -> None:
    line = str(node.kernel_lacks("the program kiam_connect4"))
    assert line.startswith(f"kernel {os.uname().release} refused the program kiam_connect4: ")
    assert "Linux 5.8 or newer" in line
    assert "--dataplane=nftables" in line


def test_the_named_attach_point_must_be_a_cgroup2_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CGROUP_VARIABLE, str(tmp_path))
    with pytest.raises(UserError, match="is no cgroup2 directory"):
        node.attach_point()
    (tmp_path / "cgroup.procs").touch()
    (tmp_path / "cgroup.controllers").touch()
    assert node.attach_point() == tmp_path


def test_the_guard_drops_both_metadata_addresses_on_every_interface_but_loopback_before_any_translation() -> None:
    rules = [one["rule"] for one in wanted_objects() if "rule" in one]
    requests = [rule["expr"] for rule in rules if rule["chain"] == "requests"]
    assert [rule[1]["match"]["right"] for rule in requests] == ["169.254.169.254", "fd00:ec2::254"]
    for rule in requests:
        assert rule[0]["match"] == {"op": "!=", "left": {"meta": {"key": "iif"}}, "right": "lo"}
        assert rule[-1] == {"drop": None}
    chains = {one["chain"]["name"]: one["chain"] for one in wanted_objects() if "chain" in one}
    assert (chains["requests"]["hook"], chains["requests"]["prio"]) == ("prerouting", -310)


def test_the_guard_drops_forwarded_answers_and_requests() -> None:
    rules = [one["rule"]["expr"] for one in wanted_objects() if "rule" in one and one["rule"]["chain"] == "answers"]
    assert [(rule[0]["match"]["left"]["payload"]["field"], rule[0]["match"]["right"]) for rule in rules] == [
        ("saddr", "169.254.169.254"),
        ("saddr", "fd00:ec2::254"),
        ("daddr", "169.254.169.254"),
        ("daddr", "fd00:ec2::254"),
    ]
    (chain,) = [one["chain"] for one in wanted_objects() if "chain" in one and one["chain"]["name"] == "answers"]
    assert chain["hook"] == "forward"
