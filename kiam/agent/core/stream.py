"""The server's stream as the core sees it: how things stand with it, and as of when its words are."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Self

from kiam.rpc import kiam_pb2


class Stream(enum.Enum):
    """How things stand with the server's stream."""

    NONE = "none"
    """No stream yet, or a server that has none: unary calls."""
    LIVE = "live"
    """The snapshot is complete and changes come in."""
    AWAY = "away"
    """There was a stream; memory answers for pods whose route the kernel says is unchanged."""


@dataclass(slots=True)
class Reading:
    """The stream that is read. Moments are those of the core's clock, ages are seconds."""

    asked_at: float = 0.0
    age: float = 0.0
    """Of what its server knew when it was asked for."""
    in_snapshot: bool = False

    @classmethod
    def begun(cls, hello: kiam_pb2.Hello, asked_at: float) -> Self:
        """Its first word has come, and the snapshot is under way."""
        return cls(asked_at, _age(hello), True)

    def word_at(self, update: kiam_pb2.NodeUpdate, now: float) -> float:
        """As of when an update is that has come now."""
        return self.asked_at - self.age if self.in_snapshot else now - _age(update)

    def completed(self, marker: kiam_pb2.SnapshotComplete) -> float:
        """The snapshot is over; the age of what it says, when it was asked for."""
        self.in_snapshot = False
        return max(self.age, _age(marker))


def _age(message: kiam_pb2.Hello | kiam_pb2.SnapshotComplete | kiam_pb2.NodeUpdate) -> float:
    """Seconds; 0 of a server that doesn't say: its word is taken as it comes."""
    return message.watch_age_milliseconds / 1000 if message.HasField("watch_age_milliseconds") else 0.0
