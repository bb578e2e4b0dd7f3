"""The deadlines of continues that front ends have not answered for.

Nearly all are answered for within milliseconds: only those that are not, by the next look, get a timer of their own.
"""

from __future__ import annotations

from collections.abc import Callable

from sipnap.sidecar.core.suspension import Held, Phase
from sipnap.sidecar.core.timers import Alarms

_LOOK_SECONDS = 1.0


class DeadlineWatch:
    """Who is to be given up at its deadline; itself an item of the timer heap, whose time is that of the next look."""

    __slots__ = ("_alarms", "_clock", "_unwatched", "timer_sequence")

    def __init__(self, clock: Callable[[], float], alarms: Alarms[Held | DeadlineWatch]) -> None:
        self.timer_sequence = 0
        self._clock = clock
        self._alarms = alarms
        self._unwatched: list[Held] = []

    def __contains__(self, held: Held) -> bool:
        return held in self._unwatched

    def add(self, held: Held) -> None:
        """A suspension's continue is on its way: from now on its deadline counts."""
        if held.linger_seconds < 2 * _LOOK_SECONDS:
            self._alarms.arm(held, held.deadline_seconds)
            return
        self._unwatched.append(held)
        if not self.timer_sequence:
            self._alarms.arm(self, self._clock() + _LOOK_SECONDS)

    def look(self, now_seconds: float) -> list[Held]:
        """It is time to look who has not been answered for; returns those whose deadline has passed already."""
        passed: list[Held] = []
        unwatched, self._unwatched = self._unwatched, []
        for held in unwatched:
            if held.phase is Phase.CONTINUING and not held.timer_sequence:
                if held.deadline_seconds > now_seconds:
                    self._alarms.arm(held, held.deadline_seconds)
                else:
                    passed.append(held)
        return passed
