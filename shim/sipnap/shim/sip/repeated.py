"""Log lines for what may happen once or a thousand times a second."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

QUIET_SECONDS = 10.0
"""After a line was written, the next one of its kind comes this much later at the earliest."""

_MOST_KINDS = 1_000


class RepeatedLog:
    """Writes the first event of a kind in full, and then at most one line in `QUIET_SECONDS`, with their count."""

    def __init__(self, log: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._kinds: dict[object, tuple[float, int]] = {}

    def write(
        self, kind: object, level: int, message: str, *arguments: object, error: BaseException | None = None
    ) -> None:
        """Log `message` unless its kind was logged a moment ago. `error` gives the first line its traceback."""
        now = self._clock()
        seen = self._kinds.get(kind)
        if seen is None:
            if len(self._kinds) >= _MOST_KINDS:
                self._kinds.clear()
            self._kinds[kind] = (now, 0)
            self._log.log(level, message, *arguments, exc_info=error)
            return
        written_seconds, suppressed = seen
        if now - written_seconds < QUIET_SECONDS:
            self._kinds[kind] = (written_seconds, suppressed + 1)
        else:
            self._kinds[kind] = (now, 0)
            self._log.log(level, message + " repeated=%d", *arguments, suppressed)

    def write_raised(self, route: str, error: BaseException) -> None:
        """Log what a route raised: one traceback for each place that raises, what follows is counted."""
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        kind = (route, type(error), place.tb_lineno if place is not None else 0)
        hint = "; to leave a route use return" if isinstance(error, SystemExit) else ""
        self.write(
            kind, logging.ERROR, "route raised an exception%s route=%s error=%r", hint, route, error, error=error
        )
