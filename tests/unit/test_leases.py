"""Leases of remote workers: each rule by itself, then all of them in any order against a model."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from sipnap.sidecar.core.leases import MOST_CREDITS, LeaseBook, Worker
from tests.support.clock import ManualClock

LEASE_SECONDS = 10.0
FOR_EVER = 1e9


@dataclass(eq=False)
class Task:
    operation: str = "look"
    attempt: int = 1
    endings: int = 0
    number: int = 0

    def __repr__(self) -> str:
        return f"task {self.number}"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def book(clock: ManualClock) -> LeaseBook[Task]:
    return LeaseBook(clock, LEASE_SECONDS)


def joined(book: LeaseBook[Task], places: int, *operations: str) -> Worker[Task]:
    worker = book.join("w", operations or ("look",))
    book.grant(worker, places)
    return worker


def test_without_credits_a_worker_gets_nothing(book: LeaseBook[Task]) -> None:
    worker = joined(book, 0)
    assert not book.offers("look")
    with pytest.raises(LookupError, match="look"):
        book.hand_out(Task(), FOR_EVER)
    book.grant(worker, 1)
    assert book.offers("look")


def test_each_task_takes_one_credit_and_its_end_gives_none_back(book: LeaseBook[Task]) -> None:
    worker = joined(book, 2)
    first, _ = book.hand_out(Task(), FOR_EVER), book.hand_out(Task(), FOR_EVER)
    assert (worker.credits, book.capacity, book.offers("look")) == (0, 2, False)
    assert book.end(worker, first.lease_id) is first.task
    assert (worker.credits, book.capacity, book.offers("look")) == (0, 1, False)
    book.grant(worker, 1)
    assert (book.capacity, book.offers("look")) == (2, True)


def test_only_a_worker_that_knows_the_operation_is_asked(book: LeaseBook[Task]) -> None:
    joined(book, 5, "look", "listen")
    smelling = joined(book, 5, "smell")
    assert book.hand_out(Task("smell"), FOR_EVER).worker is smelling
    assert not book.offers("taste")


def test_workers_with_credits_take_turns(book: LeaseBook[Task]) -> None:
    first, second, third = joined(book, 2), joined(book, 1), joined(book, 3)
    assert [book.hand_out(Task(), FOR_EVER).worker for _ in range(6)] == [first, second, third, first, third, third]


def test_a_slow_worker_holds_no_more_than_its_credits(book: LeaseBook[Task]) -> None:
    slow, fast = joined(book, 1), joined(book, 1)
    book.hand_out(Task(), FOR_EVER)
    for _ in range(50):
        lease = book.hand_out(Task(), FOR_EVER)
        assert lease.worker is fast
        book.end(fast, lease.lease_id)
        book.grant(fast, 1)
    assert len(slow.leases) == 1


def test_a_lease_that_is_not_extended_ends_at_its_time_and_its_result_is_stale(
    book: LeaseBook[Task], clock: ManualClock
) -> None:
    worker = joined(book, 3)
    lease = book.hand_out(Task(), FOR_EVER)
    assert book.next_due_seconds() == clock() + LEASE_SECONDS
    clock.advance(LEASE_SECONDS - 0.001)
    assert book.pop_expired() == []
    clock.advance(0.001)
    assert book.pop_expired() == [lease]
    assert book.end(worker, lease.lease_id) is None
    assert not book.extend(worker, lease.lease_id)
    assert not book.revoke(lease)
    assert book.next_due_seconds() is None


def test_an_extended_lease_lasts_for_another_lease_time(book: LeaseBook[Task], clock: ManualClock) -> None:
    worker = joined(book, 1)
    lease = book.hand_out(Task(), FOR_EVER)
    for _ in range(5):
        clock.advance(LEASE_SECONDS * 0.9)
        assert book.extend(worker, lease.lease_id)
        assert book.pop_expired() == []
    clock.advance(LEASE_SECONDS)
    assert book.pop_expired() == [lease]


def test_no_extension_goes_past_the_time_of_the_task_itself(book: LeaseBook[Task], clock: ManualClock) -> None:
    worker = joined(book, 2)
    end_seconds = clock() + 3
    lease = book.hand_out(Task(), end_seconds)
    clock.advance(2)
    assert book.extend(worker, lease.lease_id)
    assert book.next_due_seconds() == end_seconds
    clock.advance(1)
    assert book.pop_expired() == [lease]
    assert not worker.is_silent, "it did nothing wrong: the task's own time was over"
    assert book.offers("look")


def test_a_silent_worker_gets_nothing_until_it_is_heard_of(book: LeaseBook[Task], clock: ManualClock) -> None:
    worker = joined(book, 2)
    book.hand_out(Task(), FOR_EVER)
    clock.advance(LEASE_SECONDS)
    book.pop_expired()
    assert (worker.is_silent, book.offers("look"), book.capacity) == (True, False, 0)
    book.grant(worker, 1)
    assert not book.offers("look"), "credits alone, as from a message that was on the way, are no sign of life"
    book.hear(worker)
    assert (book.offers("look"), book.capacity) == (True, 2)


def test_a_worker_that_leaves_returns_what_it_had_in_order(book: LeaseBook[Task]) -> None:
    worker = joined(book, 5)
    tasks = [Task() for _ in range(4)]
    leases = [book.hand_out(task, FOR_EVER) for task in tasks]
    book.end(worker, leases[1].lease_id)
    assert [lease.task for lease in book.leave(worker)] == [tasks[0], tasks[2], tasks[3]]
    assert (book.capacity, book.offers("look"), list(book.workers), book.next_due_seconds()) == (0, False, [], None)
    assert book.end(worker, leases[0].lease_id) is None
    book.grant(worker, 1)
    assert not book.offers("look"), "what its stream still brings counts no more"
    assert book.leave(worker) == []


def test_a_draining_worker_keeps_what_it_has_and_gets_nothing_more(book: LeaseBook[Task]) -> None:
    worker = joined(book, 5)
    lease = book.hand_out(Task(), FOR_EVER)
    book.drain(worker)
    book.grant(worker, 1)
    book.hear(worker)
    assert (book.offers("look"), book.capacity) == (False, 1)
    assert book.end(worker, lease.lease_id) is lease.task


def test_a_revoked_lease_is_over(book: LeaseBook[Task], clock: ManualClock) -> None:
    worker = joined(book, 1)
    lease = book.hand_out(Task(), FOR_EVER)
    assert book.revoke(lease)
    assert not book.revoke(lease)
    assert book.end(worker, lease.lease_id) is None
    assert not book.offers("look"), "the worker is still at it, for all we know"
    clock.advance(LEASE_SECONDS)
    assert book.pop_expired() == []


def test_lease_ids_are_of_one_worker(book: LeaseBook[Task]) -> None:
    first, second = joined(book, 1), joined(book, 1)
    lease_of_first, lease_of_second = book.hand_out(Task(), FOR_EVER), book.hand_out(Task(), FOR_EVER)
    assert (lease_of_first.lease_id, lease_of_second.lease_id) == (1, 1)
    assert book.end(first, 1) is lease_of_first.task
    assert book.find(second, 1) is lease_of_second


def test_credits_have_a_bound(book: LeaseBook[Task]) -> None:
    worker = joined(book, 2**32 - 1)
    book.grant(worker, 2**32 - 1)
    assert worker.credits == MOST_CREDITS


MOST_ATTEMPTS = 3


class Fleet(RuleBasedStateMachine):
    """Everything that may happen to tasks and workers, in any order. A lost or expired lease costs an attempt."""

    workers = Bundle("workers")

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.book: LeaseBook[Task] = LeaseBook(self.clock, LEASE_SECONDS)
        self.tasks: list[Task] = []
        self.queue: deque[Task] = deque()
        self.granted: dict[Worker[Task], int] = {}
        self.handed_out: dict[Worker[Task], int] = {}
        self.leased: dict[tuple[Worker[Task], int], Task] = {}
        self.stale: list[tuple[Worker[Task], int]] = []

    def _end(self, task: Task) -> None:
        task.endings += 1

    def _retry(self, task: Task) -> None:
        if task.attempt < MOST_ATTEMPTS:
            task.attempt += 1
            self.queue.appendleft(task)
        else:
            self._end(task)

    def _over(self, worker: Worker[Task], lease_id: int) -> Task:
        self.stale.append((worker, lease_id))
        return self.leased.pop((worker, lease_id))

    @rule(operation=st.sampled_from(["look", "listen"]))
    def submit(self, operation: str) -> None:
        task = Task(operation, number=len(self.tasks))
        self.tasks.append(task)
        self.queue.append(task)

    @rule(target=workers, operations=st.sampled_from([("look",), ("listen",), ("look", "listen")]))
    def join(self, operations: tuple[str, ...]) -> Worker[Task]:
        worker = self.book.join("w", operations)
        self.granted[worker] = self.handed_out[worker] = 0
        return worker

    @rule(worker=workers, more=st.integers(0, 4))
    def grant(self, worker: Worker[Task], more: int) -> None:
        self.book.hear(worker)
        self.book.grant(worker, more)
        self.granted[worker] += more

    @rule()
    def hand_out(self) -> None:
        for task in list(self.queue):
            if self.book.offers(task.operation):
                lease = self.book.hand_out(task, self.clock() + 1000)
                assert lease.worker in self.book.workers
                assert task.operation in lease.worker.operations
                self.queue.remove(task)
                self.handed_out[lease.worker] += 1
                self.leased[lease.worker, lease.lease_id] = task

    @precondition(lambda self: self.leased)
    @rule(data=st.data(), how=st.sampled_from(["complete", "fail", "release", "extend", "revoke"]))
    def answer(self, data: st.DataObject, how: str) -> None:
        worker, lease_id = data.draw(st.sampled_from(sorted(self.leased, key=lambda key: self.leased[key].number)))
        if how == "extend":
            assert self.book.extend(worker, lease_id)
            return
        task = self._over(worker, lease_id)
        if how == "revoke":
            lease = self.book.find(worker, lease_id)
            assert lease is not None
            assert self.book.revoke(lease)
            self._end(task)
            return
        assert self.book.end(worker, lease_id) is task
        match how:
            case "complete":
                self._end(task)
            case "fail":
                self._retry(task)
            case "release":
                self.queue.appendleft(task)

    @precondition(lambda self: self.stale)
    @rule(data=st.data())
    def answer_stale(self, data: st.DataObject) -> None:
        worker, lease_id = data.draw(st.sampled_from(self.stale))
        before = self._counts()
        assert self.book.end(worker, lease_id) is None
        assert not self.book.extend(worker, lease_id)
        assert self._counts() == before

    def _counts(self) -> list[tuple[int, int, bool]]:
        return [(worker.credits, len(worker.leases), worker.is_silent) for worker in self.granted]

    @rule(worker=consumes(workers))
    def leave(self, worker: Worker[Task]) -> None:
        lost = self.book.leave(worker)
        had = sorted(lease_id for of, lease_id in self.leased if of is worker)
        assert [lease.task for lease in lost] == [self.leased[worker, lease_id] for lease_id in had]
        for lease_id in had:
            self._retry(self._over(worker, lease_id))

    @rule(worker=workers)
    def drain(self, worker: Worker[Task]) -> None:
        self.book.drain(worker)

    @rule(seconds=st.floats(0, 15))
    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        for lease in self.book.pop_expired():
            assert lease.worker.is_silent
            self._retry(self._over(lease.worker, lease.lease_id))

    @invariant()
    def never_more_leases_than_credits(self) -> None:
        for worker, granted in self.granted.items():
            assert self.handed_out[worker] <= granted
            if worker in self.book.workers:
                assert worker.credits == granted - self.handed_out[worker]

    @invariant()
    def the_book_has_what_the_model_has(self) -> None:
        held = {
            (worker, lease_id): lease.task for worker in self.book.workers for lease_id, lease in worker.leases.items()
        }
        assert held == self.leased

    @invariant()
    def a_task_is_in_one_place(self) -> None:
        places = [*self.queue, *self.leased.values(), *(task for task in self.tasks for _ in range(task.endings))]
        assert sorted(task.number for task in places) == list(range(len(self.tasks)))

    def teardown(self) -> None:
        """One worker that does everything comes, the others fall silent: every task ends, once."""
        self.advance(LEASE_SECONDS)
        self.advance(LEASE_SECONDS)
        rescuer = self.join(("look", "listen"))
        self.grant(rescuer, len(self.queue))
        for worker in list(self.book.workers):
            if worker is not rescuer:
                self.leave(worker)
        self.grant(rescuer, len(self.queue))
        self.hand_out()
        for worker, lease_id in list(self.leased):
            self._end(self._over(worker, lease_id))
            assert self.book.end(worker, lease_id) is not None
        assert [task.endings for task in self.tasks] == [1] * len(self.tasks)
        assert self.book.next_due_seconds() is None


TestFleet = Fleet.TestCase
TestFleet.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
