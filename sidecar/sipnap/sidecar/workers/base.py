"""What the dispatcher asks of those who run operations, whichever kind of workers they have."""

from __future__ import annotations

from typing import Protocol

from sipnap.client.outstanding import seconds_of
from sipnap.client.request_head import complete
from sipnap.sidecar.core.groups import Job, WorkerGroup
from sipnap.sidecar.core.suspension import OperationRequest
from sipnap.v1 import suspension_pb2 as pb

OPERATION_UNKNOWN = "operation_unknown"
"""Error code of an operation that was accepted by a sidecar that knew it, and recovered by one that does not."""


class WorkerPool(Protocol):
    """The workers of all groups of one kind. Belongs to the dispatcher's event loop; its methods return at once.

    A pool takes jobs by `Dispatcher.take_job` and says for each of them, exactly once, how it ended by
    `Dispatcher.job_done`, or that it was not begun by `Dispatcher.release_job`; also for a job that was stopped. Each
    attempt is a `Job` of its own. The engine keeps the times: the pool need not watch a job's `ends_seconds`.
    """

    def wake(self, group: WorkerGroup) -> None:
        """The group's queue or its number of workers has changed: start what can be started now."""

    def stop(self, job: Job) -> None:
        """Nobody waits for this running job any more. `job_done` follows when its worker is free, with any result."""


def work_of(job: Job) -> tuple[pb.Operation, pb.TransactionState]:
    """What a job is to do: the operation as it was asked for (arguments, prefix), and what is known of the request."""
    suspension = pb.Suspension.FromString(job.held.payload)
    return suspension.operations[job.index], complete(suspension.state)


def operations_of(suspension: pb.Suspension) -> tuple[OperationRequest, ...]:
    """The operations that a suspension asks for, for the core to judge."""
    return tuple(
        OperationRequest(
            operation.name,
            operation.group,
            operation.prefix,
            seconds_of(operation.timeout) if operation.HasField("timeout") else None,
            operation.max_attempts,
        )
        for operation in suspension.operations
    )
