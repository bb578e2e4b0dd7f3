"""The short form of the crash run with two sidecars on one Redis."""

from __future__ import annotations

from tests.crash.shared import stop_owners
from tests.support.redis_server import RedisServer


async def test_nothing_acknowledged_is_lost_between_two_sidecars(redis: RedisServer) -> None:
    outcome = await stop_owners(redis, faults=6, suspensions=3000, rate=600, seed=1, progress=print)
    print(outcome)
    outcome.check()
