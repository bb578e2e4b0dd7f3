"""How many calls/s a way takes before more than a few fail: rates raised, then halved in, way by way in turn."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench import load

_FIRST_FACTOR = 1.25
_LOWEST_RATE = 100


def configure(parser: argparse.ArgumentParser, *, start: int) -> None:
    """Declare the flags."""
    parser.add_argument(
        "--find-capacity", action="store_true",
        help=f"raise the rate of each way until more than {load.MOST_BAD * 100:g} %% of the calls fail or are sent "
        "again, or fewer are placed than meant",
    )  # fmt: skip
    parser.add_argument("--start", type=int, default=start, help="where --find-capacity starts, calls/s")
    parser.add_argument("--resolution", type=float, default=0.05, help="how exactly it finds it, as a share")


@dataclass(slots=True)
class Search:
    """Where one way's capacity lies, in one turn."""

    name: str
    """Of the way."""
    rate: int
    """To be tried next."""
    factor: float = _FIRST_FACTOR
    """By which it rises, or falls, while there is only one bound."""
    clean: int = 0
    """Highest rate that was clean; 0: none yet."""
    dirty: int = 0
    """Lowest rate that was not; 0: none yet."""
    found: list[int] = field(default_factory=list)
    """One capacity for each turn that has ended."""

    def tried(self, is_clean: bool, resolution: float) -> bool:
        """Take in how the present rate went; whether there is another one to try."""
        if is_clean:
            self.clean = max(self.clean, self.rate)
        else:
            self.dirty = min(self.dirty or self.rate, self.rate)
        before = self.rate
        if self.clean and self.dirty:
            if self.dirty <= self.clean * (1 + resolution) + 50:
                return False
            self.rate = _rounded((self.clean + self.dirty) / 2)
        elif self.clean:
            self.rate = _rounded(self.clean * self.factor)
        else:
            self.rate = _rounded(self.dirty / self.factor)
        return self.rate != before and self.rate >= _LOWEST_RATE

    def end(self, resolution: float) -> None:
        """A turn is over; the next starts where this one ended."""
        self.found.append(self.clean)
        self.rate = max(self.clean, _LOWEST_RATE)
        self.factor = 1 + resolution
        self.clean = self.dirty = 0


def find(
    names: Sequence[str],
    arguments: argparse.Namespace,
    measure: Callable[[str, int], dict[str, Any]],
    raw: list[dict[str, Any]],
) -> list[dict[str, Any]]:
    """The capacity of each way: the median over ``--repeats`` searches.

    Args:
        names: Of the ways.
        arguments: The flags of `configure`, and ``repeats``.
        measure: One step of a way at a rate.
        raw: Each step is added to it.
    """
    searches = [Search(name, arguments.start) for name in names]
    for turn in range(arguments.repeats):
        going = list(searches)
        while going:
            for search in list(going):
                found = measure(search.name, search.rate)
                raw.append({"what": "search", "turn": turn, **found})
                if not search.tried(load.is_clean(found), arguments.resolution):
                    search.end(arguments.resolution)
                    going.remove(search)
    return [
        {"way": search.name, "capacity": int(statistics.median(search.found)), "found": search.found}
        for search in searches
    ]


def _rounded(rate: float) -> int:
    return round(rate / 50) * 50
