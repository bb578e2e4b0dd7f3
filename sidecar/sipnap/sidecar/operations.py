"""Runs operations as coroutines of this process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sipnap.client.operations import Operation, arguments_of, error_of, named_values
from sipnap.sidecar.core.groups import Job
from sipnap.v1 import suspension_pb2 as pb

log = logging.getLogger("sipnap.operations")


@dataclass(frozen=True, slots=True)
class Answer:
    """How an operation ended."""

    error: str
    """What went wrong; empty: nothing."""
    values: tuple[bytes, ...] = ()
    """What it found: encoded NamedValue messages."""


class Runner:
    """Runs jobs as tasks. The worker groups decide how many at a time."""

    def __init__(self, operations: Mapping[str, Operation]) -> None:
        self.operations = operations

    def start(self, job: Job, done: Callable[[Job, Answer], None]) -> None:
        """Start a job; `done` is called once, also when it was stopped."""
        task = asyncio.get_running_loop().create_task(self._run(job), name=f"operation {job.operation}")
        job.runner = task
        task.add_done_callback(lambda ended: done(job, Answer("stopped") if ended.cancelled() else ended.result()))

    def stop(self, job: Job) -> None:
        """Cancel a running job; its `done` follows."""
        if isinstance(job.runner, asyncio.Task):
            job.runner.cancel()

    async def _run(self, job: Job) -> Answer:
        suspension = pb.Suspension.FromString(job.held.payload)
        arguments = arguments_of(suspension.operations[0].arguments)
        try:
            found = await self.operations[job.operation].handler(arguments, suspension.state)
            return Answer("", tuple(value.SerializeToString() for value in named_values(found)))
        except Exception as error:  # an operation is somebody else's code: whatever it raises is its answer
            log.info("operation failed name=%s key=%s error=%r", job.operation, job.held.key, error)
            return Answer(error_of(error).text)
