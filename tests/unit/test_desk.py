"""The desk where remote workers get their tasks, here with a queue of the test's own; and what answers become."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Container

import pytest

from sipnap.sidecar.core.groups import Job, JobResult, WorkerGroup, WorkerKind
from sipnap.sidecar.core.leases import Lease, Worker
from sipnap.sidecar.services.worker import job_result
from sipnap.sidecar.workers.remote import Desk, Task
from sipnap.v1 import suspension_pb2 as pb
from sipnap.v1 import worker_service_pb2 as wire

LEASE_SECONDS = 0.05


class FakeTask:
    def __init__(self, operation: str = "look", lasts_seconds: float = 60.0) -> None:
        self.operation = operation
        self.prefix = ""
        self.ends_seconds = asyncio.get_running_loop().time() + lasts_seconds
        self.lease: Lease[Task] | None = None
        self.endings: list[JobResult | None] = []

    def describe(self, message: wire.Lease) -> None:
        message.operation = self.operation

    def done(self, result: JobResult) -> None:
        self.endings.append(result)

    def release(self) -> None:
        self.endings.append(None)


class FakeQueue:
    def __init__(self) -> None:
        self.tasks: deque[FakeTask] = deque()
        self.wanted: list[int] = []

    def take(self, operations: Container[str]) -> Task | None:
        for task in self.tasks:
            if task.operation in operations:
                self.tasks.remove(task)
                return task
        return None

    def want(self, places: int) -> None:
        self.wanted.append(places)

    def stop(self, job: Job) -> None:
        raise AssertionError("no job of this group")


class FakeStream:
    def __init__(self) -> None:
        self.leased: list[Task] = []
        self.cancelled: list[int] = []
        self.said_go_away = False

    def send_lease(self, lease: Lease[Task]) -> None:
        self.leased.append(lease.task)

    def send_cancel(self, lease_id: int) -> None:
        self.cancelled.append(lease_id)

    def send_go_away(self) -> None:
        self.said_go_away = True


class Bench:
    def __init__(self, kind: WorkerKind = WorkerKind.REMOTE) -> None:
        self.queue = FakeQueue()
        self.group = WorkerGroup("far", 0 if kind is WorkerKind.REMOTE else 3, 100, kind)
        self.desk = Desk(self.group, LEASE_SECONDS, lambda desk: self.queue)

    def worker(self, places: int, *operations: str) -> tuple[Worker[Task], FakeStream]:
        stream = FakeStream()
        worker = self.desk.join("w", operations or ("look",), stream)
        self.desk.hear(worker, places)
        return worker, stream

    def task(self, operation: str = "look", lasts_seconds: float = 60.0) -> FakeTask:
        task = FakeTask(operation, lasts_seconds)
        self.queue.tasks.append(task)
        self.desk.wake()
        return task


async def until(condition: object, seconds: float = 5.0) -> None:
    assert callable(condition)
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)


async def test_tasks_go_out_in_order_to_those_who_can_run_them() -> None:
    bench = Bench()
    tasks = [bench.task(operation) for operation in ("look", "smell", "look", "look")]
    _, seeing = bench.worker(2)
    assert seeing.leased == [tasks[0], tasks[2]]
    _, smelling = bench.worker(5, "smell", "look")
    assert smelling.leased == [tasks[1], tasks[3]]
    assert bench.queue.wanted[-1] == 3, "places that are free and have nothing"


async def test_the_group_has_as_many_workers_as_are_ready() -> None:
    bench, other = Bench(), Bench(WorkerKind.PROCESS)
    worker, _ = bench.worker(4)
    bench.worker(2)
    bench.task()
    assert bench.group.workers == 6
    bench.desk.finish(worker, 1, JobResult())
    bench.desk.hear(worker, 0)
    assert bench.group.workers == 5, "a place counts when its worker says that it is free"
    bench.desk.leave(worker)
    assert bench.group.workers == 2
    other.worker(1)
    assert other.group.workers == 3, "that of processes is what was set"


async def test_a_lost_worker_s_tasks_may_be_tried_again_at_once() -> None:
    bench = Bench()
    tasks = [bench.task() for _ in range(3)]
    worker, _ = bench.worker(2)
    assert bench.desk.leave(worker) == 2
    for task in tasks[:2]:
        assert task.endings == [JobResult("worker_lost", "worker w was lost", retry_after_seconds=0.0)]
    assert tasks[2].endings == []
    bench.desk.finish(worker, 1, JobResult())
    assert len(tasks[0].endings) == 1, "stale"


async def test_a_lease_that_is_not_extended_is_taken_back() -> None:
    bench = Bench()
    worker, stream = bench.worker(2)
    task = bench.task()
    await until(lambda: task.endings)
    assert task.endings[0] is not None
    assert (task.endings[0].error_code, task.endings[0].retry_after_seconds) == ("worker_lost", 0.0)
    assert stream.cancelled == [1]
    assert (bench.desk.find(worker, 1), bench.desk.extend(worker, [1])) == (None, [1])
    assert bench.group.workers == 0
    later = bench.task()
    assert stream.leased == [task], "it is not heard of"
    bench.desk.hear(worker, 0)
    assert stream.leased == [task, later]


async def test_extended_it_lasts_but_not_past_the_task_s_own_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sipnap.sidecar.workers.remote._END_GRACE_SECONDS", 0.0)
    bench = Bench()
    worker, stream = bench.worker(1)
    task = bench.task(lasts_seconds=0.2)
    started_seconds = asyncio.get_running_loop().time()
    async with asyncio.timeout(5):
        while not task.endings:
            assert bench.desk.extend(worker, [1]) == []
            await asyncio.sleep(0.005)
    assert asyncio.get_running_loop().time() - started_seconds >= 0.2
    assert task.endings[0] is not None
    assert task.endings[0].error_code == "timeout"
    assert task.endings[0].retry_after_seconds is None
    assert stream.cancelled == [1]
    assert not worker.is_silent


async def test_what_is_withdrawn_is_cancelled_at_the_worker() -> None:
    bench = Bench()
    worker, stream = bench.worker(1)
    task = bench.task()
    bench.desk.withdraw(task, JobResult("stopped"))
    assert (task.endings, stream.cancelled) == ([JobResult("stopped")], [1])
    bench.desk.withdraw(task, JobResult("stopped"))
    bench.desk.finish(worker, 1, JobResult())
    assert len(task.endings) == 1
    bench.task()
    assert len(stream.leased) == 1, "its place is not free before it says so"


async def test_what_was_not_begun_is_released() -> None:
    bench = Bench()
    worker, _ = bench.worker(1)
    task = bench.task()
    bench.desk.finish(worker, 1, None)
    bench.desk.finish(worker, 1, None)
    assert task.endings == [None]


async def test_a_worker_that_leaves_is_told_that_nothing_more_comes() -> None:
    bench = Bench()
    worker, stream = bench.worker(3)
    task = bench.task()
    bench.desk.drain(worker)
    assert stream.said_go_away
    bench.task()
    assert stream.leased == [task]
    bench.desk.finish(worker, 1, JobResult())
    assert task.endings == [JobResult()]


async def test_a_desk_that_closes_sends_its_workers_on() -> None:
    bench = Bench()
    (_, first), (_, second) = bench.worker(1), bench.worker(1)
    bench.desk.go_away()
    bench.task()
    assert first.said_go_away
    assert second.said_go_away
    assert first.leased == second.leased == []
    assert bench.group.workers == 0


def completed(*values: pb.NamedValue) -> wire.LeaseResult:
    return wire.LeaseResult(lease_id=1, completed=wire.LeaseCompleted(values=values))


def text(name: str, value: bytes = b"x") -> pb.NamedValue:
    return pb.NamedValue(name=name, value=pb.Value(text=value))


def failed(**fields: object) -> wire.LeaseResult:
    return wire.LeaseResult(lease_id=1, failed=wire.LeaseFailed(**fields))  # type: ignore[arg-type]  # as the test says


def test_values_get_the_prefix_that_was_asked_for() -> None:
    result = job_result(completed(text("a"), text("b")), "p_", 1000)
    assert [pb.NamedValue.FromString(value).name for value in result.values] == ["p_a", "p_b"]
    assert result.error_code == ""


def test_a_failure_keeps_its_words_and_its_wish() -> None:
    result = job_result(failed(error_code="no_luck", error="x" * 1000), "", 1000)
    assert result == JobResult("no_luck", "x" * 400)
    again = failed(error_code="no_luck", retry_after={"seconds": 2, "nanos": 500_000_000})
    assert job_result(again, "", 1000).retry_after_seconds == 2.5
    assert job_result(failed(error_code="x", retry_after={"seconds": -5}), "", 1000).retry_after_seconds == 0


_NESTED = pb.Value(list=pb.ValueList(values=[pb.Value(list=pb.ValueList())]))


@pytest.mark.parametrize(
    ("result", "code"),
    [
        (completed(text("no spaces")), "bad_result"),
        (completed(text("x" * 64)), "bad_result"),  # with the prefix one too long
        (completed(pb.NamedValue(name="empty")), "bad_result"),
        (completed(pb.NamedValue(name="nested", value=_NESTED)), "bad_result"),
        (completed(text("big", b"x" * 1000)), "bad_result"),
        (completed(*(text(f"v{number}", b"") for number in range(257))), "bad_result"),
        (wire.LeaseResult(lease_id=1), "bad_result"),
        (failed(error_code="No Code\r\n"), "error"),
        (failed(error_code=""), "error"),
    ],
)
def test_what_cannot_be_sent_on_becomes_a_failure(result: wire.LeaseResult, code: str) -> None:
    judged = job_result(result, "_", 100_000 if len(result.completed.values) > 1 else 1000)
    assert (judged.error_code, judged.values, judged.retry_after_seconds) == (code, (), None)
