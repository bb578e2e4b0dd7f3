"""Sidecars that share their remote workers, in one process: queue and letters in memory, workers played by the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from sipnap.sidecar.core.engine import Engine
from sipnap.sidecar.core.groups import JobResult, JobState, WorkerGroup, WorkerKind
from sipnap.sidecar.core.leases import Lease, Worker
from sipnap.sidecar.core.suspension import Held, Limits, NapKey, OperationRequest, Phase, Request, Status
from sipnap.sidecar.dispatcher import Dispatcher
from sipnap.sidecar.hand_over import HandOver, OwnerRefused
from sipnap.sidecar.journal.memory import MemoryJournal
from sipnap.sidecar.journal.tasks import Taken
from sipnap.sidecar.workers import guest_tasks, owned_jobs, results
from sipnap.sidecar.workers.remote import Desk, RemotePool, Task
from sipnap.sidecar.workers.results import TaskResult
from sipnap.sidecar.workers.shared import SharedPool, SharedQueue
from sipnap.v1 import suspension_pb2 as pb
from sipnap.v1 import worker_service_pb2 as wire
from tests.support.task_store import MemoryStore, Queue
from tests.unit.test_hand_over import MemoryMailbox, Post


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_tasks, "_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(owned_jobs, "_RETRY_SECONDS", 0.01)


class Stream:
    """A worker, as its stream: what it was given, and what it is to stop."""

    def __init__(self, node: Node, places: int, *operations: str) -> None:
        self.leases: list[Lease[Task]] = []
        self.cancelled: list[int] = []
        self.said_go_away = False
        self._desk = node.desk
        self.worker: Worker[Task] = self._desk.join("w", operations or ("look",), self)
        self._desk.hear(self.worker, places)

    def send_lease(self, lease: Lease[Task]) -> None:
        self.leases.append(lease)

    def send_cancel(self, lease_id: int) -> None:
        self.cancelled.append(lease_id)

    def send_go_away(self) -> None:
        self.said_go_away = True

    def said(self, index: int = -1) -> wire.Lease:
        message = wire.Lease()
        self.leases[index].task.describe(message)
        return message

    def answer(self, result: JobResult | None, *, more: int = 1) -> None:
        """End the latest lease; None: it was not begun."""
        self._desk.finish(self.worker, self.leases[-1].lease_id, result)
        self._desk.hear(self.worker, more)

    def die(self) -> None:
        self._desk.leave(self.worker)


class Node:
    """One sidecar."""

    def __init__(self, name: str, queue: Queue, post: Post) -> None:
        self.name = name
        self._post = post
        self.group = WorkerGroup("far", 0, 10, WorkerKind.REMOTE)
        self.engine = Engine(asyncio.get_running_loop().time, Limits(), [self.group])
        self.dispatcher = Dispatcher(self.engine, MemoryJournal())
        self.letters = HandOver(MemoryMailbox(post, name), name, self.refuse, lambda: None)
        self.pool = SharedPool(self.dispatcher, MemoryStore(queue, name), name)
        self.remote = RemotePool(self.dispatcher, 10.0, self.pool.make_queue)
        self.dispatcher.pools[WorkerKind.REMOTE] = self.pool
        self.pool.start(self.remote, self.letters)
        self.reader = asyncio.create_task(self.letters.serve_forever())

    async def refuse(self, call: str, request: bytes) -> bytes:
        raise OwnerRefused(b"")

    @property
    def desk(self) -> Desk:
        return self.remote.desk(self.group)

    def own(self) -> None:
        """The front end's session is here from now on."""
        self._post.owners["proxy"] = self.name
        self.engine.attach("proxy", 1)

    async def accept(self, number: int = 1, operation: str = "look", **policy: float) -> Held:
        """Hold a suspension with an operation."""
        front_end = self.engine.front_ends["proxy"]
        payload = pb.Suspension(
            operations=[pb.Operation(name=operation, prefix="p_")], state={"call_id": b"%d" % number}
        )
        wanted = OperationRequest(
            operation, "far", "p_", policy.get("timeout_seconds"), int(policy.get("max_attempts", 0))
        )
        request = Request(NapKey(1, number, 1, 1), "R", 30.0, None, payload.SerializeToString(), (wanted,))
        held, _ = self.engine.reserve(front_end, request)
        self.dispatcher.submit([held], lambda error: None)
        await self.dispatcher.commit_once()
        return held

    def lose(self) -> None:
        """Another sidecar owns the front end now."""
        self.dispatcher._disown({self.engine.front_ends["proxy"]: "another"})


class Bench:
    def __init__(self) -> None:
        self.queue, post = Queue(), Post()
        self.a, self.b = Node("a", self.queue, post), Node("b", self.queue, post)
        self.a.own()


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with running() as bench:
        yield bench


@asynccontextmanager
async def running() -> AsyncIterator[Bench]:
    bench = Bench()
    try:
        yield bench
    finally:
        for node in (bench.a, bench.b):
            await node.pool.close()
            node.reader.cancel()
        await asyncio.sleep(0)


async def until(condition: Callable[[], object], seconds: float = 3.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.001)


NAME = "proxy/1/1/1/1#0"
FOUND = JobResult(values=(pb.NamedValue(name="p_it").SerializeToString(),))
LOST = JobResult("worker_lost", "gone", retry_after_seconds=0.0)


@pytest.mark.parametrize("where", ["a", "b"])
async def test_a_worker_here_or_there_answers(bench: Bench, where: str) -> None:
    worker = Stream(getattr(bench, where), 2)
    held = await bench.a.accept()
    await until(lambda: worker.leases)
    said = worker.said()
    assert (said.operation, said.attempt, said.key.transaction_index, said.state.call_id) == ("look", 1, 1, b"1")
    assert worker.leases[0].task.prefix == "p_"
    await until(lambda: len(bench.a.group.running) == 1)
    assert bench.a.group.queued == 0
    worker.answer(FOUND)
    await until(lambda: held.phase is Phase.CONTINUING)
    assert (held.status, held.values) == (Status.OK, FOUND.values)
    assert not bench.queue.entries
    await until(lambda: bench.a.pool.busy + bench.b.pool.busy == 0)
    assert (bench.a.group.succeeded, len(bench.a.group.running)) == (1, 0)


async def test_a_worker_gets_no_more_than_it_has_places(bench: Bench) -> None:
    worker, other = Stream(bench.a, 2), Stream(bench.b, 1, "other")
    for number in range(1, 6):
        await bench.a.accept(number)
    await until(lambda: len(worker.leases) == 2)
    await asyncio.sleep(0.03)
    assert (len(worker.leases), other.leases, bench.a.group.queued) == (2, [], 3)
    worker.answer(FOUND)
    await until(lambda: len(worker.leases) == 3)


async def test_a_worker_that_dies_costs_an_attempt_and_the_next_goes_first(bench: Bench) -> None:
    first = Stream(bench.b, 1)
    held = await bench.a.accept()
    await until(lambda: first.leases)
    await bench.a.accept(2)
    first.die()
    second = Stream(bench.b, 1)
    await until(lambda: second.leases)
    assert (second.said().key.transaction_index, second.said().attempt) == (1, 2)
    (job,) = held.jobs
    await until(lambda: job.attempt == 2)
    assert bench.a.group.retried == 1
    second.answer(LOST)
    await until(lambda: len(second.leases) == 2)
    assert second.said().attempt == 3
    second.answer(LOST, more=0)
    await until(lambda: held.phase is Phase.CONTINUING)
    assert (held.status, held.error_code) == (Status.FAILED, "worker_lost")


async def test_what_was_not_begun_costs_no_attempt(bench: Bench) -> None:
    worker = Stream(bench.b, 1)
    await bench.a.accept()
    await until(lambda: worker.leases)
    worker.answer(None)
    await until(lambda: len(worker.leases) == 2)
    assert worker.said().attempt == 1


async def test_an_error_that_asks_for_it_is_tried_again_by_the_owner(bench: Bench) -> None:
    worker = Stream(bench.b, 1)
    held = await bench.a.accept()
    for attempt in (1, 2, 3):
        await until(lambda attempt=attempt: len(worker.leases) == attempt)  # type: ignore[misc]  # an int
        assert worker.said().attempt == attempt
        worker.answer(JobResult("busy", "come back", retry_after_seconds=0.001))
    await until(lambda: held.phase is Phase.CONTINUING)
    assert (held.error_code, held.error, bench.a.group.retried) == ("busy", "look: come back", 2)


async def test_an_attempt_that_times_out_is_dropped_before_the_next_is_put(bench: Bench) -> None:
    worker = Stream(bench.b, 2)
    held = await bench.a.accept(timeout_seconds=0.05, max_attempts=2)
    await until(lambda: len(worker.leases) == 2)
    assert worker.said().attempt == 2
    assert bench.queue.calls[:3] == [f"put {NAME}", f"drop {NAME}", f"put {NAME}"]
    assert worker.cancelled == [worker.leases[0].lease_id]
    await until(lambda: held.phase is Phase.CONTINUING)
    assert held.status is Status.TIMED_OUT
    await until(lambda: not bench.queue.entries)


async def test_a_result_of_a_former_attempt_counts_for_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the queue does not know yet that it is over."""
    monkeypatch.setattr(owned_jobs, "_RETRY_SECONDS", 0.5)
    worker = Stream(bench.b, 1)
    held = await bench.a.accept(timeout_seconds=0.05, max_attempts=3)
    await until(lambda: worker.leases)
    taken = worker.leases[0].task
    assert isinstance(taken, guest_tasks.GuestTask)
    bench.queue.is_down = True
    await until(lambda: held.jobs[0].attempt == 2 and held.jobs[0].state is JobState.AWAY)
    bench.queue.is_down = False
    queue = bench.a.desk.queue
    assert isinstance(queue, SharedQueue)
    assert await queue.owned.settle([TaskResult(taken.held.taken, 1, FOUND)], is_sure=True) == [True]
    assert bench.queue.calls[-1] == f"finish {NAME} VALID"
    assert held.phase is Phase.PENDING


async def test_a_cancelled_call_stops_what_runs_for_it(bench: Bench) -> None:
    worker = Stream(bench.b, 1)
    held = await bench.a.accept()
    await until(lambda: worker.leases)
    bench.a.dispatcher.cancel("proxy", held.key)
    await until(lambda: worker.cancelled == [worker.leases[0].lease_id])
    assert not bench.queue.entries
    assert (bench.b.pool.busy, bench.a.group.running) == (0, set())


async def test_what_was_never_taken_is_dropped_too(bench: Bench) -> None:
    held = await bench.a.accept()
    await until(lambda: bench.queue.entries)
    bench.a.dispatcher.cancel("proxy", held.key)
    await until(lambda: not bench.queue.entries)
    assert bench.a.group.queued == 0


# Owners


async def test_a_former_owner_drops_nothing_and_the_result_goes_to_the_new_one(bench: Bench) -> None:
    worker = Stream(bench.b, 1)
    await bench.a.accept()
    await until(lambda: worker.leases)
    bench.b.own()
    bench.a.lose()
    held = await bench.b.accept()  # as restored from the journal
    await until(lambda: bench.queue.calls.count(f"put {NAME}") == 2)
    worker.answer(FOUND)
    await until(lambda: held.phase is Phase.CONTINUING)
    assert held.status is Status.OK
    assert (f"drop {NAME}" in bench.queue.calls, len(worker.leases)) == (False, 1)


async def test_a_former_owner_puts_nothing(bench: Bench) -> None:
    bench.queue.is_down = True
    await bench.a.accept()
    bench.b.own()
    bench.a.lose()
    await bench.b.accept()
    bench.queue.is_down = False
    await until(lambda: bench.queue.entries)
    await asyncio.sleep(0.05)
    assert bench.queue.calls == [f"put {NAME}"]
    assert bench.queue.entries[NAME].owner == "b"


async def test_a_result_waits_until_its_front_end_is_loaded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Stream(bench.b, 1)
    held = await bench.a.accept()
    await until(lambda: worker.leases)
    asked: list[str] = []

    def is_claiming(front_end_id: str) -> bool:
        asked.append(front_end_id)
        return True

    with monkeypatch.context() as claiming:
        claiming.setattr(bench.a.dispatcher, "is_claiming", is_claiming)
        worker.answer(FOUND)
        await until(lambda: len(asked) >= 3)
        assert (held.phase, NAME in bench.queue.entries) == (Phase.PENDING, True)
    await until(lambda: held.phase is Phase.CONTINUING)


async def test_results_wait_for_an_owner(bench: Bench) -> None:
    worker = Stream(bench.b, 1)
    await bench.a.accept()
    await until(lambda: worker.leases)
    bench.a.letters._mailbox._post.owners.clear()  # type: ignore[attr-defined]  # of MemoryMailbox
    bench.a.lose()
    worker.answer(FOUND)
    await asyncio.sleep(0.05)
    assert NAME in bench.queue.entries
    bench.a.own()
    held = await bench.a.accept()
    await until(lambda: held.phase is Phase.CONTINUING)
    assert len(worker.leases) == 1


async def test_what_nobody_knows_ends_with_its_result(bench: Bench) -> None:
    """Its suspension has ended at an owner that died before it could drop the task."""
    worker = Stream(bench.b, 1)
    await bench.a.accept()
    await until(lambda: worker.leases)
    bench.a.lose()
    bench.a.own()
    worker.answer(FOUND)
    await until(lambda: not bench.queue.entries)
    await until(lambda: bench.b.pool.busy == 0)


# The queue


async def test_a_queue_that_is_down_costs_time_alone(bench: Bench) -> None:
    worker = Stream(bench.b, 1)
    bench.queue.is_down = True
    held = await bench.a.accept()
    await asyncio.sleep(0.05)
    bench.queue.is_down = False
    await until(lambda: worker.leases)
    bench.queue.is_down = True
    worker.answer(FOUND)
    await asyncio.sleep(0.05)
    bench.queue.is_down = False
    await until(lambda: held.phase is Phase.CONTINUING)
    assert len(worker.leases) == 1


async def test_a_task_of_which_the_answer_was_lost_is_found_again(bench: Bench) -> None:
    bench.queue.loses_next_take = True
    await bench.a.accept()
    await until(lambda: bench.queue.entries)
    worker = Stream(bench.b, 1)
    await until(lambda: worker.leases)
    assert worker.said().attempt == 1


async def test_what_the_queue_has_forgotten_is_put_again(bench: Bench) -> None:
    held = await bench.a.accept()
    await until(lambda: bench.queue.entries)
    bench.queue.entries.clear()
    await until(lambda: bench.queue.entries)
    worker = Stream(bench.b, 1)
    await until(lambda: worker.leases)
    worker.answer(FOUND)
    await until(lambda: held.phase is Phase.CONTINUING)


async def test_a_sidecar_that_was_taken_for_dead_stops_what_it_has(bench: Bench) -> None:
    slow = Stream(bench.b, 1)
    held = await bench.a.accept()
    await until(lambda: slow.leases)
    bench.queue.take_from("b")
    worker = Stream(bench.a, 1)
    await until(lambda: slow.cancelled and (worker.leases or len(slow.leases) == 2))
    assert bench.b.pool.busy <= 1
    again = worker if worker.leases else slow
    assert again.said().attempt == 2
    again.answer(FOUND)
    await until(lambda: held.phase is Phase.CONTINUING)


async def test_what_a_sidecar_has_lost_and_got_again_runs_once_there(bench: Bench) -> None:
    worker = Stream(bench.b, 2)
    held = await bench.a.accept()
    await until(lambda: worker.leases)
    bench.queue.take_from("b")
    await until(lambda: len(worker.leases) == 2)
    assert (worker.cancelled, worker.said().attempt) == ([worker.leases[0].lease_id], 2)
    worker.answer(FOUND)
    await until(lambda: held.phase is Phase.CONTINUING)


async def test_a_stale_result_is_not_used(bench: Bench) -> None:
    slow = Stream(bench.b, 1)
    held = await bench.a.accept()
    await until(lambda: slow.leases)
    bench.queue.take_from("b")
    slow.answer(JobResult("stale", "too late"), more=0)
    await until(lambda: f"finish {NAME} STALE" in bench.queue.calls)
    assert held.phase is Phase.PENDING
    worker = Stream(bench.a, 1)
    await until(lambda: worker.leases)
    worker.answer(FOUND)
    await until(lambda: held.status is Status.OK and held.phase is Phase.CONTINUING)


async def test_a_task_whose_last_attempt_was_lost_with_its_sidecar_fails(bench: Bench) -> None:
    slow = Stream(bench.b, 1)
    held = await bench.a.accept(max_attempts=1)
    await until(lambda: slow.leases)
    bench.queue.take_from("b")
    worker = Stream(bench.a, 1)
    await until(lambda: held.phase is Phase.CONTINUING)
    assert (held.error_code, worker.leases) == ("worker_lost", [])
    await until(lambda: not bench.queue.entries)


async def test_a_task_that_cannot_be_read_fails(bench: Bench) -> None:
    held = await bench.a.accept()
    await until(lambda: bench.queue.entries)
    entry = bench.queue.entries[NAME]
    object.__setattr__(entry.task, "body", b"\xff\xff")
    worker = Stream(bench.b, 1)
    await until(lambda: held.phase is Phase.CONTINUING)
    assert (held.error_code, worker.leases) == ("task_damaged", [])


async def test_tasks_of_others_take_room(bench: Bench) -> None:
    for number in range(1, 11):
        await bench.a.accept(number)
    bench.b.desk.wake()
    await until(lambda: bench.b.group.queued_elsewhere == 10)
    assert (bench.a.group.room, bench.b.group.room) == (0, 0)
    assert bench.a.group.queued_elsewhere == 0


# The end


async def test_who_leaves_takes_nothing_more_and_gives_back_the_rest(bench: Bench) -> None:
    worker = Stream(bench.b, 1)
    await bench.a.accept()
    await until(lambda: worker.leases)
    bench.b.pool.leave()
    assert (worker.said_go_away, bench.b.pool.busy) == (True, 1)
    await bench.a.accept(2)
    late = Stream(bench.b, 1)
    await asyncio.sleep(0.03)
    assert (len(worker.leases), late.leases) == (1, [])
    await bench.b.pool.close()
    other = Stream(bench.a, 2)
    await until(lambda: len(other.leases) == 2)
    assert [other.said(index).attempt for index in (0, 1)] == [2, 1]


async def test_what_was_on_its_way_to_one_that_leaves_goes_to_another_at_once(bench: Bench) -> None:
    worker = Stream(bench.b, 1)
    await asyncio.sleep(0.01)
    bench.queue.gate = asyncio.Event()
    await bench.a.accept()
    await until(lambda: bench.queue.entries and bench.queue.entries[NAME].holder == "b")
    bench.b.pool.leave()
    closing = asyncio.create_task(bench.b.pool.close())
    await asyncio.sleep(0.01)
    bench.queue.gate.set()
    await closing
    other = Stream(bench.a, 1)
    await until(lambda: other.leases)
    assert (worker.leases, other.said().attempt) == ([], 1)


# Letters


async def test_letters_that_make_no_sense_harm_nobody(bench: Bench) -> None:
    held = await bench.a.accept()
    for news in (b"", b"far", b"far\nwhat", b"far\nproxy/1/1/1/1#0 x", b"\xff\n\xff", b"none\nx 1"):
        await bench.b.letters.tell("a", b"begun", news)
        await bench.b.letters.tell("a", b"gone", news)
    await bench.b.letters.tell("a", b"unheard-of", b"")
    for request in (b"far\nwhat", b"far\n\0\1\0\0\0\0x"):
        with pytest.raises(OwnerRefused):
            await bench.b.letters.ask("proxy", "Results", request)
    worker = Stream(bench.b, 1)
    await until(lambda: worker.leases)
    worker.answer(FOUND)
    await until(lambda: held.phase is Phase.CONTINUING)


def test_results_are_the_same_after_their_travel() -> None:
    taken = Taken(NAME, "look up", "17-0", "abc", 2)
    sent = [
        TaskResult(taken, 3, FOUND),
        TaskResult(taken._replace(deliveries=1), 1, JobResult()),
        TaskResult(taken, 1, JobResult("busy", "später", retry_after_seconds=0.0)),
        TaskResult(taken, 1, JobResult("no", "")),
    ]
    assert results.unpack(results.pack(sent)) == sent
    assert results.unpack(b"") == []
    assert results.unpack_attempts(results.pack_attempts([(NAME, 2), ("x", 11)])) == [(NAME, 2), ("x", 11)]
