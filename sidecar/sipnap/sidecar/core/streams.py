"""Streams that number their naps, and take those numbers ahead of their time: in rounds, many naps to one timer."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from sipnap.sidecar.core.timers import Alarms

if TYPE_CHECKING:
    from sipnap.sidecar.core.front_ends import FrontEnd
    from sipnap.sidecar.core.suspension import Held


class Round(dict[int, "Held"]):
    """Naps of one stream, by number, that it is told of at the same time; an item of the timer heap."""

    __slots__ = ("place", "stream", "timer_sequence")

    def __init__(self, stream: Stream, place: float) -> None:
        super().__init__()
        self.timer_sequence = 0
        self.stream = stream
        self.place = place
        """Which round it is of all, also of those without naps."""


class Stream:
    """One stream of a front end. Its own naps, while it is the present one, are those whose `Held.stream` it is."""

    __slots__ = ("_alarms", "_pace_seconds", "_rounds", "ahead_seconds", "front_end")

    def __init__(self, front_end: FrontEnd, ahead_seconds: float, alarms: Alarms[Round]) -> None:
        """Begin without naps.

        Args:
            front_end: Whose stream it is.
            ahead_seconds: How long before its time it is told of a nap, at most; at least half of that.
            alarms: Sets timers; `take` is called with a round whose timer has run out.
        """
        self.front_end = front_end
        self.ahead_seconds = ahead_seconds
        self._alarms = alarms
        self._pace_seconds = ahead_seconds / 2
        self._rounds: dict[float, Round] = {}

    def add(self, held: Held) -> None:
        """A nap waits for its time."""
        place = (held.due_seconds - self.ahead_seconds) // self._pace_seconds + 1.0
        round_ = self._rounds.get(place)
        if round_ is None:
            round_ = self._rounds[place] = Round(self, place)
            self._alarms.arm(round_, place * self._pace_seconds)
        round_[held.sequence] = held

    def remove(self, held: Held) -> None:
        """A nap does not wait any more, if it did."""
        place = (held.due_seconds - self.ahead_seconds) // self._pace_seconds + 1.0
        round_ = self._rounds.get(place)
        if round_ is not None and round_.pop(held.sequence, None) is not None and not round_:
            self._alarms.disarm(round_)
            del self._rounds[place]

    def earliest_seconds(self, round_: Round) -> float:
        """No nap of that round is due before."""
        return (round_.place + 1.0) * self._pace_seconds

    def take(self, round_: Round, most: int) -> dict[int, Held]:
        """A round's timer has run out: its naps, at most so many; the rest have their turn at the next look."""
        if len(round_) <= most:
            del self._rounds[round_.place]
            return round_
        self._alarms.arm(round_, round_.place * self._pace_seconds)
        taken = dict(itertools.islice(round_.items(), most))
        for number in taken:
            del round_[number]
        return taken
