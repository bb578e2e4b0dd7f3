"""Groups of kind remote where several sidecars share a journal: each hands out the jobs of all.

A job of this sidecar is put into the queue that all share (`OwnedJobs`); a sidecar with a free worker takes it, maybe
this one (`GuestTasks`), and hands the result to whichever sidecar owns the front end by then. What is said between
sidecars travels as letters, which may be lost: a result is sent until it is taken, the rest is found out later.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Container, Coroutine, Sequence
from typing import TYPE_CHECKING

from sipnap.sidecar.core.groups import Job, WorkerGroup, WorkerKind
from sipnap.sidecar.hand_over import HandOver, OwnerRefused, OwnerSilent
from sipnap.sidecar.journal.base import JournalError
from sipnap.sidecar.journal.tasks import TaskStore
from sipnap.sidecar.workers.guest_tasks import GuestTask, GuestTasks
from sipnap.sidecar.workers.owned_jobs import OwnedJobs
from sipnap.sidecar.workers.remote import Desk, LocalTasks, RemotePool, TaskQueue
from sipnap.sidecar.workers.results import TaskResult, pack, pack_attempts, unpack, unpack_attempts

if TYPE_CHECKING:
    from sipnap.sidecar.dispatcher import Dispatcher

_TICKS_PER_LEASE = 4
_TICKS_PER_LOOK = 4
_RESULTS, _BEGUN, _GONE = "Results", b"begun", b"gone"

log = logging.getLogger("sipnap.workers")


class SharedQueue:
    """The queue of one group's desk. See `sipnap.sidecar.workers.remote.TaskQueue`."""

    def __init__(self, owned: OwnedJobs, guests: GuestTasks) -> None:
        self.owned = owned
        """This sidecar's jobs, wherever they are run."""
        self.guests = guests
        """What is run here, whosever it is."""

    def take(self, operations: Container[str]) -> GuestTask | None:
        """See `TaskQueue`."""
        return self.guests.take(operations)

    def want(self, places: int) -> None:
        """See `TaskQueue`."""
        self.guests.look()

    def stop(self, job: Job) -> None:
        """See `TaskQueue`."""
        self.owned.stop(job)


class SharedPool:
    """All groups of kind remote. See `sipnap.sidecar.workers.base.WorkerPool`."""

    def __init__(self, dispatcher: Dispatcher, store: TaskStore, instance_id: str) -> None:
        """Begin without groups; `make_queue` is for the `RemotePool` that is then given to `start`."""
        self._dispatcher = dispatcher
        self._store = store
        self._instance_id = instance_id
        self._queues: dict[str, SharedQueue] = {}
        self._remote: RemotePool
        self._letters: HandOver
        self._caretaker: asyncio.Task[None]
        self._running: set[asyncio.Task[None]] = set()

    @property
    def busy(self) -> int:
        """How many tasks are here, running or with a result that has not arrived."""
        return sum(len(queue.guests) for queue in self._queues.values())

    def make_queue(self, desk: Desk) -> TaskQueue:
        """The queue of a desk; that of the sidecar's own processes is not shared."""
        group = desk.group
        if group.kind is not WorkerKind.REMOTE:
            return LocalTasks(desk, self._dispatcher)

        def tell_holder(holder: str, name: str) -> None:
            if holder == self._instance_id:
                guests.stop(name)
            else:
                self._tell_soon(holder, _GONE, f"{group.name}\n{name}".encode())

        owned = OwnedJobs(self._dispatcher, group, self._store, tell_holder)
        guests = GuestTasks(desk, self._store, self, owned.heard_total)
        queue = self._queues[group.name] = SharedQueue(owned, guests)
        fetching = self._run(guests.fetch_forever())
        fetching.set_name(f"tasks for {group.name}")
        return queue

    def start(self, remote: RemotePool, letters: HandOver) -> None:
        """Begin to look after what comes to the desks of this pool. Before the dispatcher starts."""
        self._remote, self._letters = remote, letters
        letters.calls[_RESULTS] = self._take_results
        letters.subjects[_BEGUN] = self._hear_begun
        letters.subjects[_GONE] = self._hear_gone
        self._caretaker = self._run(self._look_after_forever())

    def leave(self) -> None:
        """Take nothing more, and send the workers on; what is here ends here."""
        for group in self._remote.groups(WorkerKind.REMOTE):
            self._queue_of(group).guests.leave()
            self._remote.desk(group).go_away()

    async def close(self) -> None:
        """End, and give back what has no result."""
        for queue in self._queues.values():
            queue.owned.close()
            await queue.guests.close()
        for task in self._running:
            task.cancel()

    def wake(self, group: WorkerGroup) -> None:
        """See `WorkerPool`."""
        self._queue_of(group).owned.send()

    def stop(self, job: Job) -> None:
        """See `WorkerPool`."""
        self._queue_of(job.group).stop(job)

    # See `sipnap.sidecar.workers.guest_tasks.Deliveries`

    async def deliver(self, group: str, front_end_id: str, results: Sequence[TaskResult]) -> list[bool]:
        """Have the owner take results: here, if it seems so, else by letter."""
        try:
            owned = self._queues[group].owned
            if all(result.taken.name in owned for result in results):
                dealt_with = await owned.settle(results, is_sure=False)
                if all(dealt_with):
                    return dealt_with
            answer = await self._letters.ask(front_end_id, _RESULTS, group.encode() + b"\n" + pack(results))
            if answer is not None:
                return [bool(flag) for flag in answer]
            if front_end_id in self._dispatcher.engine.front_ends and not self._dispatcher.is_claiming(front_end_id):
                return await owned.settle(results, is_sure=True)
        except (JournalError, OwnerRefused, OwnerSilent) as error:
            log.debug("results wait for their owner front_end=%s results=%d why=%s", front_end_id, len(results), error)
        return [False] * len(results)

    def announce(self, group: str, owner: str, attempts: Sequence[tuple[str, int]]) -> None:
        """Tell an owner which attempts at its tasks have begun."""
        if owner == self._instance_id:
            for name, attempt in attempts:
                self._queues[group].owned.begin(name, attempt)
        elif owner:
            self._tell_soon(owner, _BEGUN, f"{group}\n{pack_attempts(attempts)}".encode())

    # Letters

    async def _take_results(self, letter: bytes) -> bytes:
        """Results of tasks, from the sidecar that had them: bytes that say for each whether it is dealt with."""
        group_name, _, packed = letter.partition(b"\n")
        try:
            results = unpack(packed)
        except ValueError as error:
            log.error("another sidecar sends results that cannot be read; is it of another version? why=%s", error)
            raise OwnerRefused(b"") from error
        if any(self._dispatcher.is_claiming(result.taken.name.partition("/")[0]) for result in results):
            raise OwnerRefused(b"")  # what they are for may be known in a moment
        group = self._dispatcher.engine.jobs.groups.get(group_name.decode())
        try:
            if group is not None and group.kind is WorkerKind.REMOTE:
                return bytes(await self._queue_of(group).owned.settle(results, is_sure=True))
            # Restored here into another group, as this one is not known: it ends there.
            await self._store.finish(group_name.decode(), [result.taken for result in results], is_sure=True)
        except JournalError as error:
            raise OwnerRefused(b"") from error
        return b"\1" * len(results)

    def _hear_begun(self, letter: bytes) -> None:
        group, _, attempts = letter.decode(errors="replace").partition("\n")
        queue = self._queues.get(group)
        if queue is not None:
            for name, attempt in unpack_attempts(attempts):
                queue.owned.begin(name, attempt)

    def _hear_gone(self, letter: bytes) -> None:
        group, _, name = letter.decode(errors="replace").partition("\n")
        queue = self._queues.get(group)
        if queue is not None:
            queue.guests.stop(name)

    def _tell_soon(self, instance_id: str, subject: bytes, news: bytes) -> None:
        async def tell() -> None:
            try:
                await self._letters.tell(instance_id, subject, news)
            except JournalError as error:  # it is found out without the letter
                log.debug("a letter could not be sent to=%s subject=%s reason=%s", instance_id, subject, error)

        telling = self._run(tell())
        telling.set_name(f"letter to {instance_id}")

    # Within

    def _queue_of(self, group: WorkerGroup) -> SharedQueue:
        self._remote.desk(group)  # has it made
        return self._queues[group.name]

    async def _look_after_forever(self) -> None:
        tick = 0
        while True:
            tick += 1
            await asyncio.sleep(self._store.lease_seconds / _TICKS_PER_LEASE * random.uniform(0.8, 1.0))
            for queue in list(self._queues.values()):
                try:
                    await queue.owned.look()
                    await queue.guests.keep()
                    await queue.guests.claim_lost()
                    if tick % _TICKS_PER_LOOK == 0:
                        await queue.owned.put_missing()
                except JournalError as error:  # the dispatcher finds it out too, and says so
                    log.debug("tasks cannot be looked after reason=%s", error)

    def _run(self, coroutine: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task
