"""What a front end has answered lately, for a sidecar that asks again. No I/O; the time is handed in."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from sipnap.client.keys import Key
from sipnap.v1 import suspension_pb2 as pb

ANSWER_MEMORY_SECONDS = 20.0
"""An answer is remembered for so long while a sidecar is heard; while none is, until there is one again."""

_ROTATE_SECONDS = 1.0  # so little is let go at a time that nobody notices


class _Generation:
    """Answers of about the same time."""

    __slots__ = ("applied", "closed_seconds", "outcomes")

    def __init__(self) -> None:
        # Nearly all are of this kind, and nearly none is asked for: they become entries of `outcomes` when one is.
        self.applied: list[Key] = []
        self.outcomes: dict[Key, pb.ContinueOutcome] = {}
        self.closed_seconds = 0.0

    def outcome_of(self, key: Key) -> pb.ContinueOutcome | None:
        if self.applied:
            for applied in self.applied:
                self.outcomes.setdefault(applied, pb.CONTINUE_OUTCOME_APPLIED)
            self.applied.clear()
        return self.outcomes.get(key)


class Answers:
    """The answers of one front end, by key."""

    __slots__ = ("_latest", "_older", "_rotated_seconds")

    def __init__(self, now_seconds: float) -> None:
        """`now_seconds`: on the clock that `rotate` is told."""
        self._latest = _Generation()
        self._older: deque[_Generation] = deque()  # the oldest is the first
        self._rotated_seconds = now_seconds

    def add(self, key: Key, outcome: pb.ContinueOutcome) -> None:
        """Remember an answer; of several for one key the last counts."""
        latest = self._latest
        if outcome == pb.CONTINUE_OUTCOME_APPLIED:
            latest.outcomes.pop(key, None)
            latest.applied.append(key)
        else:
            latest.outcomes[key] = outcome

    def add_applied(self, keys: Iterable[Key]) -> None:
        """Remember that these were resumed, for which nothing else was answered before."""
        self._latest.applied.extend(keys)

    def outcome_of(self, key: Key) -> pb.ContinueOutcome | None:
        """The answer given lately, if any."""
        outcome = self._latest.outcome_of(key)
        if outcome is None:
            for generation in reversed(self._older):
                if (outcome := generation.outcome_of(key)) is not None:
                    break
        return outcome

    def rotate(self, now_seconds: float, *, has_sidecar: bool) -> None:
        """Forget old ones, if there is a sidecar that is heard: time without one does not count."""
        older = self._older
        if not has_sidecar:
            for generation in older:
                generation.closed_seconds = now_seconds
            self._rotated_seconds = now_seconds
            return
        if now_seconds - self._rotated_seconds >= _ROTATE_SECONDS:
            self._latest.closed_seconds = self._rotated_seconds = now_seconds
            older.append(self._latest)
            self._latest = _Generation()
        while older and now_seconds - older[0].closed_seconds >= ANSWER_MEMORY_SECONDS:
            older.popleft()
