"""Python's cyclic garbage collector, kept from stopping a loop that holds a million things which are no garbage.

Left alone it looks through everything that has been allocated lately each 700 allocations, and through all that there
is every now and then: a third of a busy shim's time, and pauses of 200 ms over a million naps. Nearly nothing here is
ever in a cycle, so it looks at the young only, and at all of it when there is little.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable

YOUNG_OBJECTS = 50_000
"""Allocations between two looks at the young objects: some milliseconds each."""

FEW_THINGS = 20_000
"""So many things held, and the collector may look through all: some milliseconds, too."""

_NEVER = 1_000_000_000
_SECONDS = 30.0


def restrain() -> None:
    """Leave what has been allocated so far alone for good, and look at the young only from now on."""
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, _NEVER, _NEVER)


async def collect_when_idle(held: Callable[[], int]) -> None:
    """Twice a minute look through everything, unless that would take long. `held`: how many things there are now."""
    while True:
        await asyncio.sleep(_SECONDS)
        if held() < FEW_THINGS:
            gc.collect()
