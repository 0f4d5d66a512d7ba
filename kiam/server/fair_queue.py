"""A queue that is fair between groups: the most urgent first, and among the equally urgent each group in its turn."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")


class FairQueue(Generic[ItemT]):
    """Items by urgency (the lowest number first) and group.

    The attack stopped: a tenant that asks for a thousand things gets one of them, then every other group one of its
    own, so it holds up itself and nobody else.
    """

    def __init__(self) -> None:
        self._groups: dict[int, OrderedDict[str, deque[ItemT]]] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def put(self, urgency: int, group: str, item: ItemT) -> None:
        """Add an item at the end of its group."""
        self._groups.setdefault(urgency, OrderedDict()).setdefault(group, deque()).append(item)
        self._length += 1

    @property
    def urgency(self) -> int:
        """That of the next item. Raises IndexError when there is none."""
        if not self._groups:
            raise IndexError("the queue is empty")
        return min(self._groups)

    def pop(self) -> tuple[int, ItemT]:
        """Take the next item, and its urgency. Raises IndexError when there is none."""
        urgency = self.urgency
        groups = self._groups[urgency]
        group, items = next(iter(groups.items()))
        item = items.popleft()
        if items:
            groups.move_to_end(group)
        else:
            del groups[group]
            if not groups:
                del self._groups[urgency]
        self._length -= 1
        return urgency, item
