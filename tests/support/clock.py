"""A clock that tests move by hand, so that tests about time take none."""

from __future__ import annotations


class ManualClock:
    """Monotonic seconds; call it to read it."""

    def __init__(self, now_seconds: float = 1000.0) -> None:
        self.now_seconds = now_seconds

    def __call__(self) -> float:
        return self.now_seconds

    def advance(self, seconds: float) -> None:
        self.now_seconds += seconds
