"""One sidecar's own jobs in the queue that it shares with others, those of one worker group."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sipnap.client.keys import SuspensionKey
from sipnap.sidecar.core.groups import Job, JobResult, JobState, WorkerGroup
from sipnap.sidecar.journal.base import JournalError
from sipnap.sidecar.journal.tasks import Finish, Task, TaskStore
from sipnap.sidecar.workers.results import TaskResult

if TYPE_CHECKING:
    from sipnap.sidecar.dispatcher import Dispatcher

_RETRY_SECONDS = 1.0
_MOST_AT_ONCE = 1000

_STOPPED = JobResult("stopped", "nobody waited for it any more")

log = logging.getLogger("sipnap.workers")


class OwnedJobs:
    """Puts the jobs of a group into the shared queue, and knows them again when a result comes.

    What is put and what is dropped reaches the queue in the order of the calls, as soon as the queue can be reached.
    """

    def __init__(
        self, dispatcher: Dispatcher, group: WorkerGroup, store: TaskStore, tell_holder: Callable[[str, str], None]
    ) -> None:
        """Begin empty.

        Args:
            dispatcher: Whose jobs they are.
            group: Of which group.
            store: The shared queue.
            tell_holder: Called with the instance id of a sidecar and the name of a task that it has, which nobody waits
                for any more.
        """
        self._dispatcher = dispatcher
        self._group = group
        self._store = store
        self._tell_holder = tell_holder
        self._jobs: dict[str, Job] = {}
        self._orders: deque[tuple[str, Job | None]] = deque()  # to put; without a job: to drop
        self._ordered: dict[str, int] = {}  # how many orders there are for a name
        self._settling: set[str] = set()
        self._writer: asyncio.Task[None] | None = None

    def __contains__(self, name: object) -> bool:
        """Whether a task is one of these jobs."""
        return name in self._jobs

    def __len__(self) -> int:
        return len(self._jobs)

    def send(self) -> None:
        """Put what is new in the group."""
        while (job := self._dispatcher.send_job(self._group)) is not None:
            name = name_of(job)
            self._jobs[name] = job
            self._order(name, job)

    def stop(self, job: Job) -> None:
        """Nobody waits for a job any more. It is dropped, unless its front end is another sidecar's business by now."""
        name = name_of(job)
        if self._jobs.get(name) is job:
            del self._jobs[name]
        front_end = job.held.front_end
        if self._dispatcher.engine.front_ends.get(front_end.front_end_id) is front_end:
            self._order(name, None)
        if job.state is JobState.RUNNING:
            self._dispatcher.job_done(job, _STOPPED)

    def begin(self, name: str, attempt: int) -> None:
        """A worker somewhere has taken a task."""
        job = self._jobs.get(name)
        if job is not None:
            self._dispatcher.begin_job(job, attempt)

    async def settle(self, results: Sequence[TaskResult], *, is_sure: bool) -> list[bool]:
        """Results have come.

        Args:
            results: They may be old, repeated, or of tasks that nobody knows: those end here.
            is_sure: This sidecar is known to own their front ends at this moment.

        Returns:
            For each whether it is dealt with; if not, it is another sidecar's.

        Raises:
            JournalError: The queue cannot be reached; nothing has changed.
        """
        names = {result.taken.name for result in results}
        self._settling |= names
        try:
            words = await self._store.finish(self._group.name, [result.taken for result in results], is_sure=is_sure)
        finally:
            self._settling -= names
        for (taken, attempt, result), word in zip(results, words, strict=True):
            job = self._jobs.get(taken.name)
            if word is Finish.STALE or word is Finish.FOREIGN:
                log.debug("result is of no use task=%s attempt=%d why=%s", taken.name, attempt, word.name)
            elif job is not None and attempt >= job.attempt:  # of a former attempt: it has timed out
                del self._jobs[taken.name]
                self._dispatcher.begin_job(job, attempt)
                self._dispatcher.job_done(job, result)
        return [word is not Finish.FOREIGN for word in words]

    async def look(self) -> None:
        """Find out how many tasks the group has: those of others take room as well.

        Raises:
            JournalError: The queue cannot be reached.
        """
        self.heard_total(await self._store.count(self._group.name))

    def heard_total(self, total: int) -> None:
        """The group has so many tasks, of all sidecars."""
        self._group.queued_elsewhere = max(0, total - len(self._jobs))

    async def put_missing(self) -> None:
        """Put again what the queue does not have, or not as ours.

        Raises:
            JournalError: The queue cannot be reached.
        """
        names = [name for name in self._jobs if self._is_quiet(name)]
        missing = await self._store.missing(self._group.name, names)
        again = [(name, job) for name in missing if (job := self._jobs.get(name)) is not None and self._is_quiet(name)]
        for name, job in again:
            self._order(name, job)
        if again:
            log.warning("tasks were not in redis any more, put again group=%s tasks=%d", self._group.name, len(again))

    def close(self) -> None:
        """Write nothing more."""
        if self._writer is not None:
            self._writer.cancel()

    def _is_quiet(self, name: str) -> bool:
        return name not in self._ordered and name not in self._settling

    def _order(self, name: str, job: Job | None) -> None:
        self._orders.append((name, job))
        self._ordered[name] = self._ordered.get(name, 0) + 1
        if self._writer is None or self._writer.done():
            self._writer = asyncio.get_running_loop().create_task(self._write(), name=f"tasks of {self._group.name}")

    async def _write(self) -> None:
        while self._orders:
            try:
                count = await self._write_some()
            except JournalError as error:  # the dispatcher finds it out too, and says so
                log.debug(
                    "tasks wait for redis group=%s orders=%d reason=%s", self._group.name, len(self._orders), error
                )
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            for _ in range(count):
                name, _ = self._orders.popleft()
                self._ordered[name] -= 1
                if not self._ordered[name]:
                    del self._ordered[name]

    async def _write_some(self) -> int:
        """Carry out the first orders, of one sort and of each name one. Returns how many."""
        is_put = self._orders[0][1] is not None
        orders: dict[str, Job | None] = {}
        for name, job in self._orders:
            if (job is not None) is not is_put or name in orders or len(orders) == _MOST_AT_ONCE:
                break
            orders[name] = job
        if is_put:
            tasks = [
                task_of(name, job) for name, job in orders.items() if job is not None and self._jobs.get(name) is job
            ]
            if tasks:
                self.heard_total(await self._store.put(self._group.name, tasks))
        else:
            holders = await self._store.drop(self._group.name, list(orders))
            for name, holder in zip(orders, holders, strict=True):
                if holder:
                    self._tell_holder(holder, name)
        return len(orders)


def name_of(job: Job) -> str:
    """The name of a job's task."""
    held = job.held
    return f"{SuspensionKey(held.front_end.front_end_id, *held.key)}#{job.index}"


def task_of(name: str, job: Job) -> Task:
    """A job as any sidecar can have it run."""
    held = job.held
    return Task(name, job.operation, held.due_seconds, job.attempt, job.policy.max_attempts, held.payload)
