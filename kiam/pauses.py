"""Pauses before trying again, for what an agent runs: a library for it would be held by every node for good."""

from __future__ import annotations

import random
from collections.abc import Iterator


def growing(first: float, most: float) -> Iterator[float]:
    """Seconds to wait, without end: twice as many each time, up to ``most``."""
    pause = min(first, most)
    while True:
        yield pause
        pause = min(2 * pause, most)


def scattered(first: float, most: float) -> Iterator[float]:
    """The same, each anything from nothing to that: many that failed together don't try again together."""
    for pause in growing(first, most):
        yield random.uniform(0.0, pause)  # noqa: S311  # nothing secret
