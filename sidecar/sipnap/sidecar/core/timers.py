"""The timer heap: plain tuples, lazy deletion.

Cancelling does not search the heap; the entry stays as a dead one until it reaches the head or until more than half of
the heap is dead, when it is rebuilt. So every operation is O(log n) at worst and amortised O(1) for the dead ones.
"""

from __future__ import annotations

import heapq
from typing import Generic, Protocol, TypeVar

_LEAST_DEAD_TO_PRUNE = 1000


class Timed(Protocol):
    """What a timer heap holds."""

    timer_sequence: int
    """The heap's own mark: which entry of the heap is this item's live one; 0 when none is."""


Item = TypeVar("Item", bound=Timed)
OwnItem_contra = TypeVar("OwnItem_contra", bound=Timed, contravariant=True)


class Alarms(Protocol[OwnItem_contra]):
    """What the owner of some of a timer heap's items needs of it; for the rules see `TimerHeap`."""

    def arm(self, item: OwnItem_contra, due_seconds: float, sequence: int = 0) -> None:
        """Set the item's timer."""

    def disarm(self, item: OwnItem_contra) -> None:
        """Take the item's timer away."""


class TimerHeap(Generic[Item]):
    """Items by due time; equal times in order of arming. An item has one timer at a time. Seconds on any one clock."""

    __slots__ = ("_dead", "_entries", "_sequence")

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, Item]] = []
        self._sequence = 2**48
        self._dead = 0

    def __len__(self) -> int:
        return len(self._entries) - self._dead

    def arm(self, item: Item, due_seconds: float, sequence: int = 0) -> None:
        """Set the item's timer; one that it had is replaced.

        `sequence`: a number of the caller's, 1 to 2**48, that no entry here has; it then costs no memory of its own.
        Among equal times it comes before those without one, in order of the numbers.
        """
        if item.timer_sequence:
            self._bury()
        if not sequence:
            sequence = self._sequence = self._sequence + 1
        item.timer_sequence = sequence
        heapq.heappush(self._entries, (due_seconds, sequence, item))

    def disarm(self, item: Item) -> None:
        """Take the item's timer away, if it has one: it will not be popped."""
        if item.timer_sequence:
            item.timer_sequence = 0
            self._bury()

    def next_due_seconds(self) -> float | None:
        """When the earliest timer is due; None when there is none."""
        entries = self._entries
        while entries and entries[0][2].timer_sequence != entries[0][1]:
            heapq.heappop(entries)
            self._dead -= 1
        return entries[0][0] if entries else None

    def pop_due(self, now_seconds: float, most: int) -> list[Item]:
        """Take out at most so many items whose time has come, in order. They have no timer any more."""
        due: list[Item] = []
        entries = self._entries
        while entries and entries[0][0] <= now_seconds and len(due) < most:
            _, sequence, item = heapq.heappop(entries)
            if item.timer_sequence == sequence:
                item.timer_sequence = 0
                due.append(item)
            else:
                self._dead -= 1
        return due

    def _bury(self) -> None:
        self._dead += 1
        if self._dead > _LEAST_DEAD_TO_PRUNE and self._dead * 2 > len(self._entries):
            self._entries = [entry for entry in self._entries if entry[2].timer_sequence == entry[1]]
            heapq.heapify(self._entries)
            self._dead = 0
