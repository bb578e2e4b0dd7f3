"""How long things took: counts in buckets, as Prometheus has them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection
from dataclasses import dataclass, field


@dataclass(slots=True)
class Histogram:
    """Durations in seconds."""

    bounds_seconds: tuple[float, ...] = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
    """Upper bounds of the buckets; one more bucket holds the rest."""
    counts: list[int] = field(default_factory=lambda: [0] * 15)
    """How many fell into each bucket."""
    sum_seconds: float = 0.0
    """All of them together."""

    def observe_all(self, durations: Collection[float]) -> None:
        """Count several; what is not above 0 counts as 0."""
        above = [seconds for seconds in durations if seconds > 0.0]
        self.observe(0.0, len(durations) - len(above))
        for seconds in above:
            self.observe(seconds)

    def observe(self, seconds: float, count: int = 1) -> None:
        """Count one, or several that took the same time."""
        self.counts[bisect_left(self.bounds_seconds, seconds)] += count
        self.sum_seconds += seconds * count
