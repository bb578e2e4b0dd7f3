"""The short form of the crash runs."""

from __future__ import annotations

from pathlib import Path

from tests.crash.runs import kill_sqlite


async def test_nothing_acknowledged_is_lost_to_the_kill(tmp_path: Path) -> None:
    outcome = await kill_sqlite(tmp_path, kills=8, suspensions=3000, rate=800, seed=1, progress=print)
    print(outcome)
    outcome.check()
