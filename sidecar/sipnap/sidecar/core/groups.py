"""Worker groups: who may run now and who waits (Kamailio: core parameter ``async_workers_group``)."""

from __future__ import annotations

import enum
import heapq
from collections.abc import Container
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from sipnap.sidecar.core.histogram import Histogram

if TYPE_CHECKING:
    from sipnap.sidecar.core.suspension import Held

DEFAULT_GROUP = "default"
"""The group that always exists."""

MOST_WORKERS = 10_000
"""Upper bound of a group's workers."""

TIMEOUT = "timeout"
"""Error code of what took too long; its status is TIMED_OUT."""

BAD_RESULT = "bad_result"
"""Error code of an operation that found what cannot be sent."""

_LEAST_DEAD_TO_PRUNE = 64
_SHORTEST_HINT_SECONDS = 0.01
_LONGEST_HINT_SECONDS = 60.0
_WEIGHT_OF_LATEST = 0.05


class WorkerKind(enum.Enum):
    """Who does a group's work."""

    ASYNC = "async"
    """Coroutines of the sidecar."""
    PROCESS = "process"
    """Processes of the sidecar's own."""
    REMOTE = "remote"
    """Whoever connects to WorkerService."""


class JobState(enum.Enum):
    """Where a job stands."""

    RESERVED = 1
    """Its suspension is not accepted yet; it has its place in the queue's bound."""
    QUEUED = 2
    """It waits for a worker."""
    RUNNING = 3
    """A worker has it."""
    PAUSING = 4
    """It waits until it is tried again."""
    ENDED = 5
    """This attempt is over."""
    AWAY = 6
    """It waits for a worker of any sidecar, in a queue that they share."""


class Policy(Protocol):
    """How an operation is to be run where its request says nothing (`sipnap.client.operations.Operation` is one)."""

    @property
    def timeout_seconds(self) -> float | None:
        """Most that one attempt may take; None: the nap's own time."""

    @property
    def max_attempts(self) -> int:
        """How often it is tried at most."""

    @property
    def backoff_seconds(self) -> float:
        """Pause before the second attempt, doubled for each one more."""


@dataclass(frozen=True, slots=True)
class JobPolicy:
    """A `Policy` by itself."""

    timeout_seconds: float | None = None
    max_attempts: int = 1
    backoff_seconds: float = 0.1


@dataclass(frozen=True, slots=True)
class JobResult:
    """How an attempt ended."""

    error_code: str = ""
    """What went wrong, for scripts; empty: nothing."""
    error: str = ""
    """What went wrong, for people."""
    values: tuple[bytes, ...] = ()
    """What it found: values in the wire's encoding, opaque here, with the operation's prefix in their names."""
    retry_after_seconds: float | None = None
    """Another attempt after so long may do better: it is made if one is left and the nap's time lasts. 0: at once, at
    the job's old place in the queue, which is its front. None: it may not."""


@dataclass(slots=True, eq=False)
class Job:
    """One attempt at one operation of one suspension."""

    held: Held
    """Whose operation it is."""
    index: int
    """Which of the suspension's operations, from 0."""
    operation: str
    """Name of the operation."""
    group: WorkerGroup
    """Where it runs."""
    policy: Policy = field(default_factory=JobPolicy)
    """How it is to be run."""
    attempt: int = 1
    """Which attempt it is."""
    place: int = 0
    """Its place in the queue, the same for all attempts; 0: it has none yet."""
    state: JobState = JobState.RESERVED
    """Where it stands."""
    queued_seconds: float = 0.0
    """When it was queued, on the engine's clock; here and in the next two."""
    started_seconds: float = 0.0
    """When a worker took it."""
    ends_seconds: float = 0.0
    """When nobody waits for this attempt any more, of one that runs."""
    abandoned: bool = False
    """Nobody waits for its result any more."""
    runner: object = None
    """Whatever its pool needs to stop it."""
    timer_sequence: int = 0
    """See `sipnap.sidecar.core.timers.Timed`: the end of an attempt, or of a pause."""

    def next_attempt(self) -> Job:
        """The attempt after this one."""
        return Job(self.held, self.index, self.operation, self.group, self.policy, self.attempt + 1, self.place)


class WorkerGroup:
    """A bounded queue and a number of workers that may change at any time. Threads and processes are the edge's."""

    def __init__(
        self,
        name: str,
        workers: int,
        max_queued: int,
        kind: WorkerKind = WorkerKind.ASYNC,
    ) -> None:
        self.name = name
        self.workers = workers
        """How many jobs may run at once; setting it lets running ones finish. Of remote workers: what they are ready
        to run at once, kept up to date by their pool."""
        self.max_queued = max_queued
        """Most jobs that wait for a worker."""
        self.kind = kind
        """Who does the work."""
        self.operations: Container[str] | None = None
        """Names that its workers can run; None: what the sidecar knows, or, of remote workers, anything."""
        self.running: set[Job] = set()
        """Jobs that a worker has, those included that are being stopped."""
        self.queued = 0
        """Jobs that wait for a worker."""
        self.queued_elsewhere = 0
        """Jobs of other sidecars in the queue that they share with this one, as far as it is known; they take room."""
        self.succeeded = 0
        """Jobs that ended well."""
        self.failed = 0
        """Jobs that failed, after the last attempt."""
        self.timed_out = 0
        """Jobs whose time ran out, after the last attempt."""
        self.abandoned = 0
        """Jobs that nobody waited for any more."""
        self.refused = 0
        """Jobs that were refused because the queue was full."""
        self.retried = 0
        """Attempts beyond the first."""
        self.wait = Histogram()
        """How long jobs waited for a worker, each attempt for itself."""
        self.run = Histogram()
        """How long workers had jobs."""
        self._reserved = 0
        self._queues: dict[str, list[tuple[int, Job]]] = {}
        self._dead = 0
        self._last_place = 0
        self._mean_run_seconds = 0.0

    @property
    def room(self) -> int:
        """How many jobs more it can take in: by free workers and by places in the queue."""
        free = max(0, self.workers - len(self.running))
        return self.max_queued + free - self.queued - self.queued_elsewhere - self._reserved

    def retry_after_seconds(self) -> float | None:
        """When the jobs that wait now will be done, more or less; None: nobody knows."""
        if not self._mean_run_seconds or not self.workers:
            return None
        estimate = self._mean_run_seconds * max(1, self.queued) / self.workers
        return min(max(estimate, _SHORTEST_HINT_SECONDS), _LONGEST_HINT_SECONDS)

    def reserve(self, job: Job) -> None:
        """Keep a place for a job that is offered later; the caller has looked at `room`, unless it was here before."""
        self._reserved += 1

    def offer(self, job: Job, now_seconds: float) -> None:
        """Queue a job, one with a reserved place or a new one."""
        if job.state is JobState.RESERVED or job.state is JobState.PAUSING:
            self._reserved -= 1
        self._push(job, now_seconds)

    def take(self, now_seconds: float, operations: Container[str] | None = None) -> Job | None:
        """The first job, of these operations if any are given; it counts as running until `finish` or `release`.

        None: there is none, or no worker is free. Of remote workers the caller knows itself who is free.
        """
        if not self.queued or (self.kind is not WorkerKind.REMOTE and len(self.running) >= self.workers):
            return None
        job = self._pop(operations)
        if job is not None:
            self._start(job, now_seconds)
        return job

    def send_away(self) -> Job | None:
        """The first job, to be put into a queue that sidecars share; it waits there, until `begin` or `withdraw`."""
        job = self._pop(None)
        if job is not None:
            job.state = JobState.AWAY
        return job

    def begin(self, job: Job, now_seconds: float) -> None:
        """A worker of any sidecar has taken a job that was sent away; it counts as running until `finish`."""
        self._start(job, now_seconds)

    def _start(self, job: Job, now_seconds: float) -> None:
        self.queued -= 1
        job.state = JobState.RUNNING
        job.started_seconds = now_seconds
        self.running.add(job)
        self.wait.observe(now_seconds - job.queued_seconds)

    def _pop(self, operations: Container[str] | None) -> Job | None:
        first: list[tuple[int, Job]] | None = None
        for name, queue in list(self._queues.items()):
            if operations is not None and name not in operations:
                continue
            while queue and queue[0][1].state is not JobState.QUEUED:
                heapq.heappop(queue)
                self._dead -= 1
            if not queue:
                del self._queues[name]
            elif first is None or queue[0] < first[0]:
                first = queue
        return heapq.heappop(first)[1] if first is not None else None

    def release(self, job: Job, now_seconds: float) -> None:
        """The job's worker did not begin: it takes its old place in the queue, unless nobody waits for it any more."""
        self.running.discard(job)
        if job.abandoned:
            job.state = JobState.ENDED
        else:
            self._push(job, now_seconds)

    def finish(self, job: Job, now_seconds: float) -> None:
        """The job's worker is free again."""
        self.running.discard(job)
        job.state = JobState.ENDED
        seconds = now_seconds - job.started_seconds
        self.run.observe(seconds)
        weight = _WEIGHT_OF_LATEST if self._mean_run_seconds else 1.0
        self._mean_run_seconds += weight * (seconds - self._mean_run_seconds)

    def withdraw(self, job: Job) -> None:
        """Nobody waits for this job any more; if it runs, `finish` follows when it has stopped."""
        job.abandoned = True
        if job.state is JobState.RUNNING or job.state is JobState.ENDED:
            return
        if job.state is JobState.QUEUED:
            self.queued -= 1
            self._dead += 1
        elif job.state is JobState.AWAY:
            self.queued -= 1
        else:
            self._reserved -= 1
        job.state = JobState.ENDED
        if self._dead > _LEAST_DEAD_TO_PRUNE and self._dead > self.queued:
            self._prune()

    def _push(self, job: Job, now_seconds: float) -> None:
        if not job.place:
            self._last_place += 1
            job.place = self._last_place
        job.state = JobState.QUEUED
        job.queued_seconds = now_seconds
        self.queued += 1
        heapq.heappush(self._queues.setdefault(job.operation, []), (job.place, job))

    def _prune(self) -> None:
        self._dead = 0
        for name, queue in list(self._queues.items()):
            living = [entry for entry in queue if entry[1].state is JobState.QUEUED]
            if living:
                heapq.heapify(living)
                self._queues[name] = living
            else:
                del self._queues[name]
