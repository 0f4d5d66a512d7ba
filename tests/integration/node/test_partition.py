"""A server cut off from the Kubernetes API while addresses change hands; ``make bench partition`` does more of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.sandbox.node import NodeInABox, needs_root
from tests.sandbox.partition import Partition

ANSWERS = 20_000


@pytest.fixture
def partition() -> Iterator[Partition]:
    why = needs_root()
    if why is not None:
        pytest.skip(why)
    with NodeInABox() as box:
        box.add_namespace("default")
        yield Partition(box)


def test_no_pod_is_taken_for_another_while_the_server_is_cut_off(partition: Partition) -> None:
    partition.start()
    with partition:
        partition.round(is_served=False)
        partition.wait_for_answers(ANSWERS)
    assert partition.tally.wrong == []
    assert partition.tally.answers["own"] >= ANSWERS / 2


def test_one_replica_answers_for_all_while_the_other_is_cut_off(partition: Partition) -> None:
    partition.start_replicated()
    with partition:
        partition.round(is_served=True)
        partition.wait_for_answers(ANSWERS)
    assert partition.tally.wrong == []
    assert partition.tally.answers["own"] >= ANSWERS / 2
