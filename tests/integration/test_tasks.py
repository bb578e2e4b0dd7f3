"""Tasks of a real sidecar process: routes that a front end runs without a transaction."""

from __future__ import annotations

import asyncio
import re
import subprocess
import time
from pathlib import Path

import pytest

from sipnap.client import FrontEndSession, aio, errors, key_of, sync
from sipnap.client.keys import SuspensionKey
from sipnap.client.operations import arguments_of, operation_message
from sipnap.v1 import suspension_pb2 as pb
from tests.support.processes import Sidecar, sipnap
from tests.support.redis_server import RedisServer

EPOCH = 1_000
HOSTILE = bytes(range(256))


async def next_task(session: FrontEndSession, seconds: float = 5.0) -> pb.Continue:
    async with asyncio.timeout(seconds):
        (task,) = await anext(aiter(session.batches()))
    return task


async def test_a_task_reaches_its_front_end_with_its_data(sidecar: Sidecar) -> None:
    async with (
        aio.Client(sidecar.target) as client,
        FrontEndSession([sidecar.target], front_end_id="bench", boot_epoch=EPOCH) as session,
    ):
        await session.wait_connected(10)
        key = await client.run_task("bench", "CLEAN_UP", HOSTILE)
        assert (key.front_end_id, key.boot_epoch, key.nap_number) == ("bench", EPOCH, 0)
        task = await next_task(session)
        assert (key_of(task.key), task.resume_route, task.data) == (key, "CLEAN_UP", HOSTILE)
        assert (task.status, task.attempt) == (pb.CONTINUE_STATUS_OK, 1)
        assert (await client.get(key)).phase == pb.SUSPENSION_PHASE_CONTINUING
        session.answer(key, pb.CONTINUE_OUTCOME_APPLIED)
        async with asyncio.timeout(5):
            while not (await client.status()).counters.applied:
                await asyncio.sleep(0.01)
        with pytest.raises(errors.NotFound):
            await client.get(key)


async def test_tasks_have_numbers_of_their_own_and_come_in_time(sidecar: Sidecar) -> None:
    async with (
        aio.Client(sidecar.target) as client,
        FrontEndSession([sidecar.target], front_end_id="bench", boot_epoch=EPOCH) as session,
    ):
        await session.wait_connected(10)
        started = time.monotonic()
        keys = await asyncio.gather(*(client.run_task("bench", "R", str(number), 0.4) for number in range(100)))
        assert len(set(keys)) == 100
        found: dict[SuspensionKey, bytes] = {}
        async with asyncio.timeout(5):
            async for batch in session.batches():
                assert time.monotonic() - started >= 0.4, "early"
                for task in batch:
                    found[key_of(task.key)] = task.data
                    session.answer(key_of(task.key), pb.CONTINUE_OUTCOME_APPLIED)
                if len(found) == 100:
                    break
        assert found == {key: b"%d" % number for number, key in enumerate(keys)}


async def test_a_task_brings_what_its_operations_found() -> None:
    with Sidecar("--operations", "tests.support.sip_operations", "--group", "name=mail,workers=1") as sidecar:
        async with (
            aio.Client(sidecar.target) as client,
            FrontEndSession([sidecar.target], front_end_id="bench", boot_epoch=EPOCH) as session,
        ):
            await session.wait_connected(10)
            asked = [operation_message("directory", {"number": "4711"}, group="mail"), operation_message("pass")]
            key = await client.run_task("bench", "R", HOSTILE, operations=asked)
            task = await next_task(session)
            assert (key_of(task.key), task.data, task.status) == (key, HOSTILE, pb.CONTINUE_STATUS_OK)
            assert arguments_of(task.values) == {"uri": b"sip:4711@192.0.2.7", "call_id": b"", "digits": 4}
            session.answer(key, pb.CONTINUE_OUTCOME_APPLIED)
            await client.run_task("bench", "R", seconds=0.1, operations=[operation_message("hang")])
            assert (await next_task(session)).status == pb.CONTINUE_STATUS_TIMED_OUT
            with pytest.raises(errors.OperationUnknown, match="'nothing'"):
                await client.run_task("bench", "R", operations=[operation_message("nothing")])


async def test_a_task_is_cancelled_by_its_key(sidecar: Sidecar) -> None:
    async with (
        aio.Client(sidecar.target) as client,
        FrontEndSession([sidecar.target], front_end_id="bench", boot_epoch=EPOCH) as session,
    ):
        await session.wait_connected(10)
        key = await client.run_task("bench", "R", seconds=60)
        assert await client.cancel(key) == pb.CANCEL_OUTCOME_CANCELLED
        assert await client.cancel(key) == pb.CANCEL_OUTCOME_GONE


async def test_bad_tasks_are_told_why(sidecar: Sidecar) -> None:
    async with (
        aio.Client(sidecar.target) as client,
        FrontEndSession([sidecar.target], front_end_id="bench", boot_epoch=EPOCH) as session,
    ):
        await session.wait_connected(10)
        for error, call in [
            (errors.FrontEndUnknown, client.run_task("other", "R")),
            (errors.Invalid, client.run_task("bench", "no such route name")),
            (errors.DelayOutOfRange, client.run_task("bench", "R", seconds=101)),
            (errors.TooLarge, client.run_task("bench", "R", b"x" * 70_000)),
        ]:
            with pytest.raises(error) as caught:
                await call
            assert len(str(caught.value)) > 15, "says why"
        with pytest.raises(ValueError, match="not a time"):
            await client.run_task("bench", "R", seconds=-1)
        status = await client.status()
        assert (status.counters.refused, status.pending) == (4, 0)


async def test_an_accepted_task_survives_the_death_of_the_sidecar(tmp_path: Path) -> None:
    journal = f"sqlite:{tmp_path}/journal.sqlite3"
    with Sidecar("--journal", journal) as sidecar:
        async with FrontEndSession([sidecar.target], front_end_id="bench", boot_epoch=EPOCH) as session:
            await session.wait_connected(10)
            async with aio.Client(sidecar.target) as client:
                key = await client.run_task("bench", "R", HOSTILE, seconds=0.5)
            sidecar.kill()
            with Sidecar("--journal", journal, port=sidecar.port):
                task = await next_task(session, 10)
                assert (key_of(task.key), task.data) == (key, HOSTILE)


async def test_a_task_is_handed_to_the_sidecar_that_has_the_front_end(redis: RedisServer) -> None:
    with Sidecar("--journal", redis.url) as owner, Sidecar("--journal", redis.url) as other:
        async with (
            FrontEndSession([owner.target], front_end_id="bench", boot_epoch=EPOCH) as session,
            aio.Client(other.target) as client,
        ):
            await session.wait_connected(10)
            key = await client.run_task("bench", "R", HOSTILE)
            task = await next_task(session)
            assert (key_of(task.key), task.data) == (key, HOSTILE)
            with pytest.raises(errors.Invalid, match="no such name"):
                await client.run_task("bench", "no such name")


async def test_the_command_prints_the_key(sidecar: Sidecar) -> None:
    async with FrontEndSession([sidecar.target], front_end_id="bench", boot_epoch=EPOCH) as session:
        await session.wait_connected(10)
        code, said, _ = await asyncio.to_thread(run_task, sidecar, "bench", "R", "--data", "déjà vu")
        task = await next_task(session)
        assert (code, said) == (0, f"{'/'.join(map(str, key_of(task.key)))}\n")
        assert task.data == "déjà vu".encode()
        code, said, _ = await asyncio.to_thread(run_task, sidecar, "bench", "LATER", "--seconds", "60")
        with sync.Client(sidecar.target) as client:
            assert client.get(SuspensionKey.parse(said.strip())).suspension.delay.seconds == 60
    code, said, complaint = await asyncio.to_thread(run_task, sidecar, "nobody", "R")
    assert (code, said) == (1, "")
    assert re.fullmatch(r"sipnap run-task: .*'nobody' has no session.*\n", complaint)


def run_task(sidecar: Sidecar, *words: str) -> tuple[int, str, str]:
    front_end, route, *more = words
    done = subprocess.run(
        sipnap("run-task", "--sidecar", sidecar.target, "--front-end", front_end, route, *more),
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr
