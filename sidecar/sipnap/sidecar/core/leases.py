"""Leases: which worker of a group has which task, and until when. For workers in other processes.

A worker gives *credits*: so many tasks more it will take. Each task that is handed to it takes one, and becomes a
*lease* with a deadline, which the worker moves on as long as it works. Every lease ends once: by its result, by being
revoked (nobody waits for it any more), by its deadline, or with its worker. What comes for a lease that has ended is
*stale* and has no effect. Only the worker gives credits back, when it has a place free again: a worker that holds on to
a task whose lease has ended gets nothing in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Generic, Protocol, TypeVar

from sipnap.sidecar.core.timers import TimerHeap

MOST_CREDITS = 100_000
"""Upper bound of what one worker can have open; what it gives beyond is not counted."""

_MOST_AT_ONCE = 1000


class Leasable(Protocol):
    """What can be leased."""

    @property
    def operation(self) -> str:
        """Name of the operation that it asks for."""


T = TypeVar("T", bound=Leasable)


class Lease(Generic[T]):
    """One task in the hands of one worker."""

    __slots__ = ("end_seconds", "lease_id", "task", "timer_sequence", "worker")

    def __init__(self, lease_id: int, worker: Worker[T], task: T, end_seconds: float) -> None:
        self.lease_id = lease_id
        """Its number, from 1, among those of its worker."""
        self.worker = worker
        """Who has it."""
        self.task = task
        """What was leased."""
        self.end_seconds = end_seconds
        """When nobody waits for its result any more; no extension goes past that."""
        self.timer_sequence = 0


class Worker(Generic[T]):
    """One connected worker. Changed by the book alone."""

    __slots__ = ("credits", "is_leaving", "is_silent", "last_lease_id", "leases", "operations", "worker_id")

    def __init__(self, worker_id: str, operations: frozenset[str]) -> None:
        self.worker_id = worker_id
        """Its name, for logs; need not be unique."""
        self.operations = operations
        """What it can run."""
        self.credits = 0
        """How many tasks more it will take."""
        self.is_leaving = False
        """It takes nothing more."""
        self.is_silent = False
        """It let a lease run out: it gets nothing until it is heard of again."""
        self.leases: dict[int, Lease[T]] = {}
        """What it has, by number."""
        self.last_lease_id = 0
        """Number of the lease that it got last."""

    @property
    def is_ready(self) -> bool:
        """Whether it may be handed something now."""
        return self.credits > 0 and not self.is_leaving and not self.is_silent

    @property
    def capacity(self) -> int:
        """How many tasks it is ready to run at once, those that it runs included."""
        return len(self.leases) + (self.credits if self.is_ready else 0)


class LeaseBook(Generic[T]):
    """The workers of one group and what they have. Does no I/O; seconds are those of the clock that it is given."""

    def __init__(self, clock: Callable[[], float], lease_seconds: float) -> None:
        """Begin without workers.

        Args:
            clock: Monotonic seconds.
            lease_seconds: How long a lease lasts, from its being handed out or extended.
        """
        self.lease_seconds = lease_seconds
        self.workers: dict[Worker[T], None] = {}
        """Those that are connected, in order of joining."""
        self._clock = clock
        # Those that are ready, in the order in which they are to be asked.
        self._ready: dict[Worker[T], None] = {}
        self._timers: TimerHeap[Lease[T]] = TimerHeap()

    @property
    def capacity(self) -> int:
        """How many tasks the workers are ready to run at once, those that they run included."""
        return sum(worker.capacity for worker in self.workers)

    @property
    def has_free(self) -> bool:
        """Whether a worker has credits."""
        return bool(self._ready)

    @property
    def ready(self) -> Collection[Worker[T]]:
        """Workers that may be handed something now."""
        return self._ready.keys()

    @property
    def free(self) -> int:
        """How many tasks may be handed out now."""
        return sum(worker.credits for worker in self._ready)

    # Workers

    def join(self, worker_id: str, operations: Iterable[str]) -> Worker[T]:
        """A worker has connected. It has no credits yet."""
        worker: Worker[T] = Worker(worker_id, frozenset(operations))
        self.workers[worker] = None
        return worker

    def leave(self, worker: Worker[T]) -> list[Lease[T]]:
        """A worker's connection has ended. Returns the leases that it had, oldest first: they have ended with it."""
        lost = list(worker.leases.values())
        for lease in lost:
            self._end(lease)
        worker.credits = 0
        self._ready.pop(worker, None)
        self.workers.pop(worker, None)
        return lost

    def grant(self, worker: Worker[T], more: int) -> None:
        """A worker will take so many tasks more."""
        worker.credits = min(worker.credits + more, MOST_CREDITS)
        self._queue_up(worker)

    def drain(self, worker: Worker[T]) -> None:
        """A worker takes nothing more; what it has it keeps."""
        worker.is_leaving = True
        self._queue_up(worker)

    def hear(self, worker: Worker[T]) -> None:
        """A worker has given a sign of life."""
        if worker.is_silent:
            worker.is_silent = False
            self._queue_up(worker)

    # Leases

    def offers(self, operation: str) -> bool:
        """Whether a worker that is ready can run this operation."""
        return any(operation in worker.operations for worker in self._ready)

    def hand_out(self, task: T, end_seconds: float) -> Lease[T]:
        """Lease a task to the ready worker whose turn it is.

        Args:
            task: What to lease.
            end_seconds: When nobody waits for its result any more.

        Raises:
            LookupError: No worker that is ready can run it; ask `offers` first.
        """
        worker = next((worker for worker in self._ready if task.operation in worker.operations), None)
        if worker is None:
            raise LookupError(f"no worker with credits runs {task.operation!r}")
        worker.credits -= 1
        worker.last_lease_id += 1
        lease = Lease(worker.last_lease_id, worker, task, end_seconds)
        worker.leases[lease.lease_id] = lease
        del self._ready[worker]
        self._queue_up(worker)
        self._arm(lease)
        return lease

    def find(self, worker: Worker[T], lease_id: int) -> Lease[T] | None:
        """A lease that lasts; None: it is stale."""
        return worker.leases.get(lease_id)

    def extend(self, worker: Worker[T], lease_id: int) -> bool:
        """Keep a lease for another `lease_seconds`. False: it is stale."""
        lease = worker.leases.get(lease_id)
        if lease is None:
            return False
        self._arm(lease)
        return True

    def end(self, worker: Worker[T], lease_id: int) -> T | None:
        """A worker has answered for a lease. Returns what was leased; None: the answer is stale and has no effect."""
        lease = worker.leases.get(lease_id)
        if lease is None:
            return None
        self._end(lease)
        return lease.task

    def revoke(self, lease: Lease[T]) -> bool:
        """Nobody waits for its result any more. False: it has ended already."""
        if lease.lease_id not in lease.worker.leases:
            return False
        self._end(lease)
        return True

    # Time

    def next_due_seconds(self) -> float | None:
        """When `pop_expired` has something to give, if nothing changes; None: never."""
        return self._timers.next_due_seconds()

    def pop_expired(self) -> list[Lease[T]]:
        """End the leases whose deadline has passed.

        A worker that did not extend one in time is silent from now on; one whose task's own time is over may well be
        at work on it.
        """
        now = self._clock()
        expired = self._timers.pop_due(now, _MOST_AT_ONCE)
        for lease in expired:
            if now < lease.end_seconds:
                lease.worker.is_silent = True
                self._ready.pop(lease.worker, None)
            self._end(lease)
        return expired

    def _arm(self, lease: Lease[T]) -> None:
        self._timers.arm(lease, min(self._clock() + self.lease_seconds, lease.end_seconds))

    def _end(self, lease: Lease[T]) -> None:
        del lease.worker.leases[lease.lease_id]
        self._timers.disarm(lease)

    def _queue_up(self, worker: Worker[T]) -> None:
        """Put a worker at the end of the row, if it is ready and not in the row already."""
        if worker.is_ready and worker in self.workers:
            self._ready.setdefault(worker)
        else:
            self._ready.pop(worker, None)
