"""Tasks in Redis Streams: each is there once, is had by one sidecar at a time, and outlives any of them."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar

import pytest

from sipnap.sidecar.journal.base import JournalError
from sipnap.sidecar.journal.redis import RedisJournal
from sipnap.sidecar.journal.redis_address import RedisAddress
from sipnap.sidecar.journal.redis_tasks import RedisTasks
from sipnap.sidecar.journal.tasks import Finish, HeldTask, Taken, Task
from tests.support.processes import free_port
from tests.support.redis_server import RedisServer

BASE = "sipnap:group:{lookups}"
_Answer = TypeVar("_Answer")


@asynccontextmanager
async def sidecar(redis: RedisServer, name: str, lease_seconds: float = 5.0) -> AsyncIterator[RedisTasks]:
    """One sidecar's end of the queue."""
    journal = RedisJournal(RedisAddress.parse(redis.url))
    journal.introduce(name, f"{name}:5600")
    try:
        assert [batch async for batch in journal.recover()] == []
        yield RedisTasks(journal, lease_seconds=lease_seconds)
    finally:
        await journal.close()


def task(number: int, operation: str = "http", seconds: float = 30.0, **changes: int) -> Task:
    numbers = {"attempt": 1, "max_attempts": 3} | changes
    name = f"kamailio/7/{number}/1/1#0"
    return Task(name, operation, time.monotonic() + seconds, numbers["attempt"], numbers["max_attempts"], b"\0\xff")


async def take(queue: RedisTasks, most: int = 100, *operations: str) -> list[HeldTask]:
    return (await queue.take("lookups", operations or ("http",), most)).tasks


async def take_one(queue: RedisTasks) -> HeldTask:
    (held,) = await take(queue)
    return held


async def until(answer: Callable[[], Awaitable[_Answer]], seconds: float = 5.0) -> _Answer:
    """What it answers, as soon as that is something."""
    async with asyncio.timeout(seconds):
        while not (found := await answer()):
            await asyncio.sleep(0.01)
        return found


def names(held: list[HeldTask]) -> list[int]:
    return [int(one.task.name.split("/")[2]) for one in held]


def left(redis: RedisServer, *operations: str) -> set[bytes]:
    """What Redis keeps of the group: sizes of the index, of the ends and of the streams."""
    return {
        redis.command("HLEN", f"{BASE}:index"),
        redis.command("ZCARD", f"{BASE}:ends"),
        *(redis.command("XLEN", f"{BASE}:tasks:{operation}") for operation in operations or ("http",)),
    }


NOTHING = {b":0\r\n"}


async def test_each_task_goes_to_one_sidecar_in_order(redis: RedisServer) -> None:
    async with sidecar(redis, "a") as a, sidecar(redis, "b") as b:
        put = [task(number) for number in range(10)]
        assert await a.put("lookups", put) == 10
        first, second, third = await take(a, 4), await take(b, 4), await take(a, 4)
        assert [names(some) for some in (first, second, third)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
        assert await take(b) == []
        had = second[0]
        assert (had.task.operation, had.task.body, had.task.front_end_id) == ("http", b"\0\xff", "kamailio")
        assert (had.attempt, had.task.max_attempts) == (1, 3)
        assert had.task.end_seconds == pytest.approx(put[4].end_seconds, abs=0.05)
        assert had.taken == Taken("kamailio/7/4/1/1#0", "http", had.taken.entry, "b", 1)


async def test_what_is_put_twice_is_there_once(redis: RedisServer) -> None:
    """By whoever owns the front end: before it is taken, while it runs, not after it has ended."""
    async with sidecar(redis, "old") as old, sidecar(redis, "new") as new:
        assert await old.put("lookups", [task(1), task(1)]) == 1
        assert await new.put("lookups", [task(1), task(2)]) == 2
        held, other = await take(old)
        assert [held.owner, other.owner] == ["new", "new"]
        assert await new.put("lookups", [task(1)]) == 2
        assert await take(new) == []
        assert await new.finish("lookups", [held.taken, other.taken], is_sure=True) == [Finish.VALID] * 2
        assert left(redis) == NOTHING
        assert await new.put("lookups", [task(1, attempt=2)]) == 1
        assert (await take_one(new)).attempt == 2


async def test_only_what_its_workers_can_run_and_nothing_else(redis: RedisServer) -> None:
    async with sidecar(redis, "a") as a:
        await a.put("lookups", [task(1, "http"), task(2, "enum"), task(3, "http")])
        await a.put("others", [task(4, "enum")])
        assert names(await take(a, 10, "enum", "unheard-of")) == [2]
        assert names(await take(a, 1, "enum", "http")) == [1]
        assert names(await take(a, 10, "enum", "http")) == [3]
        for group, total in (("lookups", 3), ("others", 1), ("none", 0)):
            assert (await a.take(group, ["http"], 1)).total == total == await a.count(group)


async def test_large_batches_are_cut(redis: RedisServer) -> None:
    async with sidecar(redis, "a") as a:
        some = [task(number) for number in range(1001)]
        assert await a.put("lookups", some[:-1]) == 1000
        held: list[HeldTask] = []
        while taken := await take(a, 10_000):
            held += taken
        assert names(held) == list(range(1000))
        assert await a.keep("lookups", [one.taken for one in held]) == []
        assert await a.missing("lookups", [one.name for one in some]) == [some[-1].name]
        assert await a.finish("lookups", [one.taken for one in held], is_sure=True) == [Finish.VALID] * 1000
        assert left(redis) == NOTHING


# Giving back


async def test_what_was_given_back_comes_first_and_costs_what_it_should(redis: RedisServer) -> None:
    async with sidecar(redis, "a") as a, sidecar(redis, "b") as b:
        await a.put("lookups", [task(number) for number in range(4)])
        untried, tried = await take(a, 2)
        await a.give_back("lookups", [untried.taken], tried=False)
        await a.give_back("lookups", [tried.taken], tried=True)
        again = await take(b, 3)
        assert [(names([one])[0], one.attempt) for one in again] == [(0, 1), (1, 2), (2, 1)]
        await a.give_back("lookups", [untried.taken, tried.taken], tried=True)
        assert names(await take(a)) == [3], "it was not a's to give any more"


async def test_attempts_add_up_to_the_bound(redis: RedisServer) -> None:
    async with sidecar(redis, "a") as a:
        await a.put("lookups", [task(1, attempt=2)])
        for attempt in (2, 3, 4):
            held = await take_one(a)
            assert (held.attempt, held.attempt > held.task.max_attempts) == (attempt, attempt == 4)
            await a.give_back("lookups", [held.taken], tried=True)


async def test_what_was_taken_unknowingly_is_given_back(redis: RedisServer) -> None:
    async with sidecar(redis, "a") as a, sidecar(redis, "b") as b:
        await a.put("lookups", [task(number) for number in range(250)] + [task(1, "enum")])
        known, *unknown = await take(a, 200) + await take(a, 200)
        others = await take(b, 10, "enum")
        await a.recall("lookups", ["http", "enum", "unheard-of"], [known.taken])
        again = await take(b, 200) + await take(b, 200)
        assert names(again) == names(unknown)
        assert {one.attempt for one in again} == {1}
        assert await a.keep("lookups", [known.taken]) == []
        assert await b.keep("lookups", [one.taken for one in others]) == []


# Sidecars that die


async def test_tasks_of_a_silent_sidecar_go_to_others_and_its_results_are_stale(redis: RedisServer) -> None:
    async with sidecar(redis, "dead", 0.2) as dead, sidecar(redis, "b", 0.2) as b:
        await dead.put("lookups", [task(1), task(2)])
        lost, kept = await take(dead)

        async def claimed() -> list[HeldTask]:
            assert await dead.keep("lookups", [kept.taken]) == []
            await b.claim_lost("lookups", ["http"])
            return await take(b)

        (again,) = await until(claimed)
        assert (again.task.name, again.attempt, again.taken.holder) == (lost.task.name, 2, "b")
        assert await dead.keep("lookups", [lost.taken, kept.taken]) == [lost.taken]
        assert await b.finish("lookups", [lost.taken], is_sure=True) == [Finish.STALE]
        assert await b.finish("lookups", [again.taken], is_sure=True) == [Finish.VALID]
        assert await b.finish("lookups", [again.taken, lost.taken], is_sure=True) == [Finish.UNKNOWN] * 2


async def test_what_was_taken_again_by_the_same_sidecar_is_another_lease(redis: RedisServer) -> None:
    async with sidecar(redis, "a", 0.05) as a:
        await a.put("lookups", [task(1)])
        before = await take_one(a)

        async def claimed() -> list[HeldTask]:
            await a.claim_lost("lookups", ["http"])
            return await take(a)

        (after,) = await until(claimed)
        assert await a.keep("lookups", [before.taken, after.taken]) == [before.taken]
        await a.give_back("lookups", [before.taken], tried=True)
        assert await take(a) == []
        assert await a.finish("lookups", [before.taken, after.taken], is_sure=True) == [Finish.STALE, Finish.VALID]


async def test_a_task_that_was_given_back_is_not_lost_again(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """However many of them there are before one that is."""
    async with sidecar(redis, "a", 0.01) as a:
        await a.put("lookups", [task(number) for number in range(250)])
        *returned, lost = await take(a, 200) + await take(a, 200)
        await a.give_back("lookups", [one.taken for one in returned], tried=False)
        again: list[HeldTask] = []

        async def claimed() -> bool:
            await a.claim_lost("lookups", ["http", "unheard-of"])
            return await a.keep("lookups", [lost.taken]) == [lost.taken]

        await until(claimed)
        while taken := await take(a, 200):
            again += taken
        assert [one.attempt for one in again] == [1] * 249 + [2]
        (warning,) = (one.getMessage() for one in caplog.records if "has not kept" in one.message)
        assert warning.endswith("group=lookups tasks=1 from=a")


async def test_nobody_is_taken_for_dead_when_redis_was_away(redis: RedisServer) -> None:
    async with sidecar(redis, "a", 0.3) as a, sidecar(redis, "b", 0.3) as b:
        await a.put("lookups", [task(1)])
        held = await take_one(a)
        await asyncio.sleep(0.2)
        redis.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        with pytest.raises(JournalError):
            await b.missing("lookups", ["any"])
        failed = time.monotonic()
        while time.monotonic() < failed + 0.25:
            await b.claim_lost("lookups", ["http"])
            await asyncio.sleep(0.01)
        with suppress(JournalError):  # its connection is gone as well
            await a.missing("lookups", ["any"])
        assert await a.keep("lookups", [held.taken]) == []


async def test_consumers_that_have_nothing_are_forgotten(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sipnap.sidecar.journal.redis_tasks._FORGET_CONSUMER_MS", 20)
    async with sidecar(redis, "lazy") as lazy, sidecar(redis, "busy") as busy:
        await lazy.put("lookups", [task(1), task(2)])
        (done,) = await take(lazy, 1)
        await lazy.finish("lookups", [done.taken], is_sure=True)
        kept = await take_one(busy)

        async def consumers() -> bool:
            await busy.claim_lost("lookups", ["http"])
            return b"lazy" not in redis.command("XINFO", "CONSUMERS", f"{BASE}:tasks:http", "sidecars")

        assert await until(consumers)
        assert await busy.keep("lookups", [kept.taken]) == [], "a consumer that has something is left"


# Owners


async def test_the_owner_drops_and_hears_who_has_it(redis: RedisServer) -> None:
    async with sidecar(redis, "owner") as owner, sidecar(redis, "worker") as worker:
        tasks = [task(number) for number in range(3)]
        await owner.put("lookups", tasks)
        taken, returned = await take(worker, 2)
        await worker.give_back("lookups", [returned.taken], tried=False)
        assert await owner.drop("lookups", [one.name for one in tasks]) == ["worker", "", ""]
        assert await owner.drop("lookups", [tasks[0].name]) == [""]
        assert left(redis) == NOTHING
        assert await worker.keep("lookups", [taken.taken]) == [taken.taken]
        assert await owner.finish("lookups", [taken.taken], is_sure=True) == [Finish.UNKNOWN]
        assert await take(worker) == []


async def test_a_former_owner_ends_nothing(redis: RedisServer) -> None:
    async with sidecar(redis, "old") as old, sidecar(redis, "new") as new:
        one = task(1)
        await old.put("lookups", [one])
        assert await old.missing("lookups", [one.name]) == []
        await new.put("lookups", [one])
        held = await take_one(new)
        assert await old.drop("lookups", [one.name]) == [""]
        assert await old.finish("lookups", [held.taken], is_sure=False) == [Finish.FOREIGN]
        assert await old.missing("lookups", [one.name]) == [one.name]
        assert await new.missing("lookups", [one.name]) == []
        assert await new.finish("lookups", [held.taken], is_sure=False) == [Finish.VALID]


async def test_what_redis_has_forgotten_is_missing(redis: RedisServer) -> None:
    async with sidecar(redis, "a") as a:
        await a.put("lookups", [task(1), task(2)])
        held = await take_one_of(a)
        redis.command("FLUSHALL")
        assert await a.missing("lookups", [task(1).name, task(2).name]) == [task(1).name, task(2).name]
        assert await take(a) == []
        assert await a.keep("lookups", [held.taken]) == [held.taken]
        await a.give_back("lookups", [held.taken], tried=True)
        await a.claim_lost("lookups", ["http"])
        assert await a.finish("lookups", [held.taken], is_sure=True) == [Finish.UNKNOWN]
        assert await a.put("lookups", [task(1)]) == 1
        assert names(await take(a)) == [1]


async def take_one_of(queue: RedisTasks) -> HeldTask:
    return (await take(queue, 1))[0]


# Time and bounds


async def test_what_has_ended_is_neither_given_out_nor_kept(redis: RedisServer) -> None:
    async with sidecar(redis, "a") as a:
        await a.put("lookups", [task(1, seconds=0.05), task(2, "enum", seconds=0.05), task(3, "enum")])
        held = await take_one_of(a)

        async def has_forgotten() -> bool:
            return await a.put("lookups", [task(4)]) == 2

        await until(has_forgotten)
        assert names(await take(a, 10, "enum")) == [3]
        assert await a.keep("lookups", [held.taken]) == [held.taken]
        assert redis.command("XLEN", f"{BASE}:tasks:http") == b":1\r\n"


@pytest.mark.parametrize("by", ["take", "keep", "put"])
async def test_what_has_ended_is_forgotten_by_whatever_comes_next(redis: RedisServer, by: str) -> None:
    async with sidecar(redis, "a") as a:
        await a.put("lookups", [task(1, seconds=0.05)])

        async def forgotten() -> bool:
            match by:
                case "take":
                    await a.take("lookups", ["other"], 1)
                case "keep":
                    await a.keep("lookups", [Taken("x", "http", "1-0", "a", 1)])
                case _:
                    await a.put("lookups", [task(2)])
                    await a.drop("lookups", [task(2).name])
            return left(redis) == NOTHING

        assert await until(forgotten)


async def test_keys_go_when_nobody_uses_them(redis: RedisServer) -> None:
    async with sidecar(redis, "a") as a:
        await a.put("lookups", [task(1, seconds=30)])
        await a.put("lookups", [task(2, "enum", seconds=10)])
        for key in ("index", "ends", "bell", "tasks:http", "tasks:enum"):
            kept_ms = int(redis.command("PTTL", f"{BASE}:{key}").strip(b":\r\n"))
            assert 3_628_000 < kept_ms < 3_631_000


async def test_the_bell_wakes_whoever_is_hungry(redis: RedisServer) -> None:
    async with sidecar(redis, "a") as a, sidecar(redis, "b") as b:
        nothing = await a.take("lookups", ["http"], 1)
        assert nothing.tasks == []
        waiting = asyncio.create_task(a.listen("lookups", nothing.heard))
        await b.put("lookups", [task(1)])
        assert await waiting
        taken = await a.take("lookups", ["http"], 1)
        waiting = asyncio.create_task(b.listen("lookups", taken.heard))
        await a.give_back("lookups", [taken.tasks[0].taken], tried=False)
        assert await waiting
        heard = (await b.take("lookups", ["http"], 1)).heard
        started = time.monotonic()
        assert not await b.listen("lookups", heard)
        assert 0.5 < time.monotonic() - started < 1.9


async def test_a_user_with_the_documented_rights_can_do_everything(redis: RedisServer) -> None:
    """What docs/journal.md says to grant is enough."""
    text = (Path(__file__).parents[2] / "docs" / "journal.md").read_text()
    rights = re.search(r"needs `(~[^`]+)` and\n`([^`]+)`[^`]+`([^`]+)`[^`]+`remote` also `([^`]+)`", text)
    assert rights
    redis.command("ACL", "SETUSER", "nap", "on", ">word", *" ".join(rights.groups()).split())
    url, redis.url = redis.url, redis.url.replace("//", "//nap:word@")
    try:
        async with sidecar(redis, "a", 0.01) as a:
            await a.put("lookups", [task(number) for number in range(4)])
            await a.put("lookups", [task(8, seconds=0.001)])
            taken = await a.take("lookups", ["http"], 2)
            one, two = (held.taken for held in taken.tasks)
            await a.listen("lookups", "0-0")
            await a.give_back("lookups", [one], tried=False)
            await a.recall("lookups", ["http"], [])
            assert await a.keep("lookups", [one]) == [one]

            async def claimed() -> bool:
                await a.claim_lost("lookups", ["http"])
                return await a.keep("lookups", [again]) == [again]

            again, *others = (held.taken for held in await take(a))
            await until(claimed)
            assert await a.finish("lookups", [one], is_sure=True) == [Finish.STALE]
            assert await a.missing("lookups", [one.name]) == []
            await a.drop("lookups", [one.name, two.name, *(other.name for other in others)])
            assert await a.count("lookups") == 0
    finally:
        redis.url = url
        redis.command("ACL", "DELUSER", "nap")


async def test_a_cluster(tmp_path: Path) -> None:
    flags = ["--cluster-enabled", "yes", "--cluster-announce-ip", "127.0.0.1", "--cluster-port", str(free_port())]
    with RedisServer(tmp_path, *flags) as redis:
        redis.command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        async with asyncio.timeout(10):
            while b"cluster_state:ok" not in redis.command("CLUSTER", "INFO"):
                await asyncio.sleep(0.02)
        redis.url = f"redis+cluster://127.0.0.1:{redis.port}"
        async with sidecar(redis, "a") as a:
            assert await a.put("lookups", [task(1), task(2, "enum"), task(3)]) == 3
            taken = await a.take("lookups", ["http", "enum"], 10)
            one, *others = taken.tasks
            waiting = asyncio.create_task(a.listen("lookups", taken.heard))
            await a.give_back("lookups", [other.taken for other in others], tried=False)
            assert await waiting
            await a.claim_lost("lookups", ["http", "enum"])
            assert await a.keep("lookups", [one.taken]) == []
            assert await a.finish("lookups", [one.taken], is_sure=False) == [Finish.VALID]
            assert await a.drop("lookups", [other.task.name for other in others]) == ["", ""]
            assert left(redis, "http", "enum") == NOTHING
