"""Pauses grow to their bound, and are scattered below it."""

from __future__ import annotations

from itertools import islice

from kiam.pauses import growing, scattered


def test_pauses_grow_twofold_to_the_longest_and_stay() -> None:
    assert list(islice(growing(0.1, 0.5), 5)) == [0.1, 0.2, 0.4, 0.5, 0.5]
    assert list(islice(growing(3.0, 2.0), 2)) == [2.0, 2.0]


def test_scattered_pauses_are_anything_up_to_the_growing_ones() -> None:
    many = [list(islice(scattered(0.1, 0.5), 4)) for _ in range(200)]
    for nth, bound in enumerate((0.1, 0.2, 0.4, 0.5)):
        seen = [pauses[nth] for pauses in many]
        assert 0.0 <= min(seen) < bound / 4 < bound / 2 < max(seen) <= bound
