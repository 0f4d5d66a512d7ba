"""The queue: who is urgent goes first, and no group waits for another's crowd."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiam.server.fair_queue import FairQueue

items = st.lists(st.tuples(st.integers(0, 2), st.sampled_from("abcd")), max_size=60)


def test_empty_queue_has_nothing() -> None:
    with pytest.raises(IndexError):
        FairQueue[int]().pop()


@given(items)
def test_nothing_is_lost_the_urgent_go_first_and_a_group_keeps_its_order(items: list[tuple[int, str]]) -> None:
    queue: FairQueue[tuple[int, str, int]] = FairQueue()
    for number, (urgency, group) in enumerate(items):
        queue.put(urgency, group, (urgency, group, number))
    assert len(queue) == len(items)
    order = [queue.pop() for _ in items]
    assert len(queue) == 0
    assert [urgency for urgency, _ in order] == sorted(urgency for urgency, _ in items)
    assert all(urgency == item[0] for urgency, item in order)
    for urgency in range(3):
        for group in "abcd":
            numbers = [item[2] for _, item in order if item[:2] == (urgency, group)]
            assert numbers == [n for n, entry in enumerate(items) if entry == (urgency, group)]


@given(st.lists(st.one_of(st.none(), st.sampled_from("abcd")), max_size=80))
def test_waiting_group_is_passed_over_by_no_other_twice(steps: list[str | None]) -> None:
    """None takes, a letter puts."""
    queue: FairQueue[str] = FairQueue()
    waiting: dict[str, list[str]] = {}
    present: dict[str, int] = {}
    for step in steps:
        if step is not None:
            queue.put(0, step, step)
            present[step] = present.get(step, 0) + 1
            waiting.setdefault(step, [])
            continue
        if not present:
            continue
        _, taken = queue.pop()
        present[taken] -= 1
        waiting.pop(taken)
        for others in waiting.values():
            others.append(taken)
            assert len(set(others)) == len(others), "one group had two turns while another had none"
        if present[taken]:
            waiting[taken] = []
        else:
            del present[taken]
