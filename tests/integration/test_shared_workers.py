"""Remote workers of several sidecars on one Redis: any of all these processes may be killed, and nothing is lost."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from sipnap.client import SuspensionKey, aio
from sipnap.client.operations import operation_message
from sipnap.v1 import suspension_pb2 as pb
from tests.support.processes import Process, Sidecar, sipnap
from tests.support.redis_server import RedisServer
from tests.support.worker_driver import Driver, driving, group_status, until, until_group, values_of, worker_process

BASE = "sipnap:group:{far}"


@pytest.fixture
def start(redis: RedisServer) -> Callable[..., Sidecar]:
    """Starts a sidecar on the Redis of this test."""
    return lambda *flags: Sidecar(
        "--journal", redis.url, "--group", "name=far,kind=remote", "--lease-seconds", "2", *flags
    )


@pytest.fixture
def first(start: Callable[..., Sidecar]) -> Iterator[Sidecar]:
    with start() as sidecar:
        yield sidecar


@pytest.fixture
def second(start: Callable[..., Sidecar]) -> Iterator[Sidecar]:
    with start() as sidecar:
        yield sidecar


def integer(answer: bytes) -> int:
    return int(answer.strip(b":\r\n"))


def queued(redis: RedisServer) -> int:
    return integer(redis.command("HLEN", f"{BASE}:index"))


async def until_empty(redis: RedisServer, *operations: str) -> None:
    """Nothing is left in Redis: index, ends and streams."""
    await until(lambda: queued(redis) == 0)
    assert integer(redis.command("ZCARD", f"{BASE}:ends")) == 0
    for operation in operations or ("echo",):
        assert integer(redis.command("XLEN", f"{BASE}:tasks:{operation}")) == 0


def answered_well(driver: Driver) -> None:
    """Each got an answer, its own, and the front end saw it once."""
    assert driver.statuses() == Counter({"OK": driver.asked})
    assert driver.repeated == 0
    for number, (answer,) in driver.came.items():
        assert values_of(answer)["call_id"] == b"call-%d" % number


async def test_a_worker_of_another_sidecar_answers(first: Sidecar, second: Sidecar, redis: RedisServer) -> None:
    with worker_process(second.target) as worker:
        async with driving(first.target) as driver:
            for _ in range(200):
                driver.ask("echo", {"ms": 1, "text": "hello"}, prefix="far_")
            await driver.all_answers()
            found = [values_of(answer) for (answer,) in driver.came.values()]
            assert {one["far_pid"] for one in found} == {worker.pid}
            assert {one["far_call_id"] for one in found} == {b"call-%d" % number for number in driver.came}
            assert driver.statuses() == {"OK": 200}
    await until_empty(redis)


async def test_what_goes_wrong_there_is_told_here(first: Sidecar, second: Sidecar, redis: RedisServer) -> None:
    with worker_process(second.target):
        async with driving(first.target) as driver:
            answer = await driver.answer(driver.ask("fail", {"retry_ms": 20}, max_attempts=4))
            assert (answer.error_code, answer.error) == ("no_luck", "fail: it cannot be done")
            assert (await group_status(first.target)).retried == 3
            started_seconds = time.monotonic()
            answer = await driver.answer(driver.ask("echo", {"ms": 20_000}, timeout_seconds=0.2, max_attempts=1))
            assert (answer.error_code, time.monotonic() - started_seconds < 5) == ("timeout", True)
            answer = await driver.answer(driver.ask("die", max_attempts=1))
            assert (answer.status, answer.error_code) == (pb.CONTINUE_STATUS_FAILED, "worker_lost")
    await until_empty(redis, "echo", "fail", "die")


async def test_operations_of_one_nap_are_run_at_both_sidecars(first: Sidecar, second: Sidecar) -> None:
    with worker_process(first.target, concurrency=1) as here, worker_process(second.target, concurrency=1) as there:
        async with driving(first.target) as driver:
            number = driver.asked = 1
            key = SuspensionKey("driver", 1, number, 7, 1).to_message()
            asked = [operation_message("echo", {"ms": 300}, group="far", prefix=prefix) for prefix in ("one_", "two_")]
            suspension = pb.Suspension(key=key, resume_route="RESUME", operations=asked)
            suspension.delay.FromSeconds(20)
            driver.session.suspend(suspension)
            found = values_of(await driver.answer(number))
            assert {found["one_pid"], found["two_pid"]} == {here.pid, there.pid}


async def test_the_timeout_of_an_attempt_counts_from_its_beginning(first: Sidecar, second: Sidecar) -> None:
    async with driving(first.target) as driver:
        number = driver.ask("echo", {"ms": 10}, timeout_seconds=0.5, max_attempts=1)
        await until_group(first.target, lambda group: group.queued == 1)
        await asyncio.sleep(0.6)
        with worker_process(second.target):
            assert (await driver.answer(number)).status == pb.CONTINUE_STATUS_OK


async def test_a_cancelled_call_stops_its_operation_elsewhere(
    first: Sidecar, second: Sidecar, redis: RedisServer
) -> None:
    with worker_process(second.target, concurrency=1):
        async with driving(first.target) as driver, aio.Client(first.target) as client:
            driver.ask("echo", {"ms": 20_000})
            waiting = driver.ask("echo", {"ms": 20_000})
            await until_group(first.target, lambda group: (group.busy, group.queued) == (1, 1))
            for number in (waiting, waiting - 1):
                assert await client.cancel(SuspensionKey("driver", 1, number, 7, 1)) == pb.CANCEL_OUTCOME_CANCELLED
            await until_empty(redis)
            assert (await driver.answer(driver.ask("echo", {"ms": 1}))).status == pb.CONTINUE_STATUS_OK


async def test_the_bound_of_the_queue_counts_what_others_have_put(
    start: Callable[..., Sidecar], redis: RedisServer
) -> None:
    group = ("--group", "name=few,kind=remote,queue=5")
    with start(*group) as first, start(*group) as second:
        async with driving(first.target) as here, driving(second.target, front_end_id="other") as there:
            for _ in range(5):
                here.ask("echo", group="few")
            await until_group(first.target, lambda group: group.queued == 5, name="few")
            async with asyncio.timeout(10):
                while not there.came:  # as soon as the other sidecar knows of those
                    there.ask("echo", group="few")
                    await asyncio.sleep(0.1)
            (refused,) = next(iter(there.came.values()))
            assert refused.error.startswith("refused: full")
            assert integer(redis.command("HLEN", "sipnap:group:{few}:index")) <= 25


# Moved, stopped, killed


def notes_worker(notes: Path, *targets: str, concurrency: int = 16) -> Process:
    words = ["worker", "--group", "far", "--operations", "tests.support.noted_operations"]
    for target in targets:
        words += ["--sidecar", target]
    return Process(
        "worker",
        sipnap(*words, "--concurrency", str(concurrency)),
        ready=r"^sipnap worker: ready on ",
        env={"NOTES": str(notes)},
    )


def begun(notes: Path) -> Counter[bytes]:
    return Counter(notes.read_bytes().splitlines()) if notes.exists() else Counter()


async def test_a_front_end_that_moves_does_not_have_its_operations_run_again(
    first: Sidecar, second: Sidecar, redis: RedisServer, tmp_path: Path
) -> None:
    """Nobody but the journal remembers: the session at the other sidecar is a new one."""
    notes = tmp_path / "notes"
    with notes_worker(notes, second.target):
        async with driving(first.target) as before:
            for _ in range(30):  # 16 run, the others wait
                before.ask("noted", {"ms": 700})
            await until(lambda: len(begun(notes)) == 16)
        async with driving(second.target) as after:
            await until(lambda: set(before.came) | set(after.came) == set(range(1, 31)), 20)
            assert (after.repeated, after.statuses()) == (0, {"OK": 30 - len(before.came)})
    assert begun(notes) == Counter({b"call-%d" % number: 1 for number in range(1, 31)})
    await until_empty(redis, "noted")


async def test_an_owner_that_is_killed_costs_no_operation(
    first: Sidecar, second: Sidecar, redis: RedisServer, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    with notes_worker(notes, second.target):
        async with driving(first.target) as before:
            for _ in range(30):
                before.ask("noted", {"ms": 500})
            await until(lambda: len(begun(notes)) == 16)
            first.kill()
        await until(lambda: b":30" not in redis.command("HLEN", f"{BASE}:index") or len(begun(notes)) == 30)
        came_before = set(before.came)
        async with driving(second.target) as after:
            await until(lambda: came_before | set(after.came) == set(range(1, 31)), 20)
            assert (after.repeated, set(after.statuses())) == (0, {"OK"})
    assert begun(notes) == Counter({b"call-%d" % number: 1 for number in range(1, 31)})
    await until_empty(redis, "noted")


async def test_a_drain_sends_workers_and_work_to_the_other_sidecar(
    first: Sidecar, second: Sidecar, redis: RedisServer, tmp_path: Path
) -> None:
    """Both kinds of sidecar: first the one that only has workers, then the one that owns the front end."""
    notes = tmp_path / "notes"
    with notes_worker(notes, second.target, first.target, concurrency=2):
        async with driving(first.target) as driver:
            for _ in range(40):
                driver.ask("noted", {"ms": 50})
            await until(lambda: len(driver.came) >= 5)
            assert second.stop(10) == 0
            await driver.all_answers()
            answered_well(driver)
            assert first.stop(10) == 0
    assert set(begun(notes).values()) == {1}
    await until_empty(redis, "noted")


async def test_a_sidecar_that_was_stopped_comes_too_late(
    first: Sidecar, second: Sidecar, redis: RedisServer, tmp_path: Path
) -> None:
    """Its tasks are taken from it; what its workers found meanwhile is not used, each ends once."""
    notes = tmp_path / "notes"
    with notes_worker(notes, second.target, concurrency=4):
        async with driving(first.target) as driver:
            for _ in range(4):
                driver.ask("noted", {"ms": 300})
            await until(lambda: len(begun(notes)) == 4)
            second.signal(signal.SIGSTOP)
            with notes_worker(notes, first.target):
                await driver.all_answers()
                second.signal(signal.SIGCONT)
                answered_well(driver)
                await until_empty(redis, "noted")
                again = driver.ask("noted")
                assert (await driver.answer(again)).status == pb.CONTINUE_STATUS_OK
    assert [begun(notes)[b"call-%d" % number] for number in range(1, 5)] == [2] * 4
    assert "has not kept its tasks, others run them again group=far tasks=4" in first.output()


async def test_a_redis_that_stands_still_costs_time_alone(first: Sidecar, second: Sidecar, redis: RedisServer) -> None:
    with worker_process(second.target):
        async with driving(first.target) as driver:
            for _ in range(40):
                driver.ask("echo", {"ms": 200})
            await until(lambda: len(driver.came) >= 2)
            redis.signal(signal.SIGSTOP)
            await asyncio.sleep(3)
            redis.signal(signal.SIGCONT)
            await driver.all_answers()
            answered_well(driver)
    await until_empty(redis)


async def test_tasks_that_redis_has_forgotten_are_put_again(
    first: Sidecar, second: Sidecar, redis: RedisServer
) -> None:
    async with driving(first.target) as driver:
        for _ in range(20):
            driver.ask("echo")
        await until(lambda: queued(redis) == 20)
        redis.command("FLUSHALL")
        with worker_process(second.target):
            await driver.all_answers()
            answered_well(driver)
    await until_empty(redis)
    assert "tasks were not in redis any more, put again group=far tasks=20" in first.output()


class Fleet:
    """Two sidecars, and two workers at each; a worker whose sidecar dies goes to the other."""

    def __init__(self, sidecars: list[Sidecar], stack: ExitStack) -> None:
        self.sidecars = sidecars
        targets = [sidecar.target for sidecar in sidecars]
        self.workers = [
            stack.enter_context(worker_process(*order, concurrency=8))
            for order in (targets, targets, targets[::-1], targets[::-1])
        ]


@pytest.fixture
def fleet(first: Sidecar, second: Sidecar) -> Iterator[Fleet]:
    with ExitStack() as stack:
        yield Fleet([first, second], stack)


VICTIMS: dict[str, Callable[[Fleet], Process]] = {
    "worker at the owner": lambda fleet: fleet.workers[0],
    "worker elsewhere": lambda fleet: fleet.workers[2],
    "the owner": lambda fleet: fleet.sidecars[0],
    "the other sidecar": lambda fleet: fleet.sidecars[1],
}


@pytest.mark.parametrize("victim", VICTIMS)
async def test_any_one_is_killed_and_nothing_is_lost(fleet: Fleet, victim: str, redis: RedisServer) -> None:
    async with driving(*(sidecar.target for sidecar in fleet.sidecars)) as driver:
        killed = VICTIMS[victim](fleet)
        for turn in range(150):
            for _ in range(4):
                driver.ask("echo", {"ms": 50}, seconds=25)
            if turn == 60:
                busy = {values_of(answer)["pid"] for (answer,) in driver.came.values()}
                assert busy == {worker.pid for worker in fleet.workers}
                killed.kill()
            await asyncio.sleep(0.01)
        await driver.all_answers()
        answered_well(driver)
    await until_empty(redis)


# Figures


async def test_more_workers_do_more(first: Sidecar, second: Sidecar, redis: RedisServer) -> None:
    """An operation of 50 ms, two at once for each worker: 40 a second at best. Prints what 1, 2 and 4 workers do."""
    rates: dict[int, float] = {}
    targets = [first.target, second.target]
    with ExitStack() as stack:
        workers: list[Process] = []
        for count in (1, 2, 4):
            while len(workers) < count:
                order = targets[len(workers) % 2 :] + targets[: len(workers) % 2]
                workers.append(stack.enter_context(worker_process(*order, concurrency=2)))
            async with driving(first.target, front_end_id=f"driver{count}") as driver:
                started_seconds = time.monotonic()
                for _ in range(60 * count):
                    driver.ask("echo", {"ms": 50})
                await driver.all_answers()
                rates[count] = driver.asked / (time.monotonic() - started_seconds)
                answered_well(driver)
    for count, rate in rates.items():
        print(f"{count} workers of 2 at once, 50 ms: {rate:.0f} operations/s of at most {count * 40}")
    assert rates[2] > 1.6 * rates[1]
    assert rates[4] > 1.6 * rates[2]
