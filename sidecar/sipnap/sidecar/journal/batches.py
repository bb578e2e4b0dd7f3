"""Which batches of a journal's file still hold a nap that has not ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple

_SMALL_BYTES = 16 * 1024 * 1024
_MOST_ENDED_SHARE = 3 / 4


class Batch(NamedTuple):
    """What one commit added."""

    number: int
    """Order of writing."""
    sequences: Sequence[int]
    """Of its naps: those that had not ended when it became known here."""
    bytes: int
    """Its size."""


class Batches:
    """The batches of a file in order of writing, and what of them has ended.

    Naps end one by one, but are taken out of the file by whole batches, from the oldest on, so that a commit costs one
    row, however many naps it is about. What holds a batch up, a long nap among short ones, is written again with the
    newest. No I/O here: the caller does to the file what these methods say.
    """

    def __init__(self) -> None:
        self._batches: deque[Batch] = deque()
        self._ended: set[int] = set()
        self._naps = 0
        self._bytes = 0

    @property
    def oldest_number(self) -> int | None:
        """Of the oldest batch that is not over; None: all are."""
        return self._batches[0].number if self._batches else None

    def load(self, number: int, sequences: Sequence[int], size: int, ended: AbstractSet[int]) -> None:
        """A batch that the file has; the newest first.

        Args:
            number: Its number.
            sequences: All its naps.
            size: Its bytes.
            ended: What this batch and newer ones say has ended. A restarted sidecar may give the sequence of a nap
                that is over to a new one, in a newer batch: that one is not meant by what an older batch says.
        """
        if not ended.isdisjoint(sequences):
            sequences = [sequence for sequence in sequences if sequence not in ended]
        self._batches.appendleft(Batch(number, sequences, size))
        self._naps += len(sequences)
        self._bytes += size

    def add(self, number: int, sequences: Sequence[int], size: int) -> None:
        """A new batch."""
        self._batches.append(Batch(number, sequences, size))
        self._naps += len(sequences)
        self._bytes += size

    def end(self, sequences: Sequence[int]) -> None:
        """These naps are over; so are the oldest batches, if they have none that is not."""
        ended, batches = self._ended, self._batches
        ended.update(sequences)
        while batches and ended.issuperset(batches[0].sequences):
            self._drop()

    def take_oldest(self) -> tuple[int, set[int]] | None:
        """A batch to be written again, because too much of the file has ended, or None.

        Returns:
            Its number, and the naps in it that have not ended: they are to be added anew.
        """
        if self._bytes <= _SMALL_BYTES or len(self._ended) <= _MOST_ENDED_SHARE * self._naps:
            return None
        number, living = self._batches[0].number, self.living(self._batches[0])
        self._drop()
        self.end(())
        return number, living

    def living(self, batch: Batch) -> set[int]:
        """What of a batch has not ended."""
        return set(batch.sequences) - self._ended

    def __iter__(self) -> Iterator[Batch]:
        """From the oldest on."""
        return iter(self._batches)

    def _drop(self) -> None:
        batch = self._batches.popleft()
        self._ended.difference_update(batch.sequences)
        self._naps -= len(batch.sequences)
        self._bytes -= batch.bytes
