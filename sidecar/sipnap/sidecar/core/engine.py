"""The engine: every rule about suspensions, in one place.

The edges feed it requests, answers and the passing of time, and carry out what it returns. The order of a suspension's
life is `reserve`, (the journal commits), `activate`, `pop_due`, (the continue travels), `settle`. One with operations
is queued by `activate`; its jobs are taken by `take_job` and end by `finish_job`, which may continue it early.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from sipnap.sidecar.core.front_ends import FrontEnd
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
from sipnap.sidecar.core.suspension import (
    LATE,
    CancelOutcome,
    Held,
    LatePolicy,
    Limits,
    NapKey,
    OperationRequest,
    Outcome,
    Phase,
    Reason,
    Refused,
    Request,
    Sleeper,
    Status,
    Work,
)
from sipnap.sidecar.core.timers import TimerHeap

_NO_EPOCH = 0  # no front end has it: in the contract it stands for the present one
_ROUTE = re.compile(r"[A-Za-z0-9_.:-]{1,64}\Z")
_PREFIX = re.compile(r"[A-Za-z0-9_]{0,32}\Z")

_MOST_OPERATIONS = 8
_MOST_ATTEMPTS = 10

_REMOTE_POLICY = JobPolicy(max_attempts=3)
"""What only remote workers know is run like this: a worker that dies must not cost the call its answer."""


@dataclass(slots=True)
class Counters:
    """What has happened since the start."""

    accepted: int = 0
    """Suspensions accepted."""
    refused: dict[Reason, int] = field(default_factory=lambda: dict.fromkeys(Reason, 0))
    """Suspensions and sleeps refused."""
    cancelled: int = 0
    """Suspensions cancelled before their time."""
    outcomes: dict[Outcome, int] = field(default_factory=lambda: dict.fromkeys(Outcome, 0))
    """Continues answered for; those of an ended life of their front end count as gone."""
    lost: int = 0
    """Suspensions given up at their deadline: nobody answered for the continue."""
    slept: int = 0
    """Sleeps that ran their time."""
    dropped: int = 0
    """Suspensions that were late at a restart and whose policy is to end then."""
    fenced: int = 0
    """Writes that the journal refused because another sidecar owned the front end by then."""


@dataclass(frozen=True, slots=True)
class Due:
    """Whose time has come."""

    continues: list[Held]
    """To be sent to their front ends."""
    sleepers: list[Sleeper]
    """To be woken."""
    answered: list[Held]
    """To be sent to their front ends as well, before their time: the last attempt of their operations has timed out."""


class Engine:
    """All suspensions and sleepers of one sidecar. Not thread-safe: it belongs to one event loop."""

    def __init__(
        self,
        clock: Callable[[], float],
        limits: Limits,
        groups: Iterable[WorkerGroup] = (),
        operations: Mapping[str, Policy] | None = None,
    ) -> None:
        """Begin empty.

        Args:
            clock: Monotonic seconds.
            limits: What to refuse.
            groups: The worker groups; a "default" one of no workers is added if there is none.
            operations: The operations that the workers know, by name; remote workers may know others.
        """
        self.limits = limits
        self.counters = Counters()
        self.groups = {group.name: group for group in groups}
        self.groups.setdefault(DEFAULT_GROUP, WorkerGroup(DEFAULT_GROUP, 0, 0))
        self.front_ends: dict[str, FrontEnd] = {}
        self.draining = False
        self.journal_error = ""
        """Why the journal takes nothing at present; empty: it does."""
        self.timers: TimerHeap[Held | Sleeper | Job] = TimerHeap()
        self.sleepers = 0
        self._operations = operations or {}
        self._clock = clock
        self._last_sequence = 0
        self._ended: list[Held] = []
        self._stopped_jobs: list[Job] = []
        self._stirred_groups: dict[WorkerGroup, None] = {}

    # Front ends

    def attach(self, front_end_id: str, boot_epoch: int) -> FrontEnd:
        """A front end has said Hello. What it held in an earlier life is gone (its transactions died with it).

        The caller sends again what is in `FrontEnd.continuing`, marked by `mark_sent`.

        Raises:
            Refused: There are too many front ends.
        """
        front_end = self.front_ends.get(front_end_id)
        if front_end is None:
            front_end = self._make_front_end(front_end_id, boot_epoch)
        elif front_end.boot_epoch != boot_epoch:
            for held in list(front_end.held.values()):
                if held.key.boot_epoch != boot_epoch and held.phase is not Phase.COMMITTING:
                    self.counters.outcomes[Outcome.GONE] += 1
                    self._end(held)
            front_end.boot_epoch = boot_epoch
        front_end.connected = True
        return front_end

    def detach(self, front_end: FrontEnd) -> None:
        """Its session has ended; its suspensions stay."""
        front_end.connected = False
        front_end.gone_since_seconds = self._clock()

    def adopt(self, front_end_id: str) -> FrontEnd:
        """Make room for a front end that another sidecar held, to be restored and attached.

        Raises:
            Refused: There are too many front ends.
        """
        front_end = self._make_front_end(front_end_id, _NO_EPOCH)
        front_end.gone_since_seconds = float("-inf")
        return front_end

    def disown(self, front_end: FrontEnd) -> None:
        """Another sidecar holds it now: forget everything of it. Nothing fires, nothing counts as ended."""
        for held in front_end.held.values():
            held.phase = Phase.ENDED
            self.timers.disarm(held)
            if held.work is not None:
                self._abandon_jobs(held.work)
        front_end.committing = 0
        front_end.held.clear()
        front_end.continuing.clear()
        front_end.connected = False
        if self.front_ends.get(front_end.front_end_id) is front_end:
            del self.front_ends[front_end.front_end_id]

    def front_end_for(self, front_end_id: str) -> FrontEnd:
        """The front end that a unary call names.

        Raises:
            Refused: It has no session, nor had one lately: nobody would ever resume its transactions.
        """
        front_end = self.front_ends.get(front_end_id)
        if front_end is not None and (
            front_end.connected or self._clock() - front_end.gone_since_seconds < self.limits.linger_seconds
        ):
            return front_end
        raise self._refusal(
            Reason.FRONT_END_UNKNOWN, f"front end {front_end_id[:160]!r} has no session with this sidecar"
        )

    def _make_front_end(self, front_end_id: str, boot_epoch: int) -> FrontEnd:
        if len(self.front_ends) >= self.limits.max_front_ends:
            self._forget_idle_front_ends()
        if len(self.front_ends) >= self.limits.max_front_ends:
            raise Refused(Reason.FULL, f"the sidecar serves {self.limits.max_front_ends} front ends already")
        front_end = self.front_ends[front_end_id] = FrontEnd(front_end_id, boot_epoch)
        return front_end

    def _forget_idle_front_ends(self) -> None:
        for name, front_end in list(self.front_ends.items()):
            if not front_end.connected and not front_end.held:
                del self.front_ends[name]

    def restore(
        self,
        front_end_id: str,
        key: NapKey,
        route: str,
        payload: bytes,
        *,
        sequence: int | None,
        accepted_seconds: float,
        due_seconds: float,
        deadline_seconds: float,
        operations: tuple[OperationRequest, ...] = (),
        late_policy: Callable[[], LatePolicy] = lambda: LatePolicy.FIRE,
    ) -> None:
        """Take back what a journal kept. Nothing is refused: it was accepted. Times are on the engine's clock.

        `late_policy` is asked for what fell due meanwhile. Without a sequence it comes after everything that is here.
        What fell due meanwhile is due now, and its front end gets a full linger time from now to come back for it.
        """
        front_end = self.front_ends.get(front_end_id)
        if front_end is None:
            # Of no known life until its Hello; only then is it known which of these are over.
            front_end = self.front_ends[front_end_id] = FrontEnd(front_end_id, _NO_EPOCH)
            front_end.gone_since_seconds = float("-inf")
        request = Request(key, route, due_seconds - accepted_seconds, None, payload, operations)
        if sequence is None:
            sequence = self._next_sequence()
        elif sequence > self._last_sequence:
            self._last_sequence = sequence
        held = Held(front_end, request, sequence, accepted_seconds)
        held.due_seconds = due_seconds
        held.deadline_seconds = max(deadline_seconds, self._clock() + self.limits.linger_seconds)
        held.phase = Phase.PENDING
        late_seconds = self._clock() - due_seconds
        policy = late_policy() if late_seconds > 0 else LatePolicy.FIRE
        if policy is LatePolicy.DROP:
            self.counters.dropped += 1
            held.phase = Phase.ENDED
            self._ended.append(held)
            return
        if policy is LatePolicy.FAIL:
            held.status, held.error = Status.FAILED, f"late by {late_seconds:.1f} s: no sidecar was there"
            held.work = Work(error_code=LATE)
        elif operations:
            # Their groups may be gone, if the settings changed meanwhile. What is late times out at once.
            default = self.groups[DEFAULT_GROUP]
            self._give_work(held, [(operation, self.groups.get(operation.group, default)) for operation in operations])
            if late_seconds <= 0:
                self._queue_jobs(held.jobs)
        front_end.held[key] = held
        self.timers.arm(held, due_seconds)

    # Suspensions

    def reserve(self, front_end: FrontEnd, request: Request) -> tuple[Held, bool]:
        """Judge a request and take it in, not yet acknowledged: it cannot fire before `activate`.

        Returns:
            The suspension, and whether it is new; a key that is held already changes nothing.

        Raises:
            Refused: It is not accepted.
        """
        held = front_end.held.get(request.key)
        if held is not None:
            return held, False
        limits = self.limits
        if self.draining:
            raise self._refusal(Reason.DRAINING, "the sidecar is shutting down")
        if self.journal_error:
            raise self._refusal(Reason.JOURNAL_UNAVAILABLE, self.journal_error)
        if not _ROUTE.match(request.route):
            raise self._refusal(
                Reason.INVALID, f"resume_route {request.route[:80]!r} is not 1 to 64 of [A-Za-z0-9_.:-]"
            )
        if request.key.boot_epoch != front_end.boot_epoch:
            raise self._refusal(
                Reason.STALE_EPOCH,
                f"boot epoch {request.key.boot_epoch} is not the front end's present one, {front_end.boot_epoch}",
            )
        if len(front_end.held) >= limits.max_pending:
            raise self._refusal(Reason.FULL, f"{limits.max_pending} suspensions are held already (--max-pending)")
        if len(request.payload) > limits.max_entry_bytes:
            raise self._refusal(
                Reason.TOO_LARGE,
                f"{len(request.payload)} bytes, more than {limits.max_entry_bytes} (--max-entry-bytes)",
            )
        self._check_delay(request.delay_seconds)
        if request.deadline_seconds is not None and not request.delay_seconds < request.deadline_seconds < 1e9:
            raise self._refusal(
                Reason.DELAY_OUT_OF_RANGE,
                f"deadline of {request.deadline_seconds:g} s is not after the delay of {request.delay_seconds:g} s",
            )
        work = self._judge_operations(request.operations) if request.operations else None
        held = Held(front_end, request, self._next_sequence(), self._clock())
        if request.deadline_seconds is None:
            held.deadline_seconds = held.due_seconds + limits.linger_seconds
        else:
            held.deadline_seconds = held.accepted_seconds + request.deadline_seconds
        if work is not None:
            self._give_work(held, work)
        front_end.held[request.key] = held
        front_end.committing += 1
        return held, True

    def _judge_operations(self, operations: tuple[OperationRequest, ...]) -> list[tuple[OperationRequest, WorkerGroup]]:
        if len(operations) > _MOST_OPERATIONS:
            raise self._refusal(Reason.INVALID, f"{len(operations)} operations in one nap, at most {_MOST_OPERATIONS}")
        judged = [(operation, self._judge_operation(operation)) for operation in operations]
        for group, count in Counter(group for _, group in judged).items():
            if group.room < count:
                group.refused += 1
                raise self._refusal(
                    Reason.FULL,
                    f"{group.queued} jobs wait in group {group.name!r} already (of at most {group.max_queued})",
                    group.retry_after_seconds(),
                )
        return judged

    def _judge_operation(self, operation: OperationRequest) -> WorkerGroup:
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

    def _give_work(self, held: Held, work: list[tuple[OperationRequest, WorkerGroup]]) -> None:
        """Make the jobs of a suspension; each has a place in its group's bound from now on."""
        held.work = Work([operation.name for operation, _ in work], work[0][1].name)
        for index, (operation, group) in enumerate(work):
            job = Job(held, index, operation.name, group, self._policy_of(operation, group))
            held.work.jobs.append(job)
            group.reserve(job)

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

    def activate(self, batch: Iterable[Held]) -> None:
        """The journal has them: they are accepted, their time runs, their operations are queued."""
        for held in batch:
            if held.phase is not Phase.COMMITTING:  # cancelled during the commit
                continue
            held.front_end.committing -= 1
            self.counters.accepted += 1
            held.phase = Phase.PENDING
            if held.key[0] != held.front_end.boot_epoch:  # the front end was restarted during the commit
                self.counters.outcomes[Outcome.GONE] += 1
                self._end(held)
                continue
            self.timers.arm(held, held.due_seconds)
            if held.work is not None:
                self._queue_jobs(held.work.jobs)

    def abandon(self, batch: Iterable[Held]) -> None:
        """The journal could not take them: they were never accepted."""
        for held in batch:
            if held.phase is Phase.COMMITTING:
                held.front_end.committing -= 1
                self.counters.refused[Reason.JOURNAL_UNAVAILABLE] += 1
                held.phase = Phase.ENDED
                if held.work is not None:
                    self._abandon_jobs(held.work)
                del held.front_end.held[held.key]

    def cancel(self, front_end_id: str, key: NapKey) -> CancelOutcome:
        """End a suspension before its time. After CANCELLED it never fires."""
        front_end = self.front_ends.get(front_end_id)
        held = front_end.held.get(key) if front_end is not None else None
        if held is None:
            return CancelOutcome.GONE
        if held.phase is Phase.CONTINUING:
            return CancelOutcome.CONTINUING
        if held.phase is Phase.COMMITTING:
            self.counters.accepted += 1  # so that the counters add up: `activate` passes over it
        self.counters.cancelled += 1
        self._end(held)
        return CancelOutcome.CANCELLED

    def settle(self, front_end: FrontEnd, key: NapKey, outcome: Outcome) -> Held | None:
        """The front end has answered for a continue. None: nobody asked, a repetition."""
        held = front_end.continuing.get(key)
        if held is None:
            return None
        self.counters.outcomes[outcome] += 1
        self._end(held)
        return held

    def mark_sent(self, held: Held) -> int:
        """Its continue is about to be sent; returns which attempt it is, from 1."""
        held.attempt += 1
        return held.attempt

    @property
    def has_ended(self) -> bool:
        """Whether `take_ended` has something to give."""
        return bool(self._ended)

    def take_ended(self) -> list[Held]:
        """Suspensions that have ended since the last call: the journal may forget them."""
        ended, self._ended = self._ended, []
        return ended

    # Operations

    def take_job(self, group: WorkerGroup, operations: Container[str] | None = None) -> Job | None:
        """A job for a worker that is free; None: no job, or none of these operations, or no worker is free.

        It ends by `finish_job` or `release_job`, once.
        """
        now = self._clock()
        job = group.take(now, operations)
        if job is not None:
            self._watch(job, now)
        return job

    def begin_job(self, job: Job, attempt: int) -> None:
        """A worker of any sidecar has taken a job that was sent away, for this attempt: others may have lost it before.

        It ends by `finish_job`. One that is not away any more, and has that attempt, is left as it is.
        """
        now = self._clock()
        if job.state is JobState.AWAY:
            job.group.begin(job, now)
        elif job.state is not JobState.RUNNING or job.abandoned or attempt <= job.attempt:
            return
        job.group.retried += attempt - job.attempt
        job.attempt = attempt
        self._watch(job, now)

    def finish_job(self, job: Job, result: JobResult) -> Held | None:
        """An attempt has ended; its worker is free. Returns the suspension if it is to be continued now.

        A job that has ended already changes nothing: a worker may be taken for dead and answer nevertheless.
        """
        if job.state is not JobState.RUNNING:
            return None
        now = self._clock()
        job.group.finish(job, now)
        self._stirred_groups[job.group] = None
        if job.abandoned:
            return None
        self.timers.disarm(job)
        size = sum(map(len, result.values))
        if size > self.limits.max_entry_bytes:
            text = f"it found {size} bytes, more than {self.limits.max_entry_bytes} (--max-entry-bytes)"
            result = JobResult(BAD_RESULT, text)
        pause_seconds = result.retry_after_seconds
        if result.error_code and pause_seconds is not None and self._try_again(job, pause_seconds, now):
            return None
        return self._end_job(job, result)

    def release_job(self, job: Job) -> None:
        """A worker gives a job back that it did not begin: another one gets it, and it costs no attempt."""
        if job.state is JobState.RUNNING:
            self.timers.disarm(job)
            job.group.release(job, self._clock())
            self._stirred_groups[job.group] = None

    def resize(self, group: WorkerGroup, workers: int) -> None:
        """Give a group another number of workers. More may run at once; of too many, each finishes what it has."""
        group.workers = workers
        self._stirred_groups[group] = None

    def take_stopped_jobs(self) -> list[Job]:
        """Jobs that run or were sent away, and that nobody waits for any more, since the last call.

        The edge stops them; `finish_job` follows for those that ran.
        """
        stopped, self._stopped_jobs = self._stopped_jobs, []
        return stopped

    def take_stirred_groups(self) -> Iterable[WorkerGroup]:
        """Groups where somebody may have something to do now, since the last call: a job came, or a worker is free."""
        stirred, self._stirred_groups = self._stirred_groups, {}
        return stirred

    @property
    def has_job_news(self) -> bool:
        """Whether `take_stopped_jobs` or `take_stirred_groups` has something to give."""
        return bool(self._stirred_groups or self._stopped_jobs)

    # Sleepers

    def sleep(self, seconds: float, waiter: object) -> Sleeper:
        """Begin a sleep; its time runs from now.

        Raises:
            Refused: It is not accepted.
        """
        if self.draining:
            raise self._refusal(Reason.DRAINING, "the sidecar is shutting down")
        if self.sleepers >= self.limits.max_pending:
            raise self._refusal(Reason.FULL, f"{self.limits.max_pending} callers sleep already (--max-pending)")
        self._check_delay(seconds)
        now = self._clock()
        sleeper = Sleeper(waiter, now, now + seconds)
        self.sleepers += 1
        self.timers.arm(sleeper, sleeper.due_seconds)
        return sleeper

    def wake(self, sleeper: Sleeper) -> None:
        """The sleeper's caller has gone away."""
        if sleeper.timer_sequence:
            self.timers.disarm(sleeper)
            self.sleepers -= 1

    # Time

    def pop_due(self, most: int) -> Due:
        """Carry on to the present, for at most so many timers. Never early: a timer counts when its time has passed."""
        now = self._clock()
        due = Due([], [], [])
        for item in self.timers.pop_due(now, most):
            if isinstance(item, Held):
                if item.phase is Phase.CONTINUING:
                    if item.timer_sequence:  # its last job timed out in this very turn, before its own time
                        continue
                    self.counters.lost += 1
                    self._end(item)
                    continue
                if item.work is not None and item.work.jobs:
                    self._time_out(item, item.work)
                self._begin_continuing(item)
                due.continues.append(item)
            elif isinstance(item, Sleeper):
                self.sleepers -= 1
                self.counters.slept += 1
                due.sleepers.append(item)
            else:
                held = self._pop_job(item, now)
                if held is not None:
                    due.answered.append(held)
        return due

    # Looking

    def find(self, front_end_id: str, key: NapKey) -> Held | None:
        """An accepted suspension."""
        front_end = self.front_ends.get(front_end_id)
        held = front_end.held.get(key) if front_end is not None else None
        return held if held is not None and held.phase is not Phase.COMMITTING else None

    def list(self, front_end_id: str, after_sequence: int, most: int) -> list[Held]:
        """Accepted suspensions in order of acceptance, at most so many, after that sequence number."""
        chosen: Iterator[FrontEnd] | list[FrontEnd]
        if front_end_id:
            chosen = [front_end] if (front_end := self.front_ends.get(front_end_id)) else []
        else:
            chosen = iter(self.front_ends.values())
        page: list[Held] = []
        for front_end in chosen:
            later = (
                held
                for held in front_end.held.values()
                if held.sequence > after_sequence and held.phase is not Phase.COMMITTING
            )
            page.extend(itertools.islice(later, most))
        page.sort(key=lambda held: held.sequence)
        return page[:most]

    @property
    def held_count(self) -> int:
        """Suspensions held, in any phase."""
        return sum(len(front_end.held) for front_end in self.front_ends.values())

    @property
    def pending_count(self) -> int:
        """Suspensions that are accepted and whose time has not come."""
        return sum(front_end.pending for front_end in self.front_ends.values())

    @property
    def running_jobs(self) -> int:
        """Operations that workers run."""
        return sum(len(group.running) for group in self.groups.values())

    @property
    def continuing_count(self) -> int:
        """Suspensions whose continue is not answered for yet."""
        return sum(len(front_end.continuing) for front_end in self.front_ends.values())

    # Within

    def _watch(self, job: Job, now: float) -> None:
        """An attempt has begun."""
        job.ends_seconds = job.held.due_seconds
        timeout_seconds = job.policy.timeout_seconds
        self.timers.disarm(job)
        if timeout_seconds is not None and now + timeout_seconds < job.ends_seconds:
            job.ends_seconds = now + timeout_seconds
            self.timers.arm(job, job.ends_seconds)

    def _check_delay(self, seconds: float) -> None:
        if not 0 < seconds <= self.limits.max_delay_seconds:
            raise self._refusal(
                Reason.DELAY_OUT_OF_RANGE,
                f"{seconds:g} s is not more than 0 and at most {self.limits.max_delay_seconds:g} s (--max-seconds)",
            )

    def _begin_continuing(self, held: Held) -> None:
        held.phase = Phase.CONTINUING
        held.front_end.continuing[held.key] = held
        self.timers.arm(held, held.deadline_seconds)

    def _end(self, held: Held) -> None:
        held.front_end.committing -= held.phase is Phase.COMMITTING
        held.phase = Phase.ENDED
        self.timers.disarm(held)
        if held.work is not None:
            self._abandon_jobs(held.work)
        held.front_end.continuing.pop(held.key, None)
        del held.front_end.held[held.key]
        self._ended.append(held)

    def _queue_jobs(self, jobs: Iterable[Job]) -> None:
        now = self._clock()
        for job in jobs:
            job.group.offer(job, now)
            self._stirred_groups[job.group] = None

    def _try_again(self, job: Job, pause_seconds: float, now: float) -> bool:
        """Put the next attempt in the place of one that has failed, if the policy and the nap's time have one left."""
        work = job.held.work
        if work is None or job.attempt >= job.policy.max_attempts or now + pause_seconds >= job.held.due_seconds:
            return False
        group, again = job.group, job.next_attempt()
        work.jobs[work.jobs.index(job)] = again
        group.retried += 1
        if pause_seconds > 0:
            again.state = JobState.PAUSING
            group.reserve(again)
            self.timers.arm(again, now + pause_seconds)
        else:
            group.reserve(again)
            self._queue_jobs([again])
        return True

    def _pop_job(self, job: Job, now: float) -> Held | None:
        """A pause is over, or an attempt has taken too long. Returns the suspension if it is to be continued now."""
        if job.state is JobState.PAUSING:
            self._queue_jobs([job])
        if job.state is not JobState.RUNNING or job.abandoned:
            return None
        job.abandoned = True
        self._stopped_jobs.append(job)
        if self._try_again(job, job.policy.backoff_seconds * 2 ** (job.attempt - 1), now):
            return None
        return self._end_job(job, JobResult(TIMEOUT, f"took longer than {now - job.started_seconds:.3g} s"))

    def _end_job(self, job: Job, result: JobResult) -> Held | None:
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
        held.status, held.error = work.conclude()
        self._begin_continuing(held)
        return held

    def _time_out(self, held: Held, work: Work) -> None:
        """The nap's own time has passed: what has not ended does not count any more."""
        seconds = held.due_seconds - held.accepted_seconds
        for job in work.jobs:
            job.group.timed_out += 1
            text = f"took longer than the nap's {seconds:.3g} s"
            if job.attempt == 1 and job.state is not JobState.RUNNING:
                text = f"no worker of group {job.group.name!r} was free within the nap's {seconds:.3g} s"
            work.results[job.index] = JobResult(TIMEOUT, text)
        self._withdraw_jobs(work)
        held.status, held.error = work.conclude()
        held.status, work.error_code = Status.TIMED_OUT, TIMEOUT

    def _abandon_jobs(self, work: Work) -> None:
        for job in work.jobs:
            job.group.abandoned += 1
        self._withdraw_jobs(work)

    def _withdraw_jobs(self, work: Work) -> None:
        for job in work.jobs:
            self.timers.disarm(job)
            if job.state is JobState.RUNNING or job.state is JobState.AWAY:
                self._stopped_jobs.append(job)
            job.group.withdraw(job)
        work.jobs = []

    def _next_sequence(self) -> int:
        self._last_sequence += 1
        return self._last_sequence

    def _refusal(self, reason: Reason, message: str, retry_after_seconds: float | None = None) -> Refused:
        self.counters.refused[reason] += 1
        return Refused(reason, message, retry_after_seconds)
