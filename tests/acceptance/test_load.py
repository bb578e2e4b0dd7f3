"""Under load, every call is answered from its resume route, and none before its time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.sipp import Callers
from tests.acceptance.stack import Stack

RATE, SECONDS = 300, 10


@pytest.mark.timeout(90)
def test_every_call_is_answered_after_its_nap(stack: Stack, tmp_path: Path) -> None:
    before = stack.counters()
    with Callers(
        tmp_path / "sipp", stack.proxy.address, scenario="resumed.xml", rate=RATE, calls=RATE * SECONDS
    ) as sipp:
        calls = sipp.result(seconds=60)
        assert (calls.successful, calls.failed) == (RATE * SECONDS, 0), f"{calls}\n{sipp.errors()}"
    print(f"\n{RATE} calls/s for {SECONDS} s, naps of 100 to 3000 ms: {calls}")
    assert len(calls.late_ms) == RATE * SECONDS
    assert min(calls.late_ms) >= 0, f"some were early: {calls}"

    counters = stack.counters()
    assert counters.accepted - before.accepted == RATE * SECONDS
    assert counters.applied - before.applied == RATE * SECONDS, f"not every NAP was answered for: {counters}"
    for name in ("refused", "gone", "rejected", "lost"):
        assert getattr(counters, name) == getattr(before, name), name
