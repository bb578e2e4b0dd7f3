"""Workers of kind async: operations run as coroutines of this process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from sipnap.client.operations import Operation, OperationError, arguments_of, error_of, named_values
from sipnap.sidecar.core.groups import Job, JobResult, WorkerGroup
from sipnap.sidecar.workers.base import OPERATION_UNKNOWN, work_of

if TYPE_CHECKING:
    from sipnap.sidecar.dispatcher import Dispatcher

_MOST_STARTS_PER_TURN = 200
"""Jobs started before the loop gets a turn again: a thousand new workers must not silence the RPCs."""

_SECONDS_BETWEEN_REPORTS = 10.0

_STOPPED = JobResult("stopped", "the operation was cancelled from within")

log = logging.getLogger("sipnap.operations")


class CoroutinePool:
    """Runs each job as a task; the groups decide how many at a time. See `sipnap.sidecar.workers.base.WorkerPool`."""

    def __init__(self, dispatcher: Dispatcher, operations: Mapping[str, Operation]) -> None:
        self._dispatcher = dispatcher
        self._operations = operations
        self._raised: dict[str, int] = {}
        self._reported_seconds: dict[str, float] = {}

    def wake(self, group: WorkerGroup) -> None:
        """Start what the group has workers for."""
        loop = asyncio.get_running_loop()
        for _ in range(_MOST_STARTS_PER_TURN):
            job = self._dispatcher.take_job(group)
            if job is None:
                return
            task = loop.create_task(self._run(job), name=f"operation {job.operation}")
            job.runner = task
            task.add_done_callback(partial(self._ended, job))
        loop.call_soon(self.wake, group)

    def stop(self, job: Job) -> None:
        """Cancel the job's task. Its worker stays busy until the handler has let go."""
        if isinstance(job.runner, asyncio.Task):
            job.runner.cancel()

    def _ended(self, job: Job, task: asyncio.Task[JobResult]) -> None:
        job.runner = None
        self._dispatcher.job_done(job, _STOPPED if task.cancelled() else task.result())

    async def _run(self, job: Job) -> JobResult:
        try:
            wanted, state = work_of(job)
            operation = self._operations.get(job.operation)
            if operation is None:
                return JobResult(OPERATION_UNKNOWN, "this sidecar does not know it any more (--operations)")
            found = await operation.handler(arguments_of(wanted.arguments), state)
            return JobResult(values=tuple(value.SerializeToString() for value in named_values(found, wanted.prefix)))
        except OperationError as failed:
            return JobResult(failed.code, failed.text, retry_after_seconds=failed.retry_after_seconds)
        except SystemExit as raised:  # it would end the sidecar
            self._report(job, raised)
            return JobResult("system_exit", f"the operation called sys.exit({raised.code!r})")
        except Exception as raised:  # an operation is somebody else's code: whatever it raises is its answer
            self._report(job, raised)
            error = error_of(raised)
            return JobResult(error.code, error.text)

    def _report(self, job: Job, raised: BaseException) -> None:
        """Log what no operation should raise, of each operation now and then: it may raise it for every call."""
        self._raised[job.operation] = times = self._raised.get(job.operation, 0) + 1
        now_seconds = asyncio.get_running_loop().time()
        if now_seconds >= self._reported_seconds.get(job.operation, 0.0) + _SECONDS_BETWEEN_REPORTS:
            self._reported_seconds[job.operation] = now_seconds
            log.warning(
                "operation raised what it should not name=%s key=%s error=%r times=%d",
                job.operation, job.held.key, raised, times,
            )  # fmt: skip
