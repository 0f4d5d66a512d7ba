"""The fuzzer's corpus, and every file of it cut off somewhere, keeps the targets' promises."""

from __future__ import annotations

from pathlib import Path

import pytest

import fuzz
from fuzz.targets import TARGETS

CORPUS = Path(fuzz.__file__).parent / "corpus"
SEEDS = sorted(path for path in CORPUS.glob("*/*"))
CUTS = 24


def test_each_target_has_a_corpus() -> None:
    assert {path.parent.name for path in SEEDS} == set(TARGETS) == {path.name for path in CORPUS.iterdir()}


@pytest.mark.parametrize("seed", SEEDS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_promises_are_kept(seed: Path) -> None:
    data = seed.read_bytes()
    for cut in {len(data), *range(0, len(data), max(1, len(data) // CUTS))}:
        TARGETS[seed.parent.name](data[:cut])
