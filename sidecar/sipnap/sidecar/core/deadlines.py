"""The deadlines of continues that front ends have not answered for.

Nearly all are answered for within milliseconds: only those that are not, by the next look, get a timer of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sipnap.sidecar.core.front_ends import FrontEnd
from sipnap.sidecar.core.suspension import Held
from sipnap.sidecar.core.timers import Alarms

_LOOK_SECONDS = 1.0
_SHORT_SECONDS = 2 * _LOOK_SECONDS


class DeadlineWatch:
    """Who is to be given up at its deadline; itself an item of the timer heap, whose time is that of the next look."""

    __slots__ = ("_alarms", "_front_ends", "timer_sequence")

    def __init__(self, front_ends: Mapping[str, FrontEnd], alarms: Alarms[Held | DeadlineWatch]) -> None:
        self.timer_sequence = 0
        self._front_ends = front_ends
        self._alarms = alarms

    def add(self, continuing: Iterable[Held], now_seconds: float) -> None:
        """Suspensions are in `FrontEnd.continuing` since now: from now on their deadlines count."""
        for held in [held for held in continuing if held.linger_seconds < _SHORT_SECONDS]:
            self._alarms.arm(held, held.deadline_seconds)
        if not self.timer_sequence:
            self._alarms.arm(self, now_seconds + _LOOK_SECONDS)

    def look(self, now_seconds: float) -> list[Held]:
        """It is time to look who has not been answered for; returns those whose deadline has passed already."""
        passed: list[Held] = []
        for front_end in self._front_ends.values():
            for held in reversed(front_end.continuing.values()):
                if not held.timer_sequence:
                    if held.deadline_seconds > now_seconds:
                        self._alarms.arm(held, held.deadline_seconds)
                    else:
                        passed.append(held)
                elif held.linger_seconds >= _SHORT_SECONDS:
                    break  # since an earlier look, and so are all before it
        return passed
