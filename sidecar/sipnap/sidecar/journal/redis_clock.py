"""Redis's time of day, as seen from this process's monotonic clock."""

from __future__ import annotations

import time

_OLDEST_NS = 10_000_000_000


class RedisClock:
    """What to add to the monotonic clock to get Redis's time of day: between a lowest and a highest value.

    Redis looked at its clock somewhere between our asking and its answer. Who writes a due time adds the highest value
    possible, who reads one takes the lowest away: no nap gets shorter on its way from one sidecar to another, and none
    is late by more than the two round trips.
    """

    def __init__(self) -> None:
        self.lowest_offset_ns = 0
        """Nanoseconds."""
        self.highest_offset_ns = 0
        """Nanoseconds."""
        self._observed_ns = -_OLDEST_NS

    def now_ns(self) -> int:
        """About the present time there, nanoseconds since 1970."""
        return time.monotonic_ns() + self.lowest_offset_ns

    def observe(self, sent_ns: int, seconds: bytes | int, microseconds: bytes | int, received_ns: int) -> None:
        """Learn from one answer; a slow one counts only when there was no better for 10 s. Monotonic nanoseconds."""
        redis_ns = int(seconds) * 1_000_000_000 + int(microseconds) * 1000
        width_ns = self.highest_offset_ns - self.lowest_offset_ns
        if received_ns - sent_ns <= width_ns or received_ns - self._observed_ns >= _OLDEST_NS:
            self.lowest_offset_ns = redis_ns - received_ns
            self.highest_offset_ns = redis_ns + 1000 - sent_ns  # its clock is told in whole microseconds
            self._observed_ns = received_ns
