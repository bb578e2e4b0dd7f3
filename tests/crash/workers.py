"""Two sidecars, four remote workers and a Redis, of which one after the other is killed or stopped, under load."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from sipnap.client.operations import from_value
from tests.support.processes import Process, Sidecar, free_port
from tests.support.redis_server import RedisServer
from tests.support.worker_driver import Driver, driving, until, worker_process

_INDEX = "sipnap:group:{far}:index"
_PATIENCE_SECONDS = 40.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run found."""

    faults: Counter[str]
    """What was done to whom, how often."""
    asked: int
    """Operations asked for."""
    statuses: Counter[str]
    """How the answered ones ended."""
    unanswered: int
    """Operations of which nothing was heard. Has to be 0."""
    mixed_up: int
    """Answers that were another operation's. Has to be 0."""
    repeated: int
    """Answers that the front end was given twice. Has to be 0."""
    left: int
    """Tasks that are in Redis still. Has to be 0."""

    def __str__(self) -> str:
        faults = ", ".join(f"{count} times {what}" for what, count in sorted(self.faults.items()))
        statuses = ", ".join(f"{count} {status}" for status, count in self.statuses.most_common())
        return (
            f"{faults}; {self.asked} operations: {statuses}; {self.unanswered} unanswered, {self.mixed_up} mixed up, "
            f"{self.repeated} repeated, {self.left} left in Redis"
        )

    def check(self) -> None:
        """Raise an AssertionError unless every promise was kept."""
        assert (self.unanswered, self.mixed_up, self.repeated, self.left) == (0, 0, 0, 0), str(self)
        assert set(self.statuses) <= {"OK", "refused"}, f"attempts were left: {self}"
        assert self.statuses["OK"] > self.asked / 2, f"hardly anything was done: {self}"


class _Fleet:
    def __init__(self, redis: RedisServer, dice: random.Random) -> None:
        self._redis = redis
        self._dice = dice
        self._ports = [free_port(), free_port()]
        self.targets = [f"127.0.0.1:{port}" for port in self._ports]
        self._sidecars: list[Sidecar] = []
        self._workers: list[Process] = []

    async def start(self) -> None:
        self._sidecars = [await self._sidecar(number) for number in (0, 1)]
        self._workers = [self._worker(number) for number in range(4)]

    def close(self) -> None:
        for process in (*self._workers, *self._sidecars):
            process.__exit__(None, None, None)

    async def _sidecar(self, number: int) -> Sidecar:
        flags = ("--journal", self._redis.url, "--group", "name=far,kind=remote", "--lease-seconds", "2")
        return await asyncio.to_thread(Sidecar, *flags, port=self._ports[number])

    def _worker(self, number: int) -> Process:
        order = self.targets if number % 2 else self.targets[::-1]
        return worker_process(*order, ready=False)

    async def kill_worker(self) -> None:
        number = self._dice.randrange(4)
        self._workers[number].__exit__(None, None, None)
        self._workers[number] = self._worker(number)

    async def kill_sidecar(self) -> None:
        number = self._dice.randrange(2)
        self._sidecars[number].__exit__(None, None, None)
        await asyncio.sleep(self._dice.uniform(0, 1))
        self._sidecars[number] = await self._sidecar(number)

    async def stop_sidecar(self) -> None:
        await self._stop(self._sidecars[self._dice.randrange(2)], 8)

    async def stop_worker(self) -> None:
        await self._stop(self._workers[self._dice.randrange(4)], 5)

    async def stop_redis(self) -> None:
        await self._stop(self._redis, 4)

    async def _stop(self, process: Process, most_seconds: float) -> None:
        process.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(self._dice.uniform(0.1, most_seconds))
        finally:
            process.signal(signal.SIGCONT)


async def kill_and_stop(
    redis: RedisServer, *, faults: int, suspensions: int, rate: int, seed: int, progress: Callable[[str], None]
) -> Outcome:
    """Do something to somebody, until so many faults and suspensions are reached; then wait for the answers."""
    dice = random.Random(seed)
    done: Counter[str] = Counter()
    fleet = _Fleet(redis, dice)
    what: list[Callable[[], Awaitable[None]]] = [
        fleet.kill_worker, fleet.kill_worker, fleet.kill_sidecar,
        fleet.stop_worker, fleet.stop_sidecar, fleet.stop_redis,
    ]  # fmt: skip
    dice.shuffle(what)
    try:
        await fleet.start()
        async with driving(*fleet.targets) as driver:
            asking = asyncio.create_task(_ask_forever(driver, dice, rate))
            while done.total() < faults or driver.asked < suspensions:
                await asyncio.sleep(dice.uniform(0.3, 1.5))
                fault = what[done.total() % len(what)]
                await fault()
                done[fault.__name__] += 1
                progress(f"{done.total()} faults, {driver.asked} operations, {len(driver.came)} answered")
            asking.cancel()
            return await _finish(driver, redis, done)
    finally:
        fleet.close()


async def _ask_forever(driver: Driver, dice: random.Random, rate: int) -> None:
    while True:
        driver.ask("echo", {"ms": dice.choice([1, 20, 50, 200])}, seconds=60, max_attempts=10)
        await asyncio.sleep(1 / rate)


async def _finish(driver: Driver, redis: RedisServer, done: Counter[str]) -> Outcome:
    end = time.monotonic() + _PATIENCE_SECONDS
    while len(driver.came) < driver.asked and time.monotonic() < end:
        await asyncio.sleep(0.02)
    statuses: Counter[str] = Counter()
    mixed_up = 0
    for number, (answer, *_) in driver.came.items():
        if answer.error.startswith("refused: journal_unavailable"):
            statuses["refused"] += 1  # Redis stood still
            continue
        statuses["FAILED " + answer.error_code if answer.error else "OK"] += 1
        found = {named.name: from_value(named.value) for named in answer.values}
        mixed_up += not answer.error and found.get("call_id") != b"call-%d" % number
    with suppress(TimeoutError):
        await until(lambda: _left(redis) == 0)
    unanswered = driver.asked - len(driver.came)
    return Outcome(done, driver.asked, statuses, unanswered, mixed_up, driver.repeated, _left(redis))


def _left(redis: RedisServer) -> int:
    return int(redis.command("HLEN", _INDEX).strip(b":\r\n"))
