"""Two sidecars on one Redis, of which the owner is stopped, killed, or left alone, again and again."""

from __future__ import annotations

import asyncio
import random
import re
import signal
import time
from collections.abc import Callable

from tests.crash.front_end import FrontEnd
from tests.crash.runs import Outcome, _finish
from tests.support.processes import Sidecar
from tests.support.redis_server import RedisServer

_PATIENCE_SECONDS = 30.0
_LOST = re.compile("another sidecar owns a front end now")


async def stop_owners(
    redis: RedisServer, *, faults: int, suspensions: int, rate: int, seed: int, progress: Callable[[str], None]
) -> Outcome:
    """Stop the owner until the other sidecar has taken over (two times of three), or kill it.

    Every owner that goes on after a stop has to find itself fenced; an AssertionError says when one does not.
    """
    dice = random.Random(seed)
    sidecars = [await _start(redis), await _start(redis)]
    front_end = FrontEnd([sidecar.target for sidecar in sidecars], "crash", dice)
    front_end.patience_seconds = 0.5
    front_end.rate = rate
    running = asyncio.create_task(front_end.run())
    done = welcomed = fenced = 0
    reported = time.monotonic()
    try:
        while done < faults or front_end.tally.submitted < suspensions:
            await _until_welcomed(front_end, welcomed)
            await asyncio.sleep(dice.uniform(0.0, 0.4))
            welcomed = front_end.sessions
            owner = next(sidecar for sidecar in sidecars if sidecar.target in _owner(redis))
            done += 1
            if dice.random() < 2 / 3:
                losses = len(_LOST.findall(owner.output()))
                owner.signal(signal.SIGSTOP)
                try:
                    await _until_welcomed(front_end, welcomed)
                    assert owner.target not in _owner(redis)
                    await asyncio.sleep(dice.uniform(0.0, 0.4))
                finally:
                    owner.signal(signal.SIGCONT)
                end = time.monotonic() + _PATIENCE_SECONDS
                while len(_LOST.findall(owner.output())) == losses:
                    assert time.monotonic() < end, f"a stale owner was not fenced\n{owner.tail()}"
                    await asyncio.sleep(0.01)
                fenced += 1
            else:
                owner.__exit__(None, None, None)
                sidecars[sidecars.index(owner)] = await _start(redis, owner.port)
            if time.monotonic() - reported > 2:
                reported = time.monotonic()
                progress(
                    f"{done} faults, {fenced} stale owners fenced, {front_end.tally.submitted} suspensions, "
                    f"{len(front_end.tally.applied)} continued"
                )
        return await _finish(front_end, done, running)
    finally:
        running.cancel()  # before the sidecars end: see `kill_sqlite`
        await asyncio.gather(running, return_exceptions=True)
        for sidecar in sidecars:
            sidecar.__exit__(None, None, None)


def _owner(redis: RedisServer) -> str:
    return redis.command("HGET", "sipnap:{crash}:owner", "name").decode()


async def _until_welcomed(front_end: FrontEnd, sessions: int) -> None:
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while front_end.sessions == sessions:
            await asyncio.sleep(0.005)


async def _start(redis: RedisServer, port: int | None = None) -> Sidecar:
    return await asyncio.to_thread(Sidecar, "--journal", redis.url, port=port)
