"""Every way to instance metadata comes to what docs/security.md says, and none but AF_XDP gets there."""

from __future__ import annotations

import platform
from collections.abc import Iterator

import pytest

from tests.attacks.attacker import WAYS
from tests.attacks.table import BEGIN, END, LABELS, PAGE, PLACES, REACHES, Table, make_table, on_page, render
from tests.integration.dataplane.world import World
from tests.sandbox.cgroups import NodeCgroup

EGRESS_HOOK = (5, 16)
"""The Linux that brought nftables' egress hook; before, packet sockets on the host network get through."""


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    if tuple(map(int, platform.release().split(".")[:2])) < EGRESS_HOOK:
        pytest.skip("nftables' egress hook came with Linux 5.16")
    with pytest.MonkeyPatch.context() as patch, NodeCgroup() as cgroups, World(cgroups) as world:
        patch.setenv("KIAM_EBPF_CGROUP", str(cgroups.root))
        yield make_table(world)


def test_nothing_from_a_pod_reaches_instance_metadata(table: Table) -> None:
    assert {
        way: results for (place, way), results in table.items() if place == PLACES[0] and REACHES in results.values()
    } == {}


def test_of_a_pod_on_the_host_network_nothing_does_but_af_xdp(table: Table) -> None:
    reaching = {way for (place, way), results in table.items() if place != PLACES[0] and REACHES in results.values()}
    assert reaching == {LABELS["xdp"], f"{LABELS['xdp']}, IPv6"}


def test_the_page_shows_what_was_tried(table: Table) -> None:
    assert on_page() == render(table), "run make attacks"


def test_every_way_has_a_name_and_the_page_a_place_for_the_table() -> None:
    assert set(LABELS) == set(WAYS)
    assert PAGE.read_text().count(BEGIN) == PAGE.read_text().count(END) == 1
