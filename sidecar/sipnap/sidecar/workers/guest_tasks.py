"""Tasks that one sidecar has taken from the queue that it shares with others, those of one worker group.

Each is some sidecar's, maybe this one's. It is kept until its result has been taken by the sidecar that owns its front
end, or until nobody waits for it any more.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Protocol

from google.protobuf.message import DecodeError

from sipnap.client.keys import SuspensionKey
from sipnap.client.request_head import complete
from sipnap.sidecar.core.groups import JobResult
from sipnap.sidecar.core.leases import Lease
from sipnap.sidecar.journal.base import JournalError
from sipnap.sidecar.journal.tasks import Batch, HeldTask, Taken, TaskStore
from sipnap.sidecar.workers.remote import WORKER_LOST, Desk, Task
from sipnap.sidecar.workers.results import TaskResult
from sipnap.v1 import suspension_pb2 as pb
from sipnap.v1 import worker_service_pb2 as wire

_RETRY_SECONDS = 0.25
_DOUBTFUL_SECONDS = 10.0  # a command whose answer was not waited for may be carried out that much later
_MOST_AT_ONCE = 200

_GONE = JobResult("stopped", "nobody waited for it any more")

TASK_DAMAGED = "task_damaged"
"""Error code of a task that this version of sipnap cannot read."""

log = logging.getLogger("sipnap.workers")


class Deliveries(Protocol):
    """Where results go, and news."""

    async def deliver(self, group: str, front_end_id: str, results: Sequence[TaskResult]) -> list[bool]:
        """Have the owner of a front end take results. Returns for each whether it is dealt with; if not, try again."""

    def announce(self, group: str, owner: str, attempts: Sequence[tuple[str, int]]) -> None:
        """Tell an owner which attempts at its tasks have begun."""


class GuestTask:
    """A task in this sidecar's hands. See `sipnap.sidecar.workers.remote.Task`."""

    __slots__ = ("_guests", "_state", "_wanted", "held", "is_over", "lease")

    def __init__(self, held: HeldTask, guests: GuestTasks) -> None:
        self.held = held
        """What was taken."""
        self.is_over = False
        """It is out of the workers' hands."""
        self.lease: Lease[Task] | None = None
        self._guests = guests
        suspension = pb.Suspension.FromString(held.task.body)
        self._wanted = suspension.operations[int(held.task.name.rpartition("#")[2])]
        self._state = complete(suspension.state)

    @property
    def operation(self) -> str:
        """See `Task`."""
        return self.held.task.operation

    @property
    def prefix(self) -> str:
        """See `Task`."""
        return self._wanted.prefix

    @property
    def ends_seconds(self) -> float:
        """See `Task`."""
        return self.held.task.end_seconds

    def describe(self, message: wire.Lease) -> None:
        """See `Task`."""
        message.operation = self.operation
        message.arguments.extend(self._wanted.arguments)
        message.state.CopyFrom(self._state)
        message.key.CopyFrom(SuspensionKey.parse(self.held.task.name.partition("#")[0]).to_message())
        message.attempt = self.held.attempt

    def done(self, result: JobResult) -> None:
        """See `Task`."""
        self._guests.finish(self, result)

    def release(self) -> None:
        """See `Task`."""
        self._guests.give_back(self, tried=False)


class GuestTasks:
    """Takes tasks for the free workers of a desk, keeps them, and sees to it that results arrive."""

    def __init__(self, desk: Desk, store: TaskStore, deliveries: Deliveries, hear_total: Callable[[int], None]) -> None:
        """Begin empty; `fetch_forever` takes tasks, and tells `hear_total` how many the group has, of all sidecars."""
        self._desk = desk
        self._group = desk.group.name
        self._store = store
        self._deliveries = deliveries
        self._hear_total = hear_total
        self._loop = asyncio.get_running_loop()
        self._tasks: dict[str, GuestTask] = {}
        self._waiting: list[GuestTask] = []
        self._results: dict[str, dict[Taken, TaskResult]] = defaultdict(dict)
        self._couriers: dict[str, asyncio.Task[None]] = {}
        self._giving: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._taking = asyncio.Lock()
        self._doubtful: set[str] = set()  # operations of which we may have tasks without knowing it
        self._doubtful_until_seconds = 0.0
        self._is_leaving = False
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._tasks) + sum(map(len, self._results.values()))

    # For the desk

    def take(self, operations: Container[str]) -> GuestTask | None:
        """The first task that waits here and asks for one of these operations."""
        for index, task in enumerate(self._waiting):
            if task.operation in operations:
                return self._waiting.pop(index)
        return None

    def look(self) -> None:
        """Workers have become free, or have come."""
        self._changed.set()

    def finish(self, task: GuestTask, result: JobResult) -> None:
        """A worker has ended a task."""
        if task.is_over:
            return
        held = task.held
        if result.error_code and result.retry_after_seconds == 0.0 and held.attempt < held.task.max_attempts:
            self.give_back(task, tried=True)
            return
        self._put_aside(task)
        self._deliver(TaskResult(held.taken, held.attempt, result))

    def give_back(self, task: GuestTask, *, tried: bool) -> None:
        """A task is to be had by whoever comes."""
        if not task.is_over:
            self._put_aside(task)
            self._give_back([task.held.taken], tried=tried)

    # For the sidecar

    async def fetch_forever(self) -> None:
        """Take what the free workers can run, until cancelled."""
        dry: set[str] = set()  # operations of which there was nothing when we began to listen
        listening: asyncio.Task[bool] | None = None
        try:
            while True:
                self._changed.clear()
                if listening is not None and listening.done():
                    listening.exception()  # a Redis that fails is heard of by the next take
                    listening = None
                    dry.clear()
                heard = ""
                try:
                    for operations, places in self._appetite():
                        if dry.issuperset(operations):
                            continue
                        batch = await self._take(operations, min(places, _MOST_AT_ONCE))
                        heard = heard or batch.heard
                        if len(batch.tasks) < min(places, _MOST_AT_ONCE):
                            dry.update(operations)
                except JournalError as error:  # the dispatcher finds it out too, and says so
                    log.debug("no tasks can be taken group=%s reason=%s", self._group, error)
                    await asyncio.sleep(_RETRY_SECONDS)
                    self._changed.set()
                    continue
                if dry and listening is None:
                    listening = self._loop.create_task(self._store.listen(self._group, heard))
                    listening.add_done_callback(lambda _: self._changed.set())
                await self._changed.wait()
        finally:
            if listening is not None:
                listening.cancel()

    async def keep(self) -> None:
        """Keep what is here, and stop what is not ours any more.

        Raises:
            JournalError: The queue cannot be reached.
        """
        if self._doubtful:
            async with self._taking:
                await self._store.recall(self._group, sorted(self._doubtful), self._taken())
            if self._loop.time() > self._doubtful_until_seconds:
                self._doubtful.clear()
        for gone in await self._store.keep(self._group, self._taken()):
            self._results[gone.name.partition("/")[0]].pop(gone, None)
            task = self._tasks.get(gone.name)
            if task is not None and task.held.taken == gone:
                self._withdraw(task)
        for front_end_id in [name for name, results in self._results.items() if not results]:
            del self._results[front_end_id]

    async def claim_lost(self) -> None:
        """Take the tasks of sidecars that have died, if there is a worker here that could run them.

        Raises:
            JournalError: The queue cannot be reached.
        """
        operations = {name for worker in self._desk.book.workers for name in worker.operations}
        if operations:
            await self._store.claim_lost(self._group, sorted(operations))

    def stop(self, name: str) -> None:
        """Nobody waits for a task any more."""
        task = self._tasks.get(name)
        if task is not None:
            self._withdraw(task)

    def leave(self) -> None:
        """Take nothing more."""
        self._is_leaving = True

    async def close(self) -> None:
        """Give everything back that has no result yet."""
        self._is_leaving = self._is_closed = True
        async with self._taking:
            pass  # what is being taken comes first, or nobody would know of it
        for task in self._tasks.values():
            task.is_over = True
        taken = [task.held.taken for task in self._tasks.values()]
        self._tasks.clear()
        for courier in self._couriers.values():
            courier.cancel()
        await asyncio.gather(*self._giving)
        if taken:
            try:
                await self._store.give_back(self._group, taken, tried=True)
            except JournalError as error:
                log.warning("tasks could not be given back, others will miss us group=%s reason=%s", self._group, error)

    # Within

    async def _take(self, operations: Sequence[str], most: int) -> Batch:
        async with self._taking:
            if self._is_leaving:
                return Batch([], 0, "")
            try:
                batch = await self._store.take(self._group, operations, most)
            except JournalError:
                self._doubtful.update(operations)
                self._doubtful_until_seconds = self._loop.time() + _DOUBTFUL_SECONDS
                raise
            self._hear_total(batch.total)
            self._accept(batch.tasks)
            return batch

    def _appetite(self) -> list[tuple[tuple[str, ...], int]]:
        """What the free workers can run, and how many of it."""
        places: dict[frozenset[str], int] = defaultdict(int)
        for worker in () if self._is_leaving else self._desk.book.ready:
            places[worker.operations] += worker.credits
        return [(tuple(operations), count) for operations, count in places.items()]

    def _accept(self, taken: Iterable[HeldTask]) -> None:
        begun: dict[str, list[tuple[str, int]]] = defaultdict(list)
        now = self._loop.time()
        for held in taken:
            if held.task.end_seconds <= now:
                continue  # nobody waits for it; the queue forgets it by itself
            if held.attempt > held.task.max_attempts:
                lost = JobResult(WORKER_LOST, "the sidecar of its worker was lost")
                self._deliver(TaskResult(held.taken, held.task.max_attempts, lost))
                continue
            try:
                task = GuestTask(held, self)
            except (DecodeError, IndexError, ValueError) as error:
                damaged = JobResult(TASK_DAMAGED, f"what was queued cannot be read: {error}")
                self._deliver(TaskResult(held.taken, held.attempt, damaged))
                continue
            self.stop(held.task.name)  # had before, not kept in time, and got again
            self._tasks[held.task.name] = task
            self._waiting.append(task)
            begun[held.owner].append((held.task.name, held.attempt))
        self._desk.wake()
        surplus, self._waiting = self._waiting, []
        for task in surplus:  # a worker has left meanwhile
            self._put_aside(task)
        if surplus:
            self._give_back([task.held.taken for task in surplus], tried=False)
        for owner, attempts in begun.items():
            self._deliveries.announce(self._group, owner, attempts)

    def _taken(self) -> list[Taken]:
        """All that is here."""
        running = [task.held.taken for task in self._tasks.values()]
        return running + [taken for results in self._results.values() for taken in results]

    def _put_aside(self, task: GuestTask) -> None:
        task.is_over = True
        if self._tasks.get(task.held.task.name) is task:
            del self._tasks[task.held.task.name]

    def _withdraw(self, task: GuestTask) -> None:
        self._put_aside(task)
        self._desk.withdraw(task, _GONE)

    def _give_back(self, taken: Sequence[Taken], *, tried: bool) -> None:
        async def give() -> None:
            try:
                await self._store.give_back(self._group, taken, tried=tried)
            except JournalError as error:  # whoever looks for lost tasks finds it
                log.debug("tasks are left to be found group=%s tasks=%d reason=%s", self._group, len(taken), error)

        giving = self._loop.create_task(give())
        self._giving.add(giving)
        giving.add_done_callback(self._giving.discard)

    def _deliver(self, result: TaskResult) -> None:
        front_end_id = result.taken.name.partition("/")[0]
        self._results[front_end_id][result.taken] = result
        if front_end_id not in self._couriers and not self._is_closed:
            self._couriers[front_end_id] = self._loop.create_task(self._carry(front_end_id))

    async def _carry(self, front_end_id: str) -> None:
        """Until all results of a front end are dealt with; what comes meanwhile goes with the next letter."""
        try:
            while results := list(self._results[front_end_id].values())[:_MOST_AT_ONCE]:
                dealt_with = await self._deliveries.deliver(self._group, front_end_id, results)
                for result, is_dealt_with in zip(results, dealt_with, strict=True):
                    if is_dealt_with:
                        self._results[front_end_id].pop(result.taken, None)
                if not all(dealt_with):
                    await asyncio.sleep(_RETRY_SECONDS)
        finally:
            del self._couriers[front_end_id]
