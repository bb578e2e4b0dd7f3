"""Worker groups: who may run now and who waits (Kamailio: core parameter ``async_workers_group``)."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sipnap.sidecar.core.suspension import Held

DEFAULT_GROUP = "default"
"""The group that always exists."""


@dataclass(slots=True, eq=False)
class Job:
    """One operation of one suspension, waiting for a worker or running on one."""

    held: Held
    """Whose operation it is."""
    operation: str
    """Name of the operation."""
    group: WorkerGroup
    """Where it runs."""
    abandoned: bool = False
    """Nobody waits for its answer any more."""
    runner: object = None
    """Whatever the edge needs to stop it; None while it waits."""


class WorkerGroup:
    """A bounded queue and a number of workers that may change at any time. Seconds and processes are the edge's."""

    def __init__(self, name: str, workers: int, max_queued: int) -> None:
        self.name = name
        self.workers = workers
        """How many jobs may run at once; setting it lets running ones finish."""
        self.max_queued = max_queued
        """Most jobs that wait for a worker."""
        self.running: set[Job] = set()
        """Jobs that a worker has."""
        self._queue: deque[Job] = deque()
        self._abandoned_in_queue = 0

    @property
    def queued(self) -> int:
        """Jobs that wait for a worker."""
        return len(self._queue) - self._abandoned_in_queue

    @property
    def is_full(self) -> bool:
        """Whether another job would be over the bound."""
        return self.queued >= self.max_queued and len(self.running) >= self.workers

    def offer(self, job: Job) -> None:
        """Queue a job; the caller has asked `is_full`."""
        self._queue.append(job)

    def take(self) -> Job | None:
        """The next job, if a worker is free; it counts as running until `finish`."""
        while self._queue and len(self.running) < self.workers:
            job = self._queue.popleft()
            if job.abandoned:
                self._abandoned_in_queue -= 1
                continue
            self.running.add(job)
            return job
        return None

    def abandon(self, job: Job) -> None:
        """Nobody waits for this job any more: skip it if it waits; if it runs, `finish` follows when it has stopped."""
        if not job.abandoned:
            job.abandoned = True
            if job not in self.running:
                self._abandoned_in_queue += 1

    def finish(self, job: Job) -> None:
        """The job's worker is free again."""
        self.running.discard(job)
