"""Worker groups of kind process for real: the sidecar's own children, some of which are killed."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest

from sipnap.client import aio
from sipnap.v1 import admin_service_pb2 as admin
from sipnap.v1 import suspension_pb2 as pb
from sipnap.v1 import worker_service_pb2 as wire
from sipnap.v1.admin_service_pb2_grpc import AdminServiceStub
from sipnap.v1.worker_service_pb2_grpc import WorkerServiceStub
from tests.support.processes import Sidecar, wait_until
from tests.support.worker_driver import MODULE, Driver, driving, group_status, until_group, values_of


def children_of(pid: int) -> list[int]:
    """Process ids of the living children of a process."""
    try:
        words = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [int(word) for word in words if is_alive(int(word))]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@contextmanager
def sidecar_of(workers: int, *flags: str) -> Iterator[Sidecar]:
    """A sidecar with a group "near" of so many processes."""
    group = f"name=near,kind=process,workers={workers}"
    with Sidecar("--group", group, "--operations", MODULE, *flags) as process:
        yield process


async def set_workers(target: str, workers: int) -> None:
    async with grpc.aio.insecure_channel(target) as channel:
        await AdminServiceStub(channel).SetWorkers(admin.SetWorkersRequest(group="near", workers=workers))


async def pids_at_work(driver: Driver, count: int) -> set[object]:
    """The processes that answer, once so many of them do."""
    async with asyncio.timeout(20):
        while True:
            numbers = [driver.ask("echo", {"ms": 50}, group="near") for _ in range(2 * count)]
            pids: set[object] = {values_of(await driver.answer(number))["pid"] for number in numbers}
            if len(pids) >= count:
                return pids


async def test_each_worker_is_a_process_of_its_own() -> None:
    with sidecar_of(3) as sidecar:
        async with driving(sidecar.target) as driver:
            pids = await pids_at_work(driver, 3)
            assert pids == set(children_of(sidecar.pid))
            assert sidecar.pid not in pids


async def test_handlers_that_compute_leave_the_sidecar_alone() -> None:
    with sidecar_of(2) as sidecar:
        async with driving(sidecar.target) as driver, aio.Client(sidecar.target) as client:
            await pids_at_work(driver, 2)
            numbers = [driver.ask("spin", {"ms": 700}, group="near") for _ in range(2)]
            started_seconds = time.monotonic()
            longest_seconds = 0.0
            while not all(number in driver.came for number in numbers):
                asked_seconds = time.monotonic()
                await client.status()
                longest_seconds = max(longest_seconds, time.monotonic() - asked_seconds)
                await asyncio.sleep(0.02)
            assert time.monotonic() - started_seconds >= 0.7
            assert longest_seconds < 0.5
            assert len({values_of(await driver.answer(number))["pid"] for number in numbers}) == 2


@pytest.mark.parametrize(("max_attempts", "lost"), [(1, True), (3, False)])
async def test_a_killed_process_is_replaced_and_each_of_its_operations_ends_once(max_attempts: int, lost: bool) -> None:
    with sidecar_of(3) as sidecar:
        async with driving(sidecar.target) as driver:
            before = await pids_at_work(driver, 3)
            driver.came.clear()
            asked_before = driver.asked
            for round_ in range(40):
                for _ in range(3):
                    driver.ask("echo", {"ms": 40}, group="near", max_attempts=max_attempts)
                await asyncio.sleep(0.02)
                if round_ in (10, 25):
                    os.kill(children_of(sidecar.pid)[0], signal.SIGKILL)
            driver.asked -= asked_before
            await driver.all_answers()
            assert driver.repeated == 0
            statuses = driver.statuses()
            if lost:
                assert statuses.keys() == {"OK", "FAILED worker_lost"}
                assert 1 <= statuses["FAILED worker_lost"] <= 2
            else:
                assert statuses == {"OK": 120}
                assert 1 <= (await group_status(sidecar.target, "near")).retried <= 2
            driver.asked += asked_before
            after = await pids_at_work(driver, 3)
            assert len(after - before) == 2, "two were replaced"
            assert sidecar.output().count("process worker ended, it is replaced") == 2
            assert "signal=SIGKILL" in sidecar.output()


async def test_a_job_that_kills_its_process_costs_that_process_alone() -> None:
    with sidecar_of(2) as sidecar:
        async with driving(sidecar.target) as driver:
            await pids_at_work(driver, 2)
            deadly = driver.ask("die", group="near")
            harmless = [driver.ask("echo", {"ms": 30}, group="near") for _ in range(20)]
            assert (await driver.answer(deadly)).error_code == "worker_lost"
            for number in harmless:
                assert (await driver.answer(number)).status == pb.CONTINUE_STATUS_OK
            await pids_at_work(driver, 2)


async def test_a_process_that_stands_still_loses_its_job_to_another() -> None:
    with sidecar_of(2, "--lease-seconds", "1") as sidecar:
        async with driving(sidecar.target) as driver:
            await pids_at_work(driver, 2)
            number = driver.ask("echo", {"ms": 600}, group="near", max_attempts=2)
            await until_group(sidecar.target, lambda group: group.busy == 1, name="near")
            for pid in children_of(sidecar.pid):
                os.kill(pid, signal.SIGSTOP)
            async with asyncio.timeout(10):
                while "lease ran out" not in sidecar.output():
                    await asyncio.sleep(0.02)
            for pid in children_of(sidecar.pid):
                os.kill(pid, signal.SIGCONT)
            assert (await driver.answer(number)).status == pb.CONTINUE_STATUS_OK
            assert len(driver.came[number]) == 1
            await pids_at_work(driver, 2)


async def test_a_process_whose_handler_heeds_nothing_ends_and_is_replaced() -> None:
    with sidecar_of(1) as sidecar:
        async with driving(sidecar.target) as driver:
            (before,) = await pids_at_work(driver, 1)
            hanging = driver.ask("hang", group="near", timeout_seconds=0.2)
            assert (await driver.answer(hanging)).error_code == "timeout"
            later = driver.ask("echo", group="near")
            answer = await driver.answer(later, 25)  # 10 s until it counts as stuck
            assert answer.status == pb.CONTINUE_STATUS_OK
            assert values_of(answer)["pid"] != before
            assert "operation hang blocks for 10 s after nobody waited for it any more" in sidecar.output()
            assert "exit_code=1" in sidecar.output()


async def test_the_number_of_processes_changes_while_they_work() -> None:
    with sidecar_of(1) as sidecar:
        async with driving(sidecar.target) as driver:
            await pids_at_work(driver, 1)
            for workers in (3, 1, 2):
                numbers = [driver.ask("echo", {"ms": 100}, group="near", max_attempts=1) for _ in range(12)]
                await set_workers(sidecar.target, workers)
                for number in numbers:
                    assert (await driver.answer(number)).status == pb.CONTINUE_STATUS_OK
                wait_until(
                    lambda workers=workers: len(children_of(sidecar.pid)) == workers,  # type: ignore[misc]
                    15,
                    lambda: f"{len(children_of(sidecar.pid))} processes",
                )
            group = await group_status(sidecar.target, "near")
            assert (group.failed, group.retried, group.workers) == (0, 0, 2)


def test_no_process_outlives_its_sidecar() -> None:
    with sidecar_of(2) as sidecar:
        wait_until(lambda: len(children_of(sidecar.pid)) == 2, 15, "two processes")
        children = children_of(sidecar.pid)
        assert sidecar.stop() == 0
        assert not any(map(is_alive, children))
    with sidecar_of(2) as sidecar:
        wait_until(lambda: len(children_of(sidecar.pid)) == 2, 15, "two processes")
        children = children_of(sidecar.pid)
        os.kill(sidecar.pid, signal.SIGKILL)  # the process alone, not its group
        wait_until(lambda: not any(map(is_alive, children)), 10, "their end")


async def test_a_sidecar_that_drains_lets_its_processes_finish() -> None:
    with sidecar_of(2) as sidecar:
        async with driving(sidecar.target) as driver:
            await pids_at_work(driver, 2)
            driver.came.clear()
            asked_before = driver.asked
            for _ in range(6):
                driver.ask("echo", {"ms": 200}, group="near")
            await until_group(sidecar.target, lambda group: group.busy == 2, name="near")
            os.killpg(sidecar.pid, signal.SIGTERM)  # as a terminal's Ctrl-C reaches all of its group
            driver.asked -= asked_before
            await driver.all_answers()
            assert driver.statuses() == Counter({"OK": 6})
        assert sidecar.wait(10) == 0


def test_what_killed_sidecars_left_behind_is_swept_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    with sidecar_of(1) as living, sidecar_of(1) as killed:
        wait_until(lambda: len(children_of(living.pid)) == 1, 15, "its process")
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait(5)
        left_behind = sorted(tmp_path.glob("sipnap-workers-*"))
        assert [path.stat().st_mode & 0o777 for path in left_behind] == [0o700] * 2
        for path in left_behind:
            os.utime(path, (1, 1))
        with sidecar_of(1) as next_one:
            assert len(list(tmp_path.glob("sipnap-workers-*"))) == 2, "of the living one and of the next one"
            assert next_one.stop() == 0
        assert living.stop() == 0
    assert list(tmp_path.glob("sipnap-workers-*")) == []


async def test_from_outside_nobody_joins_a_group_of_processes() -> None:
    with sidecar_of(1) as sidecar:
        hello = wire.WorkerHello(protocol_version=1, worker_id="guest", group="near", operations=["echo"])
        async with grpc.aio.insecure_channel(sidecar.target) as channel:
            call = WorkerServiceStub(channel).Work(None)
            await call.write(wire.WorkRequest(hello=hello))
            with pytest.raises(grpc.aio.AioRpcError, match="'near' is no group of kind remote here"):
                await call.read()


async def test_an_operation_that_the_processes_do_not_have_is_refused_at_the_door() -> None:
    with sidecar_of(1) as sidecar:
        async with driving(sidecar.target) as driver:
            answer = await driver.answer(driver.ask("nobody_knows_it", group="near"))
            assert answer.status == pb.CONTINUE_STATUS_FAILED
            assert answer.error.startswith("refused: operation_unknown")


def test_processes_that_do_not_start_are_tried_again_with_pauses() -> None:
    group = "name=near,kind=process,workers=2"
    with Sidecar("--group", group, "--operations", "tests.support.broken_operations") as sidecar:
        complaint = "process worker does not start, what it printed says why"
        wait_until(lambda: sidecar.output().count(complaint) >= 4, 20, "the second try of both")
        pauses = [float(text) for text in re.findall(r"next_try_seconds=([\d.]+)", sidecar.output())]
        assert max(pauses[:2]) < 0.5
        assert all(pause < 1.0 for pause in pauses[:4])
        assert "cannot be imported: a library is missing" in sidecar.output()
        assert "exit_code=2" in sidecar.output()
        started_seconds = time.monotonic()
        assert sidecar.stop() == 0
        assert time.monotonic() - started_seconds < 4
