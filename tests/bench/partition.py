"""Servers cut off from the Kubernetes API while addresses change hands: what pods are told, and whether it is true."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.sandbox.node import NodeInABox
from tests.sandbox.partition import SWAPS, Partition

ROUNDS = 4
ANSWERS = 100_000
"""In each row at least."""
GIVES_UP = ("--sync=1s", "--stale-after=2s")


def measure(
    say: Callable[[str], None], rounds: int = ROUNDS, answers: int = ANSWERS
) -> dict[str, list[dict[str, Any]]]:
    """A row for each: a server that goes on, one whose streams end meanwhile, and one of two replicas."""
    return {
        "partition": [
            _row("one, cut off", lambda partition: partition.start(), False, say, rounds, answers),
            _row(
                "one, that ends its streams", lambda partition: partition.start(*GIVES_UP), False, say, rounds, answers
            ),
            _row("two, one cut off", lambda partition: partition.start_replicated(), True, say, rounds, answers),
        ]
    }


def _row(
    servers: str,
    start: Callable[[Partition], None],
    is_served: bool,
    say: Callable[[str], None],
    rounds: int,
    answers: int,
) -> dict[str, Any]:
    with NodeInABox() as box:
        box.add_namespace("default")
        partition = Partition(box)
        start(partition)
        with partition:
            for number in range(rounds):
                say(f"servers: {servers}, partition {number + 1} of {rounds}")
                partition.round(is_served=is_served)
                partition.wait_for_answers(answers // rounds)
    tally = partition.tally
    return {
        "servers": servers,
        "partitions": rounds,
        "swaps": rounds * SWAPS,
        "answers": tally.total,
        "own": tally.answers["own"],
        "refused": tally.answers["refused"],
        "wrong": tally.answers["wrong"],
    }
