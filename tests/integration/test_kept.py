"""Accepted means kept: a real sidecar with the SQLite journal, killed, filled up, and started again."""

from __future__ import annotations

import asyncio
import random
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sipnap.client import SuspensionKey, aio, errors, sync
from sipnap.v1 import suspension_pb2 as pb
from tests.integration.test_session import driving, until
from tests.support.processes import Process, Sidecar, sipnap


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., Sidecar]:
    """Starts a sidecar on one journal; pass the port of the one before."""

    def start(port: int | None = None, *flags: str) -> Sidecar:
        return Sidecar("--journal", f"sqlite:{tmp_path}/journal.sqlite3", *flags, port=port)

    return start


async def held_by(sidecar: Sidecar) -> int:
    async with aio.Client(sidecar.target) as client:
        status = await client.status()
        return status.pending + status.continuing


async def test_what_was_acknowledged_survives_the_kill(start: Callable[..., Sidecar]) -> None:
    """No shim remembers anything here: the session that comes back is a new one."""
    with start() as sidecar:
        async with driving(sidecar.target) as first:
            await first.session.wait_connected(10)
            for number in range(300):
                first.nap(number, random.uniform(0.2, 3.0))
            async with aio.Client(sidecar.target) as client:
                accepted = await client.suspend_route(SuspensionKey("driver", 0, 1000, 1, 1), "R", 1.0)
                assert accepted.durability == pb.DURABILITY_DISK
                async with asyncio.timeout(5):
                    while (await client.status()).counters.accepted < 301:
                        await asyncio.sleep(0.005)
            came_before = set(first.received)
        sidecar.kill()
    with start(sidecar.port) as again:
        assert "recovered" in again.output()
        with sync.Client(again.target) as client:
            front_end = client.status().front_ends[0]
            assert (front_end.connected, front_end.boot_epoch) == (False, 0), "of no known life until its Hello"
            assert len(list(client.list("driver"))) == front_end.pending + front_end.continuing
        async with driving(again.target) as second:
            second.due = first.due | {1000: 0.0}
            await until(lambda: came_before | set(second.received) == {*range(300), 1000}, 10)
            assert (second.early, second.repeated) == (0, 0)
        async with asyncio.timeout(5):
            while await held_by(again):
                await asyncio.sleep(0.01)
        assert await asyncio.to_thread(again.stop) == 0
    with start(sidecar.port) as third:
        assert "recovered" not in third.output(), "what has ended is forgotten"


async def test_what_is_late_at_the_restart_goes_by_its_policy(start: Callable[..., Sidecar]) -> None:
    policies = [pb.LATE_POLICY_UNSPECIFIED, pb.LATE_POLICY_FIRE, pb.LATE_POLICY_DROP, pb.LATE_POLICY_FAIL]
    with start() as sidecar:
        async with driving(sidecar.target) as first, aio.Client(sidecar.target) as client:
            await first.session.wait_connected(10)
            for number, policy in enumerate(policies):
                key = SuspensionKey("driver", 1, number, 1, 1)
                await client.suspend_route(key, "R", 0.3, late_policy=policy)
                on_time = SuspensionKey("driver", 1, 100 + number, 1, 1)
                await client.suspend_route(on_time, "R", 3.0, late_policy=policy)
        sidecar.kill()
    away = time.monotonic()
    await until(lambda: time.monotonic() - away > 0.5)
    with start(sidecar.port) as again:
        async with driving(again.target) as second:
            second.due = dict.fromkeys([*range(4), *range(100, 104)], 0.0)
            await until(lambda: len(second.received) == 7, 10)
            status = {number: all_[0][1].status for number, all_ in second.received.items()}
            ok, failed = pb.CONTINUE_STATUS_OK, pb.CONTINUE_STATUS_FAILED
            assert status == {0: ok, 1: ok, 3: failed, 100: ok, 101: ok, 102: ok, 103: ok}
            assert "late by" in second.received[3][0][1].error
        async with aio.Client(again.target) as client:
            assert (await client.status()).counters.dropped == 1
        assert await asyncio.to_thread(again.stop) == 0
    with start(sidecar.port) as third:
        assert "recovered" not in third.output(), "what was dropped is forgotten too"


async def test_a_drained_sidecar_keeps_its_naps_for_the_next_start(start: Callable[..., Sidecar]) -> None:
    with start() as sidecar:
        async with driving(sidecar.target) as driver:
            await driver.session.wait_connected(10)
            driver.nap(1, 2.0)
            async with asyncio.timeout(5):
                while not await held_by(sidecar):
                    await asyncio.sleep(0.005)
            sidecar.signal(signal.SIGTERM)
            assert await asyncio.to_thread(sidecar.wait, 10) == 0, "and does not wait for them"
            with start(sidecar.port):
                await driver.wait_for(1)
                assert (driver.early, driver.statuses()) == (0, {"CONTINUE_STATUS_OK"})


async def test_a_full_disk_closes_the_door_and_loses_nothing(start: Callable[..., Sidecar]) -> None:
    """The limit on the size of files stands in for the disk: the same failing write, and it can be lifted again."""
    with start() as sidecar:
        async with driving(sidecar.target) as driver, aio.Client(sidecar.target) as client:
            await driver.session.wait_connected(10)
            for number in range(20):
                driver.nap(number, 2.0)
            async with asyncio.timeout(5):
                while (await client.status()).counters.accepted < 20:
                    await asyncio.sleep(0.005)
            before = resource.prlimit(sidecar.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
            refused = SuspensionKey("driver", 1, 999, 1, 1)
            with pytest.raises(errors.JournalUnavailable, match="journal"):
                await client.suspend_route(refused, "R", 0.1)
            await until(lambda: not driver.session.is_open)
            sidecar.wait_output("journal failed, new naps are refused, held ones still fire")
            await driver.wait_for(20)
            assert driver.early == 0
            resource.prlimit(sidecar.pid, resource.RLIMIT_FSIZE, before)
            await until(lambda: driver.session.is_open)
            sidecar.wait_output("journal works again")
            driver.nap(500, 0.1)
            await driver.wait_for(21)
            assert set(driver.received) == {*range(20), 500}
            async with asyncio.timeout(5):
                while await held_by(sidecar):
                    await asyncio.sleep(0.01)


def test_two_sidecars_do_not_share_a_journal(start: Callable[..., Sidecar], tmp_path: Path) -> None:
    with start():
        flags = ["--listen", "127.0.0.1:0", "--journal", f"sqlite:{tmp_path}/journal.sqlite3"]
        with Process("serve", sipnap("serve", *flags)) as second:
            assert second.wait(20) == 1
            assert "another sidecar uses this file" in second.output()


def test_normal_sync_says_what_it_keeps(start: Callable[..., Sidecar]) -> None:
    with start(None, "--journal-sync", "normal") as sidecar, sync.Client(sidecar.target) as client:
        journal = client.status().journal
        assert (journal.kind, journal.durability) == ("sqlite", pb.DURABILITY_PROCESS)
