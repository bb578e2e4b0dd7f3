"""Pacing of a stream's writer: at once when idle, gathered when busy, later still for what nobody waits for.

A gRPC message costs the same whatever it holds (about 100 µs in Python), an entry in it next to nothing. So the first
entry after a pause leaves immediately, and those that follow within `interval_seconds` leave together.
"""

from __future__ import annotations

import asyncio

GATHER_SECONDS = 0.002
"""Shortest time between two messages of one direction of one stream."""

PATIENT_SECONDS = 0.08
"""How long what nobody waits for (acknowledgements) may wait for a message that leaves anyway."""


class Gatherer:
    """Wakes the one writer of a stream, not more often than each `interval_seconds`. Belongs to one event loop."""

    __slots__ = ("_event", "_hurry", "_interval_seconds", "_last_seconds", "_loop", "_patience")

    def __init__(self, interval_seconds: float = GATHER_SECONDS) -> None:
        self._interval_seconds = interval_seconds
        self._last_seconds = float("-inf")
        self._event = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._patience: asyncio.TimerHandle | None = None
        self._hurry = asyncio.Event()

    def wake(self) -> None:
        """There is something to write."""
        self._event.set()

    def hurry(self) -> None:
        """There is something to write that must not wait longer than `GATHER_SECONDS`, whatever the interval."""
        self._event.set()
        self._hurry.set()

    def wake_later(self) -> None:
        """There is something to write that can wait for other things to write, for `PATIENT_SECONDS`."""
        if self._patience is None:
            self._patience = self._loop.call_later(PATIENT_SECONDS, self._event.set)

    async def wait(self) -> None:
        """Return when there is something to write and the pause since the last message is long enough."""
        await self._event.wait()
        pause_seconds = self._last_seconds + self._interval_seconds - self._loop.time()
        if pause_seconds > 0:
            await self._wait_out(pause_seconds)
        self._event.clear()
        self._hurry.clear()
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        self._last_seconds = self._loop.time()

    async def _wait_out(self, pause_seconds: float) -> None:
        timer = self._loop.call_later(pause_seconds, self._hurry.set)
        try:
            await self._hurry.wait()
            pause_seconds = self._last_seconds + GATHER_SECONDS - self._loop.time()
            if pause_seconds > 0:
                await asyncio.sleep(pause_seconds)
        finally:
            timer.cancel()
