"""Ownership follows the session: two real sidecars on one real Redis, and whatever may happen to either."""

from __future__ import annotations

import asyncio
import random
import re
import signal
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sipnap.client import FrontEndSession, SuspensionKey, aio, errors, session
from sipnap.sidecar.journal.redis import RedisJournal
from sipnap.sidecar.journal.redis_address import RedisAddress
from sipnap.v1 import admin_service_pb2 as admin
from sipnap.v1 import suspension_pb2 as pb
from tests.integration.test_session import Driver, driving, until
from tests.support.processes import Sidecar, free_port
from tests.support.redis_server import RedisServer
from tests.unit.test_journal import Source, kept

PROMPT = {"CONTINUE_STATUS_OK"}


@pytest.fixture
def start(redis: RedisServer) -> Callable[..., Sidecar]:
    """Starts a sidecar on the Redis of this test."""
    return lambda *flags: Sidecar("--journal", redis.url, *flags)


@pytest.fixture
def first(start: Callable[..., Sidecar]) -> Iterator[Sidecar]:
    with start() as sidecar:
        yield sidecar


@pytest.fixture
def second(start: Callable[..., Sidecar]) -> Iterator[Sidecar]:
    with start() as sidecar:
        yield sidecar


async def status_of(sidecar: Sidecar) -> admin.GetStatusResponse:
    async with aio.Client(sidecar.target) as client:
        return await client.status()


async def until_held(sidecar: Sidecar, count: int, seconds: float = 5.0) -> None:
    async with aio.Client(sidecar.target) as client, asyncio.timeout(seconds):
        while (status := await client.status()).pending + status.continuing != count:
            await asyncio.sleep(0.01)


async def until_accepted(sidecar: Sidecar, count: int, seconds: float = 5.0) -> None:
    async with aio.Client(sidecar.target) as client, asyncio.timeout(seconds):
        while (await client.status()).counters.accepted < count:
            await asyncio.sleep(0.01)


def was_kept(driver: Driver, numbers: range) -> None:
    assert set(driver.received) == set(numbers)
    assert (driver.early, driver.repeated, driver.statuses()) == (0, 0, PROMPT)


async def test_naps_of_a_killed_sidecar_come_from_the_next(first: Sidecar, second: Sidecar, redis: RedisServer) -> None:
    """No shim remembers anything here: the session at the second sidecar is a new one."""
    async with driving(first.target) as before:
        await before.session.wait_connected(10)
        for number in range(500):
            before.nap(number, random.uniform(0.3, 2.0))
        async with aio.Client(first.target) as client, asyncio.timeout(5):
            while (await client.status()).counters.accepted < 500:
                await asyncio.sleep(0.005)
        assert (await status_of(first)).journal.durability == pb.DURABILITY_PROCESS
    first.kill()
    came_before = set(before.received)
    async with driving(second.target) as after:
        after.due = before.due
        await until(lambda: came_before | set(after.received) == set(range(500)), 10)
        assert (after.early, after.repeated, after.statuses()) == (0, 0, PROMPT)
        await until_held(second, 0)
    assert "taking a front end over front_end=driver" in second.output()
    assert "recovered journal=redis front_end=driver" in second.output()
    await until(lambda: redis.command("EXISTS", "sipnap:{driver}:naps") == b":0\r\n")


async def test_the_session_finds_the_next_sidecar_by_itself(first: Sidecar, second: Sidecar) -> None:
    async with driving(first.target, second.target) as driver:
        await driver.session.wait_connected(10)
        for number in range(300):
            driver.nap(number, random.uniform(0.3, 2.0))
        await driver.wait_for(30)
        first.kill()
        await until(lambda: not driver.session.is_open)
        await until(lambda: driver.session.is_open)
        for number in range(300, 350):
            driver.nap(number, 0.3)
        await driver.wait_for(350)
        was_kept(driver, range(350))
        await until_held(second, 0)


async def test_a_drained_sidecar_hands_over_at_once(first: Sidecar, second: Sidecar) -> None:
    async with driving(first.target, second.target) as driver:
        await driver.session.wait_connected(10)
        for number in range(50):
            driver.nap(number, 2.5)
        await until_accepted(first, 50)
        first.signal(signal.SIGTERM)
        await until_held(second, 50)
        assert await asyncio.to_thread(first.wait, 10) == 0
        await driver.wait_for(50)
        was_kept(driver, range(50))


async def test_an_owner_that_was_taken_for_dead_is_fenced(
    start: Callable[..., Sidecar], second: Sidecar, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "DEAD_SECONDS", 1.5)  # a test has less patience than a proxy
    metrics = free_port()
    with start("--metrics", f"127.0.0.1:{metrics}") as first:
        async with driving(first.target, second.target) as driver:
            await driver.session.wait_connected(10)
            for number in range(300):
                driver.nap(number, random.uniform(0.5, 4.5))
            await until_accepted(first, 300)
            first.signal(signal.SIGSTOP)
            try:
                await until(lambda: not driver.session.is_open)
                await until(lambda: driver.session.is_open)
                for number in range(300, 400):
                    driver.nap(number, random.uniform(0.5, 2.0))
                await until_accepted(second, 100)
            finally:
                first.signal(signal.SIGCONT)
            await asyncio.to_thread(first.wait_output, r"another sidecar owns a front end now.*front_end=driver")
            await until_held(first, 0)
            await driver.wait_for(400)
            was_kept(driver, range(400))
            await until_held(second, 0)
            scraped = await asyncio.to_thread(_scrape, metrics)
            assert re.search(r"^sipnap_fenced_total [1-9]", scraped, re.MULTILINE)
            assert re.search(r'^sipnap_resumed_total\{outcome="lost"\} 0', scraped, re.MULTILINE)
            assert "another sidecar owns" not in second.output(), "the stale owner claims nothing back"
    await until(lambda: redis.command("EXISTS", "sipnap:{driver}:naps") == b":0\r\n")


def _scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
        text: str = response.read().decode()
        return text


async def test_a_session_that_comes_back_to_a_stale_owner_gets_everything(first: Sidecar, second: Sidecar) -> None:
    """First, second, first again: what the first remembers of its former ownership must not count."""
    async with driving(first.target) as one:
        await one.session.wait_connected(10)
        for number in range(10):
            one.nap(number, 2.5)
        await until_accepted(first, 10)
    async with driving(second.target) as two:
        await two.session.wait_connected(10)
        for number in range(10, 20):
            two.nap(number, 2.5)
        two.session.cancel(SuspensionKey("driver", 1, 3, 5, 1))
        await until_held(second, 19)
        # So that the cancel is written: the journal forgets a little later than it ends.
        await until(lambda: "another sidecar owns" in first.output())
    async with driving(first.target) as three:
        three.due = one.due | two.due
        await three.wait_for(19)
        assert 3 not in three.received
        assert (three.early, three.repeated, three.statuses()) == (0, 0, PROMPT)
        await until_held(first, 0)


async def test_a_stalled_redis_closes_the_door_and_loses_nothing(first: Sidecar, redis: RedisServer) -> None:
    gates: list[bool] = []
    async with driving(first.target) as driver:
        driver.session.on_gate(gates.append)
        await driver.session.wait_connected(10)
        for number in range(100):
            driver.nap(number, random.uniform(0.5, 3.0))
        await until_accepted(first, 100)
        redis.signal(signal.SIGSTOP)
        try:
            await until(lambda: not driver.session.is_open, 5)
            await driver.wait_for(100)
            was_kept(driver, range(100))
            assert re.search("journal failed, new naps are refused.*does not answer in time", first.output())
        finally:
            redis.signal(signal.SIGCONT)
        await until(lambda: driver.session.is_open, 5)
        driver.nap(100, 0.1)
        await driver.wait_for(101)
        was_kept(driver, range(101))
        await until_held(first, 0)
    assert gates[:3] == [True, False, True]
    await until(lambda: redis.command("EXISTS", "sipnap:{driver}:naps") == b":0\r\n")


async def test_a_redis_without_memory_closes_the_door(first: Sidecar, redis: RedisServer) -> None:
    async with driving(first.target) as driver, aio.Client(first.target) as client:
        await driver.session.wait_connected(10)
        for number in range(20):
            driver.nap(number, 0.6)
        await until_accepted(first, 20)
        redis.command("CONFIG", "SET", "maxmemory", "1000kb")
        try:
            await until(lambda: not driver.session.is_open)
            with pytest.raises(errors.JournalUnavailable, match="out of memory"):
                await client.suspend_route(SuspensionKey("driver", 1, 999, 1, 1), "R", 0.1)
            await driver.wait_for(20)
            was_kept(driver, range(20))
        finally:
            redis.command("CONFIG", "SET", "maxmemory", "0")
        await until(lambda: driver.session.is_open)
        driver.nap(20, 0.05)
        await driver.wait_for(21)
        was_kept(driver, range(21))


async def test_held_naps_reach_a_front_end_that_comes_back_while_redis_is_away(
    first: Sidecar, second: Sidecar, redis: RedisServer
) -> None:
    async with driving(first.target) as before:
        await before.session.wait_connected(10)
        before.nap(1, 1.0)
        await until_accepted(first, 1)
    redis.signal(signal.SIGSTOP)
    try:
        async with driving(second.target, first.target) as after:
            after.due = before.due
            await after.wait_for(1, 15)
            assert (after.early, after.statuses(), after.session.is_open) == (0, PROMPT, False)
            assert "front end connected" not in second.output(), "who has nothing of it does not pretend to"
    finally:
        redis.signal(signal.SIGCONT)


async def test_a_restarted_empty_redis_is_filled_again(
    start: Callable[..., Sidecar], tmp_path: Path, second: Sidecar
) -> None:
    """Redis loses everything, then the sidecar is killed: the acceptances are there nevertheless."""
    with RedisServer(tmp_path) as redis, Sidecar("--journal", redis.url) as owner:
        async with driving(owner.target) as before:
            await before.session.wait_connected(10)
            for number in range(50):
                before.nap(number, 2.0)
            await until_accepted(owner, 50)
            redis.kill()
            with RedisServer(tmp_path, port=redis.port) as again:
                await asyncio.to_thread(owner.wait_output, "redis had lost what it had confirmed.*held=50")
                owner.kill()
                with Sidecar("--journal", again.url) as heir:
                    async with driving(heir.target) as after:
                        after.due = before.due
                        await after.wait_for(50)
                        was_kept(after, range(50))


async def test_a_hundred_thousand_naps_are_taken_over(first: Sidecar, redis: RedisServer) -> None:
    source = Source()
    journal = RedisJournal(RedisAddress.parse(redis.url))
    await kept(journal, source)
    for _ in range(20):
        await journal.commit([source.held(payload=b"s" * 250, delay_seconds=3600) for _ in range(5000)], [])
    await journal.close()
    async with FrontEndSession([first.target], front_end_id="kamailio", boot_epoch=7) as front_end:
        await front_end.wait_connected(30)
    line = first.wait_output(r"recovered journal=redis front_end=kamailio restored=100000 seconds=([\d.]+)")
    print(line[0])
    assert float(line[1]) < 15
    assert (await status_of(first)).pending == 100_000


# Unary calls that reach the other sidecar


async def test_a_call_at_the_wrong_sidecar_is_carried_out_by_the_right_one(first: Sidecar, second: Sidecar) -> None:
    key, other_key = SuspensionKey("driver", 0, 7, 1, 1), SuspensionKey("driver", 0, 8, 1, 1)
    async with driving(first.target) as driver, aio.Client(second.target) as client:
        await driver.session.wait_connected(10)
        accepted = await client.suspend_route(key, "R", 0.5)
        assert (accepted.already_held, accepted.key.boot_epoch) == (False, 1)
        assert (await client.suspend_route(key, "R", 0.5)).already_held
        await client.suspend_route(other_key, "R", 0.7)
        assert (await client.get(other_key)).phase == pb.SUSPENSION_PHASE_PENDING
        assert await client.cancel(other_key) == pb.CANCEL_OUTCOME_CANCELLED
        assert await client.cancel(other_key) == pb.CANCEL_OUTCOME_GONE
        with pytest.raises(errors.NotFound):
            await client.get(other_key)
        with pytest.raises(errors.DelayOutOfRange, match="--max-seconds"):
            await client.suspend_route(other_key, "R", 1e6)
        driver.due[7] = 0.0
        await driver.wait_for(1)
        assert list(driver.received) == [7]
        assert (await status_of(second)).counters.accepted == 0


async def test_an_owner_that_does_not_answer_is_given_up(first: Sidecar, second: Sidecar) -> None:
    key = SuspensionKey("driver", 0, 7, 1, 1)
    async with driving(first.target) as driver, aio.Client(second.target) as client:
        await driver.session.wait_connected(10)
        await client.suspend_route(key, "R", 1.0)
        first.signal(signal.SIGSTOP)
        try:
            with pytest.raises(errors.Unavailable, match="does not answer"):
                await client.suspend_route(key._replace(transaction_index=8), "R", 1.0)
        finally:
            first.signal(signal.SIGCONT)
        for unknown in ("nobody", "", "}:owner", "x" * 10_000):
            with pytest.raises(errors.FrontEndUnknown):
                await client.suspend_route(SuspensionKey(unknown, 1, 1, 1, 1), "R", 1.0)


# A Redis that fails over


async def test_a_failover_closes_the_door_for_its_time_only(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("primary", "replica", "sentinel")]
    for folder in folders:
        folder.mkdir()
    with (
        RedisServer(folders[0]) as primary,
        RedisServer(
            folders[1], "--replicaof", f"127.0.0.1 {primary.port}", "--repl-diskless-sync-delay", "0"
        ) as replica,
        RedisServer.sentinel(folders[2], "calls", primary) as sentinel,
        Sidecar("--journal", f"redis+sentinel://127.0.0.1:{sentinel.name.partition(':')[2]}/calls/0") as sidecar,
    ):
        await asyncio.to_thread(primary.wait_output, "Synchronization with replica .* succeeded")
        await asyncio.to_thread(sentinel.wait_output, rf"\+slave .*:{replica.port}")
        async with driving(sidecar.target) as driver:
            await driver.session.wait_connected(10)
            for number in range(50):
                driver.nap(number, random.uniform(0.5, 2.0))
            await until_accepted(sidecar, 50)
            primary.kill()
            await until(lambda: not driver.session.is_open)
            await driver.wait_for(50)
            await until(lambda: driver.session.is_open, 15)
            driver.nap(50, 0.1)
            await driver.wait_for(51)
            was_kept(driver, range(51))
        assert replica.command("ROLE").startswith(b"*3\r\n$6\r\nmaster")
        await until(lambda: replica.command("EXISTS", "sipnap:{driver}:naps") == b":0\r\n")


def test_a_sidecar_without_its_redis_does_not_start() -> None:
    from tests.support.processes import Process, sipnap

    flags = ["--listen", "127.0.0.1:0", "--journal", f"redis://:secret@127.0.0.1:{free_port()}/0"]
    with Process("serve", sipnap("serve", *flags)) as process:
        assert process.wait(20) == 1
        assert "cannot be reached: is it running there?" in process.output()
        assert "secret" not in process.output()
