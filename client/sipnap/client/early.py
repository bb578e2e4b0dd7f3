"""Continues that a sidecar has handed out ahead of their time. No I/O; clock and timer are handed in.

Rules kept here, and nowhere else:

- none is handed on before its time; those whose time has come go together, in order of their time;
- after that the next ones wait at least `RELEASE_SECONDS`, so a crowd costs few turns of the loop;
- what was answered for while it waited (cancelled) is not handed on.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Protocol

from sipnap.client.keys import Key
from sipnap.v1 import suspension_pb2 as pb

RELEASE_SECONDS = 0.001
"""Continues whose time has come leave together, so much late at most."""


class Timer(Protocol):
    """What `call_at` returns (`asyncio.TimerHandle` is one)."""

    def cancel(self) -> None:
        """Do not call any more."""


class EarlyContinues:
    """Those that wait for their time, on any clock in seconds."""

    __slots__ = ("_answer_of", "_call_at", "_clock", "_count", "_on_answered", "_on_due", "_timer", "_waiting")

    def __init__(
        self,
        clock: Callable[[], float],
        call_at: Callable[[float, Callable[[], None]], Timer],
        *,
        answer_of: Callable[[Key], pb.ContinueOutcome | None],
        on_due: Callable[[Sequence[tuple[Key, pb.Continue]]], None],
        on_answered: Callable[[Key, pb.ContinueOutcome], None],
    ) -> None:
        """Begin empty.

        Args:
            clock: Seconds.
            call_at: Has a function called when the clock has passed a time (`asyncio.loop.call_at`).
            answer_of: What was answered for a suspension already; None: nothing.
            on_due: Called with those whose time has come.
            on_answered: Called with each whose time has come, but which was answered for while it waited.
        """
        self._clock = clock
        self._call_at = call_at
        self._answer_of = answer_of
        self._on_due = on_due
        self._on_answered = on_answered
        self._waiting: list[tuple[float, int, Key, pb.Continue]] = []  # a heap, by their time
        self._count = 0
        self._timer: Timer | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, due_seconds: float, key: Key, order: pb.Continue) -> None:
        """Keep one until that time; `release` follows, when all that came with it are here."""
        self._count += 1
        heapq.heappush(self._waiting, (due_seconds, self._count, key, order))

    def release(self) -> None:
        """Hand on what is due now, and wait for the next."""
        waiting, answer_of = self._waiting, self._answer_of
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._clock()
        due: list[tuple[Key, pb.Continue]] = []
        while waiting and waiting[0][0] <= now:
            _, _, key, order = heapq.heappop(waiting)
            if (outcome := answer_of(key)) is None:
                due.append((key, order))
            else:
                self._on_answered(key, outcome)
        if waiting:
            self._timer = self._call_at(max(waiting[0][0], now + RELEASE_SECONDS), self.release)
        if due:
            self._on_due(due)

    def clear(self) -> None:
        """Forget everything: the transactions are gone."""
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
