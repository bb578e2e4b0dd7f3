"""Naps that a sidecar has said are over, ahead of their time. No I/O; clock and timer are handed in.

Rules kept here, and nowhere else:

- none is handed on before its time; those whose time has come go together, in order of their time;
- after that the next ones wait for `next_turn`, so a crowd costs few turns of the loop;
- what was answered for while it waited (cancelled) is not handed on.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Protocol

from sipnap.client.outstanding import Suspended

_TURNS_PER_SECOND = 333
TURN_SECONDS = 1 / _TURNS_PER_SECOND
"""In a crowd, those whose time has come leave together, so much late at most."""

_MOST_BATCHES = 32

_due_seconds = attrgetter("due_seconds")


def next_turn(seconds: float) -> float:
    """The next whole multiple of `TURN_SECONDS` on a clock that shows `seconds`.

    What else has to be done each few milliseconds keeps the same time, so that the loop wakes up once for all of it.
    """
    # A loop may call a little before the time, and a float is not exact: that is the turn already.
    return (math.floor(seconds * _TURNS_PER_SECOND + 0.001) + 1) / _TURNS_PER_SECOND


class Timer(Protocol):
    """What `call_at` returns (`asyncio.TimerHandle` is one)."""

    def cancel(self) -> None:
        """Do not call any more."""


class EarlyContinues:
    """Those that wait for their time, on any clock in seconds."""

    __slots__ = ("_batches", "_call_at", "_clock", "_next_turn_seconds", "_on_due", "_on_ended", "_timer")

    def __init__(
        self,
        clock: Callable[[], float],
        call_at: Callable[[float, Callable[[], None]], Timer],
        *,
        on_due: Callable[[Sequence[Suspended]], None],
        on_ended: Callable[[Sequence[Suspended]], None],
    ) -> None:
        """Begin empty.

        Args:
            clock: Seconds.
            call_at: Has a function called when the clock has passed a time (`asyncio.loop.call_at`).
            on_due: Called with those whose time has come.
            on_ended: Called with those whose time has come, but which were answered for while they waited.
        """
        self._clock = clock
        self._call_at = call_at
        self._on_due = on_due
        self._on_ended = on_ended
        # As they came, each in order of time. A heap of single ones would cost several times as much.
        self._batches: list[list[Suspended]] = []
        self._next_turn_seconds = float("-inf")
        self._timer: Timer | None = None

    def __len__(self) -> int:
        return sum(map(len, self._batches))

    def add(self, batch: Sequence[Suspended]) -> None:
        """Keep these until their time; `release` follows."""
        batches = self._batches
        batches.append(sorted(batch, key=_due_seconds))
        if len(batches) > _MOST_BATCHES:
            self._batches = [sorted((suspended for batch in batches for suspended in batch), key=_due_seconds)]

    def release(self) -> None:
        """Hand on what is due now, if it is time for that, and wait for the next."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._clock()
        over: list[Suspended] = []
        if now >= self._next_turn_seconds:
            for batch in self._batches:
                count = bisect_right(batch, now, key=_due_seconds)
                over += batch[:count]
                del batch[:count]
            self._batches = [batch for batch in self._batches if batch]
        if over:
            over.sort(key=_due_seconds)
            self._next_turn_seconds = next_turn(now)
        if self._batches:
            next_seconds = min(batch[0].due_seconds for batch in self._batches)
            self._timer = self._call_at(max(next_seconds, self._next_turn_seconds), self.release)
        due = [suspended for suspended in over if suspended.outcome is None]
        if len(due) < len(over):
            self._on_ended([suspended for suspended in over if suspended.outcome is not None])
        if due:
            self._on_due(due)

    def clear(self) -> None:
        """Forget everything: the transactions are gone."""
        self._batches.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
