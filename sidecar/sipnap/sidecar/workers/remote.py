"""Workers of kinds remote and process: whoever has a stream of `WorkerService` open.

Each group has a `Desk`: its lease book, the streams of its workers, and the queue that its tasks come from. The queue
of this sidecar's own jobs is `LocalTasks`; another one may bring tasks of other sidecars as well, see `TaskQueue`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Container, Iterable
from typing import TYPE_CHECKING, Protocol

from sipnap.client.request_head import complete
from sipnap.sidecar.core.groups import TIMEOUT, Job, JobResult, WorkerGroup, WorkerKind
from sipnap.sidecar.core.leases import Lease, LeaseBook, Worker
from sipnap.v1 import suspension_pb2 as pb
from sipnap.v1 import worker_service_pb2 as wire

if TYPE_CHECKING:
    from sipnap.sidecar.dispatcher import Dispatcher

LEASE_SECONDS = 10.0
"""How long a lease lasts unless the settings say something else (``--lease-seconds``)."""

MOST_WORKERS = 4096
"""Most worker streams of one sidecar."""

WORKER_LOST = "worker_lost"
"""Error code of a job whose worker died, or fell silent, at the last attempt."""

_STALL_SECONDS = 0.5
"""A timer that comes later than so much says that the sidecar was stopped, or very busy."""

_MOST_LEASES_PER_TURN = 200
"""Leased before the loop gets a turn again: a thousand new workers must not silence the RPCs."""

_STOPPED = JobResult("stopped", "nobody waited for it any more")

# What ends a job of this sidecar is the engine's clock; the lease's own end comes after it, in case.
_END_GRACE_SECONDS = 1.0

log = logging.getLogger("sipnap.workers")


class Task(Protocol):
    """One attempt at one operation, to be done by some worker."""

    lease: Lease[Task] | None
    """The desk's own: the lease that it is out on."""

    @property
    def operation(self) -> str:
        """Name of the operation."""

    @property
    def prefix(self) -> str:
        """Goes before the names of the values that are found."""

    @property
    def ends_seconds(self) -> float:
        """When nobody waits for it any more, on the event loop's clock."""

    def describe(self, message: wire.Lease) -> None:
        """Fill in what the worker has to know: operation, arguments, state, key, attempt."""

    def done(self, result: JobResult) -> None:
        """This attempt has ended. One of `done` and `release` is called, once."""

    def release(self) -> None:
        """No worker began it: it is to come again, first of all, and has cost no attempt."""


class TaskQueue(Protocol):
    """Where the tasks of one group come from. It calls `Desk.wake` when there may be one more."""

    def take(self, operations: Container[str]) -> Task | None:
        """The oldest task that asks for one of these operations; None: there is none at present. Returns at once."""

    def want(self, places: int) -> None:
        """So many workers are free and have nothing to do; for a queue that has to fetch."""

    def stop(self, job: Job) -> None:
        """Nobody waits any more for a job that was taken from the group."""


class Connection(Protocol):
    """A worker's stream, as its desk sees it. Its methods return at once."""

    def send_lease(self, lease: Lease[Task]) -> None:
        """Put a lease on its way."""

    def send_cancel(self, lease_id: int) -> None:
        """Put the end of a lease on its way."""

    def send_go_away(self) -> None:
        """Say that nothing more will be leased in this stream."""


class LocalTask:
    """A job of this sidecar."""

    __slots__ = ("_dispatcher", "_suspension", "job", "lease")

    def __init__(self, job: Job, dispatcher: Dispatcher) -> None:
        self.job = job
        """What is to be done."""
        self.lease: Lease[Task] | None = None
        self._dispatcher = dispatcher
        self._suspension = pb.Suspension.FromString(job.held.payload)

    @property
    def operation(self) -> str:
        """See `Task`."""
        return self.job.operation

    @property
    def prefix(self) -> str:
        """See `Task`."""
        return self._suspension.operations[self.job.index].prefix

    @property
    def ends_seconds(self) -> float:
        """See `Task`."""
        return self.job.ends_seconds

    def describe(self, message: wire.Lease) -> None:
        """See `Task`."""
        suspension, job = self._suspension, self.job
        message.operation = job.operation
        message.arguments.extend(suspension.operations[job.index].arguments)
        message.state.CopyFrom(complete(suspension.state))
        key = message.key
        key.front_end_id = job.held.front_end.front_end_id
        key.boot_epoch, key.transaction_index, key.transaction_label, key.nap_number = job.held.key
        message.attempt = job.attempt

    def done(self, result: JobResult) -> None:
        """See `Task`."""
        self.job.runner = None
        self._dispatcher.job_done(self.job, result)

    def release(self) -> None:
        """See `Task`."""
        self.job.runner = None
        self._dispatcher.release_job(self.job)


class LocalTasks:
    """The jobs that wait in the group itself. See `TaskQueue`."""

    def __init__(self, desk: Desk, dispatcher: Dispatcher) -> None:
        self._desk = desk
        self._dispatcher = dispatcher

    def take(self, operations: Container[str]) -> Task | None:
        """See `TaskQueue`."""
        job = self._dispatcher.take_job(self._desk.group, operations)
        if job is None:
            return None
        task = LocalTask(job, self._dispatcher)
        job.runner = task
        return task

    def want(self, places: int) -> None:
        """See `TaskQueue`. Nothing has to be fetched."""

    def stop(self, job: Job) -> None:
        """See `TaskQueue`."""
        if isinstance(job.runner, LocalTask):
            self._desk.withdraw(job.runner, _STOPPED)


class _ReadyOperations:
    """What the workers with free places can run."""

    def __init__(self, book: LeaseBook[Task]) -> None:
        self._book = book

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._book.offers(name)


class Desk:
    """Where the workers of one group get their tasks."""

    def __init__(self, group: WorkerGroup, lease_seconds: float, make_queue: Callable[[Desk], TaskQueue]) -> None:
        self.group = group
        """The group."""
        self._loop = asyncio.get_running_loop()
        self.book: LeaseBook[Task] = LeaseBook(self._loop.time, lease_seconds)
        """Who has what."""
        self.queue = make_queue(self)
        """Where the tasks come from."""
        self._ready = _ReadyOperations(self.book)
        self._connections: dict[Worker[Task], Connection] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._armed_seconds = float("inf")

    # For the queue and the pool

    def wake(self) -> None:
        """Hand out what can be handed out now."""
        for _ in range(_MOST_LEASES_PER_TURN):
            if not self.book.has_free:
                break
            task = self.queue.take(self._ready)
            if task is None:
                self.queue.want(self.book.free)
                break
            task.lease = lease = self.book.hand_out(task, task.ends_seconds + _END_GRACE_SECONDS)
            self._connections[lease.worker].send_lease(lease)
        else:
            self._loop.call_soon(self.wake)
        self._arm()

    def withdraw(self, task: Task, result: JobResult) -> None:
        """Nobody waits for a task any more: its worker is told, and it is done with this result."""
        lease, task.lease = task.lease, None
        if lease is None:
            return
        if self.book.revoke(lease):
            self._connections[lease.worker].send_cancel(lease.lease_id)
            self._count()
        task.done(result)

    def go_away(self) -> None:
        """Lease nothing more, and tell the workers so."""
        for worker, connection in self._connections.items():
            self.book.drain(worker)
            connection.send_go_away()
        self._count()

    # For the streams

    def join(self, worker_id: str, operations: Collection[str], connection: Connection) -> Worker[Task]:
        """A worker has said hello."""
        worker = self.book.join(worker_id, operations)
        self._connections[worker] = connection
        return worker

    def leave(self, worker: Worker[Task]) -> int:
        """A worker's stream has ended. Returns how many tasks it still had."""
        lost = self.book.leave(worker)
        self._connections.pop(worker, None)
        self._count()
        for lease in lost:
            self._lose(lease, f"worker {worker.worker_id} was lost")
        return len(lost)

    def hear(self, worker: Worker[Task], more: int) -> None:
        """A worker has sent something, and maybe credits; called after what it sent was carried out."""
        self.book.hear(worker)
        if more:
            self.book.grant(worker, more)
        self._count()
        self.wake()

    def drain(self, worker: Worker[Task]) -> None:
        """A worker takes nothing more."""
        self.book.drain(worker)
        self._connections[worker].send_go_away()

    def find(self, worker: Worker[Task], lease_id: int) -> Task | None:
        """What a worker has by this number; None: the lease is stale."""
        lease = self.book.find(worker, lease_id)
        return lease.task if lease is not None else None

    def finish(self, worker: Worker[Task], lease_id: int, result: JobResult | None) -> None:
        """A worker has answered for a lease; without a result it had not begun. A stale answer has no effect."""
        task = self.book.end(worker, lease_id)
        if task is None:
            return
        task.lease = None
        if result is not None:
            task.done(result)
        else:
            task.release()

    def extend(self, worker: Worker[Task], lease_ids: Iterable[int]) -> list[int]:
        """Keep leases for longer. Returns those that are stale."""
        return [lease_id for lease_id in lease_ids if not self.book.extend(worker, lease_id)]

    # Time

    def _arm(self) -> None:
        due_seconds = self.book.next_due_seconds()
        if due_seconds is None or due_seconds >= self._armed_seconds:
            return  # a timer that comes too soon finds nothing due and is armed anew
        if self._timer is not None:
            self._timer.cancel()
        self._armed_seconds = due_seconds
        self._timer = self._loop.call_at(due_seconds, self._fire)

    def _fire(self) -> None:
        now = self._loop.time()
        if now - self._armed_seconds > _STALL_SECONDS:
            # This process stood still itself: what its workers sent meanwhile is not read yet.
            self._armed_seconds = now + self.book.lease_seconds / 3
            self._timer = self._loop.call_at(self._armed_seconds, self._fire)
            return
        self._timer = None
        self._armed_seconds = float("inf")
        expired = self.book.pop_expired()
        self._count()
        for lease in expired:
            worker = lease.worker
            self._connections[worker].send_cancel(lease.lease_id)
            if now >= lease.end_seconds:
                lease.task.lease = None
                lease.task.done(JobResult(TIMEOUT, "nobody waits for it any more"))
                continue
            log.warning(
                "lease ran out group=%s worker=%s operation=%s lease_seconds=%g; somebody else gets the job",
                self.group.name, worker.worker_id, lease.task.operation, self.book.lease_seconds,
            )  # fmt: skip
            self._lose(lease, f"worker {worker.worker_id} gave no sign of life for {self.book.lease_seconds:g} s")
        self.wake()

    def _lose(self, lease: Lease[Task], error: str) -> None:
        if lease.task.lease is lease:  # not withdrawn meanwhile
            lease.task.lease = None
            lease.task.done(JobResult(WORKER_LOST, error, retry_after_seconds=0.0))

    def _count(self) -> None:
        if self.group.kind is WorkerKind.REMOTE:
            self.group.workers = self.book.capacity


class RemotePool:
    """All groups whose workers have streams. See `sipnap.sidecar.workers.base.WorkerPool`."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        lease_seconds: float = LEASE_SECONDS,
        make_queue: Callable[[Desk], TaskQueue] | None = None,
    ) -> None:
        """Begin without workers.

        Args:
            dispatcher: Whose groups these are.
            lease_seconds: How long a lease lasts, from its being handed out or extended.
            make_queue: Makes the queue of a group's desk; None: `LocalTasks`.
        """
        self.lease_seconds = lease_seconds
        self.is_leaving = False
        """Nothing more is leased; workers that come are sent on."""
        self._dispatcher = dispatcher
        self._make_queue = make_queue or (lambda desk: LocalTasks(desk, dispatcher))
        self._desks: dict[str, Desk] = {}

    def desk(self, group: WorkerGroup) -> Desk:
        """The desk of a group of kind remote or process."""
        desk = self._desks.get(group.name)
        if desk is None:
            desk = self._desks[group.name] = Desk(group, self.lease_seconds, self._make_queue)
        return desk

    def groups(self, kind: WorkerKind) -> list[WorkerGroup]:
        """The groups of a kind."""
        return [group for group in self._dispatcher.engine.jobs.groups.values() if group.kind is kind]

    @property
    def worker_count(self) -> int:
        """Workers that are connected."""
        return sum(len(desk.book.workers) for desk in self._desks.values())

    def wake(self, group: WorkerGroup) -> None:
        """See `WorkerPool`."""
        self.desk(group).wake()

    def stop(self, job: Job) -> None:
        """See `WorkerPool`. The worker is told; that it is free again is known from its credits alone."""
        self.desk(job.group).queue.stop(job)

    def go_away(self) -> None:
        """The sidecar is about to leave: lease nothing more, and send the workers on."""
        self.is_leaving = True
        for desk in self._desks.values():
            desk.go_away()
