"""The engine's rules about operations: queues, workers, attempts, several at once; under a clock that tests move."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sipnap.sidecar.core.engine import Engine
from sipnap.sidecar.core.groups import TIMEOUT, Job, JobPolicy, JobResult, JobState, WorkerGroup, WorkerKind
from sipnap.sidecar.core.suspension import (
    CancelOutcome,
    Held,
    LatePolicy,
    Limits,
    NapKey,
    OperationRequest,
    Phase,
    Reason,
    Refused,
    Request,
    Status,
)
from tests.support.clock import ManualClock

EPOCH = 7
BROKEN = JobResult("broken", "it broke")
AGAIN = JobResult("busy", "not now", retry_after_seconds=0.5)
GOOD = JobResult(values=(b"good",))


class Bench:
    """An engine with one connected front end and a group of each kind."""

    def __init__(self, workers: int = 2, max_queued: int = 3) -> None:
        self.clock = ManualClock()
        self.group = WorkerGroup("default", workers, max_queued)
        self.other = WorkerGroup("other", 1, 1)
        self.remote = WorkerGroup("remote", 0, 2, WorkerKind.REMOTE)
        policies = {
            "lookup": JobPolicy(),
            "patient": JobPolicy(timeout_seconds=1.0, max_attempts=3, backoff_seconds=0.25),
        }
        self.engine = Engine(self.clock, Limits(), [self.group, self.other, self.remote], policies)
        self.front_end = self.engine.attach("kamailio", EPOCH)
        self.number = 0

    def request(self, *operations: str | OperationRequest, seconds: float = 10.0) -> Request:
        self.number += 1
        wanted = tuple(OperationRequest(given) if isinstance(given, str) else given for given in operations)
        return Request(NapKey(EPOCH, self.number, 1, 1), "RESUME", seconds, None, b"payload", wanted)

    def accept(self, *operations: str | OperationRequest, seconds: float = 10.0) -> Held:
        held, _ = self.engine.reserve(self.front_end, self.request(*operations, seconds=seconds))
        self.engine.activate([held])
        return held

    def refused(self, *operations: str | OperationRequest) -> Refused:
        with pytest.raises(Refused) as caught:
            self.engine.reserve(self.front_end, self.request(*operations))
        return caught.value

    def take(self, group: WorkerGroup | None = None) -> Job:
        job = self.engine.jobs.take(group or self.group)
        assert job is not None
        return job

    def pass_time(self, seconds: float) -> list[Held]:
        """What is continued as it passes, in order."""
        self.clock.advance(seconds)
        due = self.engine.pop_due(1000)
        return due.answered + due.continues


@pytest.fixture
def bench() -> Bench:
    return Bench()


# Several operations


def test_several_operations_run_at_once_and_continue_together(bench: Bench) -> None:
    held = bench.accept("lookup", "patient")
    first, second = bench.take(), bench.take()
    assert {first.operation, second.operation} == {"lookup", "patient"}
    assert bench.engine.jobs.finish(second, JobResult(values=(b"2a", b"2b"))) is None
    assert held.phase is Phase.PENDING
    assert bench.engine.jobs.finish(first, JobResult(values=(b"1",))) is held
    assert (held.status, held.error, held.error_code) == (Status.OK, "", "")
    assert held.values == (b"1", b"2a", b"2b"), "in the order of the request"


def test_what_failed_is_named_and_the_rest_is_delivered(bench: Bench) -> None:
    held = bench.accept("lookup", "patient")
    first, second = bench.take(), bench.take()
    bench.engine.jobs.finish(first, GOOD)
    assert bench.engine.jobs.finish(second, BROKEN) is held
    assert (held.status, held.error, held.error_code) == (Status.FAILED, "patient: it broke", "broken")
    assert held.values == (b"good",)


def test_the_first_in_the_request_that_failed_gives_the_code(bench: Bench) -> None:
    held = bench.accept("lookup", "lookup")
    first, second = bench.take(), bench.take()
    bench.engine.jobs.finish(second, BROKEN)
    bench.engine.jobs.finish(first, JobResult("no_answer", "nobody there"))
    assert (held.error_code, held.error) == ("no_answer", "lookup: nobody there; lookup: it broke")


def test_the_naps_own_time_bounds_all(bench: Bench) -> None:
    held = bench.accept("lookup", "lookup", OperationRequest("lookup", "other"), "lookup", seconds=5.0)
    done, running = bench.take(), bench.take()
    bench.engine.jobs.finish(done, GOOD)
    bench.group.workers = 1  # so that the fourth waits for ever
    assert bench.pass_time(5.0) == [held]
    assert (held.status, held.error_code, held.values) == (Status.TIMED_OUT, TIMEOUT, (b"good",))
    assert held.error == (
        "lookup: took longer than the nap's 5 s; "
        "lookup: no worker of group 'other' was free within the nap's 5 s; "
        "lookup: no worker of group 'default' was free within the nap's 5 s"
    )
    assert bench.engine.jobs.take_stopped() == [running]
    assert bench.engine.jobs.finish(running, GOOD) is None, "too late to be heard"
    assert held.values == (b"good",)
    assert (bench.group.queued, bench.other.queued) == (0, 0)
    assert (bench.group.timed_out, bench.other.timed_out, bench.group.succeeded) == (2, 1, 1)


def test_a_nap_of_which_something_failed_before_its_time_has_timed_out_nevertheless(bench: Bench) -> None:
    held = bench.accept("lookup", "lookup", seconds=5.0)
    bench.engine.jobs.finish(bench.take(), BROKEN)
    bench.take()
    bench.pass_time(5.0)
    assert (held.status, held.error_code) == (Status.TIMED_OUT, TIMEOUT)
    assert held.error == "lookup: it broke; lookup: took longer than the nap's 5 s"


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ([OperationRequest("lookup")] * 9, Reason.INVALID),
        ([OperationRequest("")], Reason.OPERATION_UNKNOWN),
        ([OperationRequest("", "remote")], Reason.OPERATION_UNKNOWN),
        ([OperationRequest("nothing")], Reason.OPERATION_UNKNOWN),
        ([OperationRequest("lookup", "nowhere")], Reason.OPERATION_UNKNOWN),
        ([OperationRequest("lookup", prefix="a-b")], Reason.INVALID),
        ([OperationRequest("lookup", prefix="p" * 33)], Reason.INVALID),
        ([OperationRequest("lookup", max_attempts=11)], Reason.INVALID),
        ([OperationRequest("lookup", timeout_seconds=0.0)], Reason.INVALID),
        ([OperationRequest("lookup"), OperationRequest("nothing")], Reason.OPERATION_UNKNOWN),
    ],
)
def test_refusals(bench: Bench, wanted: list[OperationRequest], reason: Reason) -> None:
    assert bench.refused(*wanted).reason is reason
    assert bench.engine.held_count == 0
    assert bench.group.room == 5, "no place is kept for what was refused"


def test_a_group_whose_workers_say_what_they_can_run_takes_nothing_else(bench: Bench) -> None:
    bench.accept(OperationRequest("anything", "remote"))
    bench.remote.operations = {"score"}
    assert bench.refused(OperationRequest("anything", "remote")).reason is Reason.OPERATION_UNKNOWN
    bench.accept(OperationRequest("score", "remote"))


# Attempts


def test_an_attempt_that_takes_too_long_is_stopped_and_made_again(bench: Bench) -> None:
    held = bench.accept("patient")
    first = bench.take()
    assert first.ends_seconds == bench.clock() + 1.0
    assert bench.pass_time(0.999) == []
    assert bench.engine.jobs.take_stopped() == []
    bench.pass_time(0.001)
    assert bench.engine.jobs.take_stopped() == [first]
    assert bench.engine.jobs.finish(first, GOOD) is None, "its answer comes too late"
    assert held.phase is Phase.PENDING
    assert bench.group.take(0.0) is None, "not before its pause is over"
    bench.pass_time(0.25)
    second = bench.take()
    assert (second.attempt, second is first) == (2, False)
    bench.pass_time(1.0)
    bench.engine.jobs.finish(second, GOOD)
    bench.pass_time(0.499)
    assert bench.engine.jobs.take(bench.group) is None, "the pause doubles"
    bench.pass_time(0.001)
    third = bench.take()
    assert bench.pass_time(1.0) == [held]
    assert (held.status, held.error_code, held.error) == (Status.TIMED_OUT, TIMEOUT, "patient: took longer than 1 s")
    assert bench.engine.jobs.take_stopped() == [second, third]
    assert (bench.group.retried, bench.group.timed_out, bench.group.failed) == (2, 1, 0)


def test_a_sidecar_that_was_stopped_for_long_loses_nothing(bench: Bench) -> None:
    held = bench.accept("patient", OperationRequest("patient", "other", max_attempts=1), seconds=10.0)
    bench.take()
    bench.take(bench.other)
    assert bench.pass_time(20.0) == [held], "all timers at once: of both attempts, and of the nap itself"
    assert (held.phase, held.status) == (Phase.CONTINUING, Status.TIMED_OUT)
    last = bench.accept(OperationRequest("patient", max_attempts=1), seconds=3.0)
    bench.take()
    assert bench.pass_time(5.0) == [last], "the last attempt's timer, and the nap's own right after it"
    assert (last.phase, bench.engine.counters.lost) == (Phase.CONTINUING, 0)
    bench.pass_time(100.0)
    assert (last.phase, bench.engine.counters.lost) == (Phase.ENDED, 2)


def test_an_attempt_made_in_time_leaves_no_timer(bench: Bench) -> None:
    held = bench.accept("patient")
    assert len(bench.engine.timers) == 1
    job = bench.take()
    assert len(bench.engine.timers) == 2
    assert bench.engine.jobs.finish(job, GOOD) is held
    assert len(bench.engine.timers) == 1


def test_a_failure_says_when_it_is_worth_another_attempt(bench: Bench) -> None:
    held = bench.accept("patient")
    assert bench.engine.jobs.finish(bench.take(), AGAIN) is None
    assert (bench.group.queued, bench.group.running) == (0, set())
    bench.pass_time(0.499)
    assert bench.engine.jobs.take(bench.group) is None
    bench.pass_time(0.001)
    assert bench.engine.jobs.finish(bench.take(), GOOD) is held
    assert held.status is Status.OK
    assert (bench.group.retried, bench.group.succeeded, bench.group.failed) == (1, 1, 0)


@pytest.mark.parametrize(
    ("operation", "result", "attempts"),
    [
        ("patient", BROKEN, 1),
        ("lookup", AGAIN, 1),
        ("patient", AGAIN, 3),
        (OperationRequest("patient", max_attempts=2), AGAIN, 2),
        (OperationRequest("lookup", max_attempts=10), AGAIN, 10),
        (OperationRequest("anything", "remote"), AGAIN, 3),
        (OperationRequest("anything", "remote", max_attempts=1), AGAIN, 1),
    ],
)
def test_as_many_attempts_as_the_policy_says(
    bench: Bench, operation: str | OperationRequest, result: JobResult, attempts: int
) -> None:
    held = bench.accept(operation)
    group = bench.remote if isinstance(operation, OperationRequest) and operation.group else bench.group
    made = 0
    while held.phase is Phase.PENDING:
        made += 1
        job = bench.take(group)
        assert job.attempt == made
        bench.engine.jobs.finish(job, result)
        bench.pass_time(0.5)
    assert made == attempts
    assert (held.status, held.error_code) == (Status.FAILED, result.error_code)


def test_no_attempt_that_the_naps_time_does_not_last_for(bench: Bench) -> None:
    held = bench.accept("patient", seconds=0.5)
    assert bench.engine.jobs.finish(bench.take(), AGAIN) is held, "now, and not as timed out later"
    assert held.error_code == "busy"


def test_a_lost_worker_costs_an_attempt_and_no_place_in_the_queue(bench: Bench) -> None:
    lost = JobResult("worker_lost", "its worker died", retry_after_seconds=0.0)
    first, second = bench.accept("patient"), bench.accept("patient")
    assert bench.engine.jobs.finish(bench.take(), lost) is None
    job = bench.take()
    assert (job.held, job.attempt) == (first, 2)
    assert bench.take().held is second


def test_what_was_not_begun_goes_back_and_costs_nothing(bench: Bench) -> None:
    first, second = bench.accept("patient"), bench.accept("patient")
    job = bench.take()
    bench.engine.jobs.release(job)
    assert (bench.group.queued, len(bench.engine.timers)) == (2, 2)
    again = bench.take()
    assert (again, again.held, again.attempt) == (job, first, 1)
    assert bench.take().held is second
    assert bench.group.retried == 0


def test_what_was_not_begun_and_is_cancelled_is_gone(bench: Bench) -> None:
    held = bench.accept("patient")
    job = bench.take()
    bench.engine.cancel("kamailio", held.key)
    bench.engine.jobs.release(job)
    assert bench.engine.jobs.take(bench.group) is None
    assert (bench.group.queued, bench.group.running, len(bench.engine.timers)) == (0, set(), 0)


@pytest.mark.parametrize("state", [state for state in JobState if state is not JobState.AWAY])
def test_a_cancel_ends_a_job_wherever_it_stands(bench: Bench, state: JobState) -> None:
    held, _ = bench.engine.reserve(bench.front_end, bench.request("patient"))
    job = None
    if state is not JobState.RESERVED:
        bench.engine.activate([held])
        if state is not JobState.QUEUED:
            job = bench.take()
        if state in (JobState.PAUSING, JobState.ENDED):
            assert job is not None
            bench.engine.jobs.finish(job, AGAIN if state is JobState.PAUSING else GOOD)
    expected = CancelOutcome.CONTINUING if state is JobState.ENDED else CancelOutcome.CANCELLED
    assert bench.engine.cancel("kamailio", held.key) is expected
    assert bench.engine.jobs.take_stopped() == ([job] if state is JobState.RUNNING else [])
    if state is JobState.RUNNING:
        assert job is not None
        assert bench.group.running == {job}, "busy until the worker has let go"
        assert bench.engine.jobs.finish(job, GOOD) is None
        assert bench.engine.jobs.finish(job, GOOD) is None, "a second answer changes nothing"
    bench.pass_time(5.0)
    assert bench.engine.jobs.take(bench.group) is None
    assert (bench.group.room, bench.group.queued) == (5, 0)
    assert bench.group.abandoned == (state is not JobState.ENDED)


def test_what_is_too_large_is_not_delivered(bench: Bench) -> None:
    held = bench.accept("patient", "lookup")
    jobs = {job.operation: job for job in (bench.take(), bench.take())}
    bench.engine.jobs.finish(jobs["patient"], JobResult(values=(b"x" * 40_000, b"y" * 25_536)))
    assert bench.engine.jobs.finish(jobs["lookup"], JobResult(values=(b"x" * 40_000, b"y" * 25_537))) is held
    assert (held.error_code, sum(map(len, held.values))) == ("bad_result", 65_536)
    assert "--max-entry-bytes" in held.error


# Queues


def test_the_bound_counts_what_is_being_committed(bench: Bench) -> None:
    committing = [bench.engine.reserve(bench.front_end, bench.request("lookup"))[0] for _ in range(5)]
    refused = bench.refused("lookup")
    assert (refused.reason, refused.retry_after_seconds) == (Reason.FULL, None), "nobody knows yet how long jobs run"
    bench.engine.abandon(committing[:1])
    bench.engine.cancel("kamailio", committing[1].key)
    bench.accept("lookup", "lookup")
    assert bench.refused("lookup").reason is Reason.FULL
    assert bench.group.refused == 2


def test_a_nap_is_taken_with_all_of_its_operations_or_not_at_all(bench: Bench) -> None:
    assert bench.refused(*["lookup"] * 6).reason is Reason.FULL
    elsewhere = OperationRequest("lookup", "other")
    assert bench.refused("lookup", elsewhere, elsewhere, elsewhere).reason is Reason.FULL
    assert (bench.group.room, bench.other.room) == (5, 2)
    bench.accept(*["lookup"] * 5)


def test_a_refusal_says_when_it_is_worth_another_try(bench: Bench) -> None:
    bench.accept("lookup")
    job = bench.take()
    bench.pass_time(0.4)
    bench.engine.jobs.finish(job, GOOD)
    for _ in range(5):
        bench.accept("lookup")
    bench.take()
    bench.take()
    refused = bench.refused("lookup")
    assert refused.reason is Reason.FULL
    assert refused.retry_after_seconds == pytest.approx(0.4 * 3 / 2), "three wait for two workers"
    assert "'default'" in refused.message


def test_remote_workers_are_given_what_they_can_run_in_order(bench: Bench) -> None:
    names = ["b", "a"]
    first, second = (bench.accept(OperationRequest(name, "remote")) for name in names)
    assert bench.refused(OperationRequest("a", "remote")).reason is Reason.FULL
    assert bench.engine.jobs.take(bench.remote, {"c"}) is None
    taken = [bench.engine.jobs.take(bench.remote, {"a", "b"}) for _ in range(2)]
    assert [job.held for job in taken if job is not None] == [first, second]


def test_a_queue_that_nobody_serves_forgets_what_has_ended(bench: Bench) -> None:
    for _ in range(1000):
        for _ in range(2):
            bench.accept(OperationRequest("score", "remote"), seconds=1.0)
        bench.pass_time(1.0)
    assert bench.remote.queued == 0
    assert sum(map(len, bench.remote._queues.values())) < 100


def test_times_are_measured(bench: Bench) -> None:
    bench.accept("lookup")
    bench.clock.advance(0.3)
    job = bench.take()
    bench.clock.advance(2.0)
    bench.engine.jobs.finish(job, GOOD)
    assert bench.group.wait.sum_seconds == pytest.approx(0.3)
    assert bench.group.run.sum_seconds == pytest.approx(2.0)
    assert (sum(bench.group.wait.counts), sum(bench.group.run.counts)) == (1, 1)


# Recovery


def restore(bench: Bench, *operations: OperationRequest, due_seconds: float, policy: LatePolicy) -> Held:
    key = NapKey(EPOCH, 1, 1, 1)
    bench.engine.restore(
        "kamailio", key, "RESUME", b"payload", sequence=None, accepted_seconds=0.0,
        due_seconds=due_seconds, deadline_seconds=due_seconds + 60, operations=operations, late_policy=lambda: policy,
    )  # fmt: skip
    return bench.front_end.held[key.pack()]


def test_operations_are_recovered_all_of_them(bench: Bench) -> None:
    wanted = (OperationRequest("lookup"), OperationRequest("gone", "gone"), OperationRequest("lookup", "other"))
    held = restore(bench, *wanted, due_seconds=2000.0, policy=LatePolicy.FIRE)
    assert (bench.group.queued, bench.other.queued) == (2, 1), "a group that is gone is the default one"
    for group in (bench.group, bench.group, bench.other):
        bench.engine.jobs.finish(bench.take(group), GOOD)
    assert (held.phase, held.values) == (Phase.CONTINUING, (b"good",) * 3)


@pytest.mark.parametrize(
    ("policy", "status", "code"),
    [(LatePolicy.FIRE, Status.TIMED_OUT, "timeout"), (LatePolicy.FAIL, Status.FAILED, "late")],
)
def test_operations_of_what_is_late_are_not_begun(bench: Bench, policy: LatePolicy, status: Status, code: str) -> None:
    held = restore(bench, OperationRequest("lookup"), due_seconds=500.0, policy=policy)
    assert bench.engine.jobs.take(bench.group) is None
    assert bench.pass_time(0.0) == [held]
    assert (held.status, held.error_code) == (status, code)
    assert bench.group.room == 5


# Tasks


def test_a_task_needs_no_nap_number(bench: Bench) -> None:
    held, _ = bench.engine.reserve(bench.front_end, Request(NapKey(EPOCH, 1, 1, 0), "TASK", 0.001, None, b""))
    bench.engine.activate([held])
    assert bench.pass_time(0.001) == [held]


class WorkersMachine(RuleBasedStateMachine):
    """Workers come and go in any order; no job is dropped, none has two workers, and each nap is continued once."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(workers=2, max_queued=20)
        self.engine = self.bench.engine
        self.accepted: list[Held] = []
        self.jobs: set[Job] = set()
        self.attempts: Counter[tuple[int, int]] = Counter()
        self.answers: Counter[Held] = Counter()
        self.cancelled: set[Held] = set()

    @rule(
        operations=st.lists(st.sampled_from(["lookup", "patient"]), min_size=1, max_size=4),
        seconds=st.sampled_from([0.5, 3.0, 20.0]),
    )
    def suspend(self, operations: list[str], seconds: float) -> None:
        if self.bench.group.room < len(operations):
            assert self.bench.refused(*operations).reason is Reason.FULL
        else:
            self.accepted.append(self.bench.accept(*operations, seconds=seconds))

    @rule(workers=st.sampled_from([1, 2, 16, 64]))
    def resize(self, workers: int) -> None:
        self.engine.jobs.resize(self.bench.group, workers)

    @rule()
    def start(self) -> None:
        while (job := self.engine.jobs.take(self.bench.group)) is not None:
            assert job not in self.jobs, "runs once"
            assert not job.abandoned
            assert job.held.phase is Phase.PENDING, "somebody waits for it"
            self.attempts[job.held.sequence, job.index] += 1
            assert self.attempts[job.held.sequence, job.index] == job.attempt, "each attempt once"
            self.jobs.add(job)
        assert not self.bench.group.queued or len(self.bench.group.running) >= self.bench.group.workers

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), result=st.sampled_from([GOOD, BROKEN, AGAIN]))
    def finish(self, data: st.DataObject, result: JobResult) -> None:
        job = data.draw(st.sampled_from(sorted(self.jobs, key=lambda job: (job.held.sequence, job.index, job.attempt))))
        self.jobs.remove(job)
        held = self.engine.jobs.finish(job, result)
        if held is not None:
            self.answers[held] += 1

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0, 5.0]))
    def pass_time(self, seconds: float) -> None:
        self.answers.update(self.bench.pass_time(seconds))

    @precondition(lambda self: self.bench.front_end.pending)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        pending = [held for held in self.accepted if held.phase is Phase.PENDING]
        held = data.draw(st.sampled_from(pending))
        assert self.engine.cancel("kamailio", held.key) is CancelOutcome.CANCELLED
        self.cancelled.add(held)

    @invariant()
    def nothing_is_lost_and_nothing_doubled(self) -> None:
        group = self.bench.group
        assert group.running == self.jobs
        assert all(count == 1 for count in self.answers.values())
        assert not self.cancelled & self.answers.keys()
        waiting = [job for held in self.accepted for job in held.jobs]
        states = Counter(job.state for job in waiting)
        assert group.queued == states[JobState.QUEUED]
        assert group._reserved == states[JobState.PAUSING]
        assert states[JobState.RUNNING] == sum(not job.abandoned for job in self.jobs)
        assert states[JobState.ENDED] == states[JobState.RESERVED] == 0
        for held in self.accepted:
            assert (held.phase is Phase.PENDING) == bool(held.jobs), "somebody works on what is pending"
        jobs = sum(len(held.work.names) for held in self.accepted if held.work is not None)
        ended = group.succeeded + group.failed + group.timed_out + group.abandoned
        assert jobs == ended + len(waiting), "the counters add up"

    def teardown(self) -> None:
        for _ in range(3):
            self.engine.jobs.resize(self.bench.group, 64)
            self.start()
            for job in list(self.jobs):
                self.jobs.remove(job)
                held = self.engine.jobs.finish(job, GOOD)
                if held is not None:
                    self.answers[held] += 1
            self.pass_time(100.0)
        assert set(self.accepted) == self.cancelled | set(self.answers)
        assert self.bench.group.room == 64 + 20


WorkersMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestWorkers = WorkersMachine.TestCase
