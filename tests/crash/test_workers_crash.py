"""The short form of the crash run with remote workers at two sidecars."""

from __future__ import annotations

import pytest

from tests.crash.workers import kill_and_stop
from tests.support.redis_server import RedisServer


@pytest.mark.timeout(120)
async def test_every_operation_ends_once_whoever_is_killed_or_stopped(redis: RedisServer) -> None:
    outcome = await kill_and_stop(redis, faults=6, suspensions=1000, rate=80, seed=1, progress=print)
    print(outcome)
    outcome.check()
