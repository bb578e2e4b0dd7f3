"""The jobs: every rule about the operations of suspensions.

A job is one attempt at one operation. `JobBook.judge` decides whether the operations are taken on at all, `give` makes
their jobs, `queue` offers them to the workers; `take` (or `begin`), then `finish` (or `release`) is what a worker does.
The engine owns the book, and tells it when somebody does not wait any more, and when a timer of a job has run out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping

from sipnap.sidecar.core.counters import Counters
from sipnap.sidecar.core.groups import (
    BAD_RESULT,
    DEFAULT_GROUP,
    TIMEOUT,
    Job,
    JobPolicy,
    JobResult,
    JobState,
    Policy,
    WorkerGroup,
    WorkerKind,
)
from sipnap.sidecar.core.suspension import Held, OperationRequest, Reason, Status, Work
from sipnap.sidecar.core.timers import Alarms

_PREFIX = re.compile(r"[A-Za-z0-9_]{0,32}\Z")
_MOST_OPERATIONS = 8
_MOST_ATTEMPTS = 10

_REMOTE_POLICY = JobPolicy(max_attempts=3)
"""What only remote workers know is run like this: a worker that dies must not cost the call its answer."""


class JobBook:
    """All jobs of one sidecar, and the worker groups that they are for."""

    def __init__(
        self,
        clock: Callable[[], float],
        alarms: Alarms[Job],
        counters: Counters,
        on_concluded: Callable[[Held], None],
        *,
        groups: Iterable[WorkerGroup],
        operations: Mapping[str, Policy],
        max_result_bytes: int,
    ) -> None:
        """Begin empty.

        Args:
            clock: Monotonic seconds.
            alarms: Sets timers; `expire` is called when one has run out.
            counters: Where refusals count.
            on_concluded: Called with a suspension whose last operation has ended, before its time.
            groups: The worker groups; a "default" one of no workers is added if there is none.
            operations: The operations that the workers know, by name; remote workers may know others.
            max_result_bytes: Most that one operation may find.
        """
        self.groups = {group.name: group for group in groups}
        """The worker groups by name."""
        self.groups.setdefault(DEFAULT_GROUP, WorkerGroup(DEFAULT_GROUP, 0, 0))
        self._clock = clock
        self._alarms = alarms
        self._refusal = counters.refusal
        self._on_concluded = on_concluded
        self._operations = operations
        self._max_result_bytes = max_result_bytes
        self._stopped: list[Job] = []
        self._stirred: dict[WorkerGroup, None] = {}

    # What is asked for

    def judge(self, operations: tuple[OperationRequest, ...]) -> list[tuple[OperationRequest, WorkerGroup]]:
        """Look for who runs the operations of one suspension; nothing is taken on yet.

        Raises:
            Refused: One of them is not accepted, or there is no room for it.
        """
        if len(operations) > _MOST_OPERATIONS:
            raise self._refusal(Reason.INVALID, f"{len(operations)} operations in one nap, at most {_MOST_OPERATIONS}")
        judged = [(operation, self._judge(operation)) for operation in operations]
        for group, count in Counter(group for _, group in judged).items():
            if group.room < count:
                group.refused += 1
                raise self._refusal(
                    Reason.FULL,
                    f"{group.queued} jobs wait in group {group.name!r} already (of at most {group.max_queued})",
                    group.retry_after_seconds(),
                )
        return judged

    def _judge(self, operation: OperationRequest) -> WorkerGroup:
        group = self.groups.get(operation.group or DEFAULT_GROUP)
        if group is None:
            raise self._refusal(Reason.OPERATION_UNKNOWN, f"no worker group {operation.group[:80]!r} (--group)")
        known = group.operations
        if known is None and group.kind is not WorkerKind.REMOTE:
            known = self._operations
            if not group.workers:
                raise self._refusal(Reason.OPERATION_UNKNOWN, f"no workers in group {group.name!r}")
        if not operation.name or (known is not None and operation.name not in known):
            where = "--operations" if known is self._operations else f"of the workers of group {group.name!r}"
            raise self._refusal(Reason.OPERATION_UNKNOWN, f"no operation {operation.name[:80]!r} ({where})")
        if not _PREFIX.match(operation.prefix):
            raise self._refusal(Reason.INVALID, f"prefix {operation.prefix[:80]!r} is not up to 32 of [A-Za-z0-9_]")
        if operation.max_attempts > _MOST_ATTEMPTS:
            raise self._refusal(
                Reason.INVALID, f"max_attempts is {operation.max_attempts}, expected 0 to {_MOST_ATTEMPTS}"
            )
        if operation.timeout_seconds is not None and operation.timeout_seconds <= 0:
            raise self._refusal(Reason.INVALID, f"timeout of {operation.timeout_seconds:g} s is not more than 0")
        return group

    def give(self, held: Held, work: list[tuple[OperationRequest, WorkerGroup]], delay_seconds: float) -> None:
        """Make the jobs of a suspension; each has a place in its group's bound from now on."""
        held.work = Work([operation.name for operation, _ in work], work[0][1].name, delay_seconds)
        for index, (operation, group) in enumerate(work):
            job = Job(held, index, operation.name, group, self._policy_of(operation, group))
            held.work.jobs.append(job)
            group.reserve(job)

    def give_back(self, held: Held, operations: tuple[OperationRequest, ...], delay_seconds: float) -> None:
        """`give` for what a journal kept: nothing is refused, it was accepted.

        What belongs to a group that is gone, because the settings changed meanwhile, is for the default one.
        """
        default = self.groups[DEFAULT_GROUP]
        work = [(operation, self.groups.get(operation.group, default)) for operation in operations]
        self.give(held, work, delay_seconds)

    def _policy_of(self, operation: OperationRequest, group: WorkerGroup) -> Policy:
        policy: Policy = _REMOTE_POLICY
        if group.kind is not WorkerKind.REMOTE:
            policy = self._operations.get(operation.name, JobPolicy())
        if operation.timeout_seconds is None and not operation.max_attempts:
            return policy
        return JobPolicy(
            operation.timeout_seconds if operation.timeout_seconds is not None else policy.timeout_seconds,
            operation.max_attempts or policy.max_attempts,
            policy.backoff_seconds,
        )

    def queue(self, jobs: Iterable[Job]) -> None:
        """Offer jobs to the workers of their groups."""
        now = self._clock()
        for job in jobs:
            job.group.offer(job, now)
            self._stirred[job.group] = None

    # What the workers do

    def take(self, group: WorkerGroup, operations: Container[str] | None = None) -> Job | None:
        """A job for a worker that is free; None: no job, or none of these operations, or no worker is free.

        It ends by `finish` or `release`, once.
        """
        now = self._clock()
        job = group.take(now, operations)
        if job is not None:
            self._start(job, now)
        return job

    def begin(self, job: Job, attempt: int) -> None:
        """A worker of any sidecar has taken a job that was sent away, for this attempt: others may have lost it before.

        It ends by `finish`. One that is not away any more, and has that attempt, is left as it is.
        """
        now = self._clock()
        if job.state is JobState.AWAY:
            job.group.begin(job, now)
        elif job.state is not JobState.RUNNING or job.abandoned or attempt <= job.attempt:
            return
        job.group.retried += attempt - job.attempt
        job.attempt = attempt
        self._start(job, now)

    def finish(self, job: Job, result: JobResult) -> Held | None:
        """An attempt has ended; its worker is free. Returns the suspension if it is to be continued now.

        A job that has ended already changes nothing: a worker may be taken for dead and answer nevertheless.
        """
        if job.state is not JobState.RUNNING:
            return None
        now = self._clock()
        job.group.finish(job, now)
        self._stirred[job.group] = None
        if job.abandoned:
            return None
        self._alarms.disarm(job)
        size = sum(map(len, result.values))
        if size > self._max_result_bytes:
            text = f"it found {size} bytes, more than {self._max_result_bytes} (--max-entry-bytes)"
            result = JobResult(BAD_RESULT, text)
        pause_seconds = result.retry_after_seconds
        if result.error_code and pause_seconds is not None and self._try_again(job, pause_seconds, now):
            return None
        return self._end(job, result)

    def release(self, job: Job) -> None:
        """A worker gives a job back that it did not begin: another one gets it, and it costs no attempt."""
        if job.state is JobState.RUNNING:
            self._alarms.disarm(job)
            job.group.release(job, self._clock())
            self._stirred[job.group] = None

    def resize(self, group: WorkerGroup, workers: int) -> None:
        """Give a group another number of workers. More may run at once; of too many, each finishes what it has."""
        group.workers = workers
        self._stirred[group] = None

    @property
    def running_count(self) -> int:
        """Jobs that workers have."""
        return sum(len(group.running) for group in self.groups.values())

    # What the edge is to do

    def take_stopped(self) -> list[Job]:
        """Jobs that run or were sent away, and that nobody waits for any more, since the last call.

        The edge stops them; `finish` follows for those that ran.
        """
        stopped, self._stopped = self._stopped, []
        return stopped

    def take_stirred(self) -> Iterable[WorkerGroup]:
        """Groups where somebody may have something to do now, since the last call: a job came, or a worker is free."""
        stirred, self._stirred = self._stirred, {}
        return stirred

    @property
    def has_news(self) -> bool:
        """Whether `take_stopped` or `take_stirred` has something to give."""
        return bool(self._stirred or self._stopped)

    # What nobody waits for any more

    def expire(self, job: Job, now_seconds: float) -> Held | None:
        """A pause is over, or an attempt has taken too long. Returns the suspension if it is to be continued now."""
        if job.state is JobState.PAUSING:
            self.queue([job])
        if job.state is not JobState.RUNNING or job.abandoned:
            return None
        job.abandoned = True
        self._stopped.append(job)
        if self._try_again(job, job.policy.backoff_seconds * 2 ** (job.attempt - 1), now_seconds):
            return None
        return self._end(job, JobResult(TIMEOUT, f"took longer than {now_seconds - job.started_seconds:.3g} s"))

    def time_out(self, work: Work) -> None:
        """The nap's own time has passed: what has not ended does not count any more."""
        seconds = work.delay_seconds
        for job in work.jobs:
            job.group.timed_out += 1
            text = f"took longer than the nap's {seconds:.3g} s"
            if job.attempt == 1 and job.state is not JobState.RUNNING:
                text = f"no worker of group {job.group.name!r} was free within the nap's {seconds:.3g} s"
            work.results[job.index] = JobResult(TIMEOUT, text)
        self._withdraw(work)
        work.conclude()
        work.status, work.error_code = Status.TIMED_OUT, TIMEOUT

    def abandon(self, work: Work) -> None:
        """The suspension is over, or another sidecar's: nobody waits for its jobs."""
        for job in work.jobs:
            job.group.abandoned += 1
        self._withdraw(work)

    # Within

    def _start(self, job: Job, now: float) -> None:
        """An attempt has begun."""
        job.ends_seconds = job.held.due_seconds
        timeout_seconds = job.policy.timeout_seconds
        self._alarms.disarm(job)
        if timeout_seconds is not None and now + timeout_seconds < job.ends_seconds:
            job.ends_seconds = now + timeout_seconds
            self._alarms.arm(job, job.ends_seconds)

    def _try_again(self, job: Job, pause_seconds: float, now: float) -> bool:
        """Put the next attempt in the place of one that has failed, if the policy and the nap's time have one left."""
        work = job.held.work
        if work is None or job.attempt >= job.policy.max_attempts or now + pause_seconds >= job.held.due_seconds:
            return False
        group, again = job.group, job.next_attempt()
        work.jobs[work.jobs.index(job)] = again
        group.retried += 1
        group.reserve(again)
        if pause_seconds > 0:
            again.state = JobState.PAUSING
            self._alarms.arm(again, now + pause_seconds)
        else:
            self.queue([again])
        return True

    def _end(self, job: Job, result: JobResult) -> Held | None:
        """Its last attempt has ended. Returns the suspension if it is to be continued now."""
        held, group = job.held, job.group
        work = held.work
        if work is None:
            return None
        if not result.error_code:
            group.succeeded += 1
        elif result.error_code == TIMEOUT:
            group.timed_out += 1
        else:
            group.failed += 1
        work.jobs.remove(job)
        work.results[job.index] = result
        if work.jobs:
            return None
        work.conclude()
        self._on_concluded(held)
        return held

    def _withdraw(self, work: Work) -> None:
        for job in work.jobs:
            self._alarms.disarm(job)
            if job.state is JobState.RUNNING or job.state is JobState.AWAY:
                self._stopped.append(job)
            job.group.withdraw(job)
        work.jobs = []
