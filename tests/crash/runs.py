"""The runs: one sidecar with SQLite that is killed, and two on one Redis of which the owner is stopped or killed."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.crash.front_end import FrontEnd, Tally
from tests.support.processes import Sidecar, free_port

_PATIENCE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run found."""

    faults: int
    """How often a sidecar was killed or stopped."""
    tally: Tally
    """What the front end has seen."""
    lost: int
    """Acknowledged suspensions that never came back. Has to be 0."""

    def __str__(self) -> str:
        tally = self.tally
        late = sorted(tally.late_seconds) or [0.0]
        return (
            f"{self.faults} faults, {tally.submitted} submitted, {tally.acknowledged_count} acknowledged, "
            f"{len(tally.applied)} continued, {tally.repeated} continues repeated, {self.lost} lost, "
            f"{tally.early} early, "
            f"{tally.unknown} unknown, {tally.refused} refused; late by median {late[len(late) // 2] * 1e3:.1f} ms, "
            f"p99 {late[len(late) * 99 // 100] * 1e3:.0f} ms, at most {late[-1]:.1f} s"
        )

    def check(self) -> None:
        """Raise an AssertionError unless every promise was kept."""
        assert self.lost == 0, f"acknowledged suspensions were lost: {self}"
        assert self.tally.early == 0, f"continues came early: {self}"
        assert self.tally.unknown == 0, f"continues of what nobody submitted: {self}"
        assert self.tally.acknowledged_count > 0, f"nothing was acknowledged: {self}"


async def kill_sqlite(
    directory: Path, *, kills: int, suspensions: int, rate: int, seed: int, progress: Callable[[str], None]
) -> Outcome:
    """Kill a sidecar with the SQLite journal at random instants, each time start it again on its journal."""
    dice = random.Random(seed)
    port = free_port()
    front_end = FrontEnd([f"127.0.0.1:{port}"], "crash", dice)
    running = asyncio.create_task(front_end.run())
    front_end.rate = rate
    sidecar = await _start(directory, port)
    done = welcomed = 0
    reported = time.monotonic()
    try:
        while done < kills or front_end.tally.submitted < suspensions:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                while front_end.sessions == welcomed:
                    await asyncio.sleep(0.005)
            await asyncio.sleep(dice.uniform(0.0, 0.6))
            sidecar.__exit__(None, None, None)
            done += 1
            welcomed = front_end.sessions
            sidecar = await _start(directory, port)
            if time.monotonic() - reported > 2:
                reported = time.monotonic()
                progress(
                    f"{done} kills, {front_end.tally.submitted} suspensions, {len(front_end.tally.applied)} continued"
                )
        return await _finish(front_end, done, running)
    finally:
        # Before the sidecar ends: its end can hide a cancel from the front end, which then goes on for ever.
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        sidecar.__exit__(None, None, None)


async def _start(directory: Path, port: int) -> Sidecar:
    return await asyncio.to_thread(Sidecar, "--journal", f"sqlite:{directory}/journal.sqlite3", port=port)


async def _finish(front_end: FrontEnd, faults: int, running: asyncio.Task[None]) -> Outcome:
    """Submit no more, and wait for what was acknowledged."""
    front_end.rate = 0
    end = time.monotonic() + _PATIENCE_SECONDS
    while front_end.tally.acknowledged and time.monotonic() < end:
        if running.done():
            running.result()  # it never returns: this raises what ended the front end
        await asyncio.sleep(0.02)
    return Outcome(faults, front_end.tally, len(front_end.tally.acknowledged))
