"""`WorkerService`: the stream of one worker, one reader and one writer."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable
from typing import Any, NoReturn

import grpc

from sipnap.client.gather import Gatherer
from sipnap.client.keys import is_front_end_id
from sipnap.client.outstanding import seconds_of, set_duration
from sipnap.client.worker import PROTOCOL_VERSION
from sipnap.sidecar.core.groups import JobResult, WorkerKind
from sipnap.sidecar.core.leases import Lease, Worker
from sipnap.sidecar.services.translate import Context, abort
from sipnap.sidecar.workers.remote import MOST_WORKERS, Desk, RemotePool, Task
from sipnap.v1 import suspension_pb2 as pb
from sipnap.v1 import worker_service_pb2 as wire
from sipnap.v1.worker_service_pb2_grpc import WorkerServiceServicer

BAD_RESULT = "bad_result"
"""Error code of a job whose worker answered with what cannot be sent on."""

_HELLO_SECONDS = 10.0
_MOST_OPERATIONS = 256
_MOST_LEASES_PER_MESSAGE = 64
_MOST_VALUES = 256
_LONGEST_ERROR_CHARACTERS = 400
_OPERATION_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,64}\Z")
_VALUE_NAME = re.compile(r"[A-Za-z0-9_]{1,64}\Z")
_ERROR_CODE = re.compile(r"[a-z0-9_]{1,64}\Z")

log = logging.getLogger("sipnap.workers")


class WorkerServicer(WorkerServiceServicer):
    """See `protos/sipnap/v1/worker_service.proto`."""

    def __init__(
        self,
        pool: RemotePool,
        instance_id: str,
        max_result_bytes: int,
        *,
        kind: WorkerKind = WorkerKind.REMOTE,
        on_join: Callable[[str], None] = lambda worker_id: None,
    ) -> None:
        """Serve workers.

        Args:
            pool: Where they get their tasks.
            instance_id: The sidecar's, for the welcome.
            max_result_bytes: Largest result of one job, encoded.
            kind: Groups of this kind, and no others, can be joined.
            on_join: Told the id of each worker that has joined.
        """
        self._pool = pool
        self._instance_id = instance_id
        self._max_result_bytes = max_result_bytes
        self._kind = kind
        self._on_join = on_join

    async def Work(  # type: ignore[override]  # grpc.aio's form with read and write, not a generator
        self, requests: AsyncIterator[wire.WorkRequest], context: Context
    ) -> None:
        """Serve one stream until either side ends it."""
        hello = await self._read_hello(requests, context)
        desk = await self._find_desk(hello, context)
        stream = _Stream(desk, context, self._max_result_bytes)
        worker = stream.worker = desk.join(hello.worker_id, frozenset(hello.operations), stream)
        log.info(
            "worker connected group=%s worker=%s operations=%s peer=%s",
            hello.group, hello.worker_id, ",".join(sorted(worker.operations)), context.peer(),
        )  # fmt: skip
        welcome = wire.WorkerWelcome(protocol_version=PROTOCOL_VERSION, instance_id=self._instance_id)
        set_duration(welcome.lease_time, self._pool.lease_seconds)
        reader = asyncio.create_task(stream.read(requests), name=f"{hello.worker_id} reader")
        writer = asyncio.create_task(stream.write(welcome), name=f"{hello.worker_id} writer")
        self._on_join(hello.worker_id)
        try:
            ends: set[asyncio.Future[Any]] = {reader, writer}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            lost = desk.leave(worker)
            for task in (reader, writer):
                task.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)
            log.log(
                logging.WARNING if lost else logging.INFO,
                "worker disconnected group=%s worker=%s jobs_lost=%d", hello.group, hello.worker_id, lost,
            )  # fmt: skip

    async def _read_hello(self, requests: AsyncIterator[wire.WorkRequest], context: Context) -> wire.WorkerHello:
        first: wire.WorkRequest | None = None
        try:
            async with asyncio.timeout(_HELLO_SECONDS):
                first = await anext(requests, None)
        except TimeoutError:
            await abort(context, grpc.StatusCode.DEADLINE_EXCEEDED, "INVALID", f"no hello within {_HELLO_SECONDS:g} s")
        if first is None or not first.HasField("hello"):
            await _refuse(context, "the first message of a worker has to carry hello")
        hello = first.hello
        if hello.protocol_version != PROTOCOL_VERSION:
            await abort(
                context, grpc.StatusCode.FAILED_PRECONDITION, "PROTOCOL",
                f"protocol version {hello.protocol_version} is not spoken here, only {PROTOCOL_VERSION}",
            )  # fmt: skip
        if not is_front_end_id(hello.worker_id):
            await _refuse(context, f"hello: worker_id {hello.worker_id[:160]!r} is not 1 to 128 of [A-Za-z0-9._:-]")
        if not 1 <= len(hello.operations) <= _MOST_OPERATIONS:
            await _refuse(context, f"hello: {len(hello.operations)} operations, expected 1 to {_MOST_OPERATIONS}")
        for name in hello.operations:
            if not _OPERATION_NAME.match(name):
                await _refuse(context, f"hello: operation {name[:160]!r} is not 1 to 64 of [A-Za-z0-9_.:-]")
        return hello

    async def _find_desk(self, hello: wire.WorkerHello, context: Context) -> Desk:
        pool = self._pool
        if pool.is_leaving:
            await abort(context, grpc.StatusCode.UNAVAILABLE, "DRAINING", "the sidecar is shutting down")
        if pool.worker_count >= MOST_WORKERS:
            await abort(
                context, grpc.StatusCode.RESOURCE_EXHAUSTED, "FULL", f"{MOST_WORKERS} workers are connected already"
            )
        groups = {group.name: group for group in pool.groups(self._kind)}
        group = groups.get(hello.group)
        if group is None:
            names = ", ".join(groups) or "none"
            await abort(
                context, grpc.StatusCode.FAILED_PRECONDITION, "GROUP_UNKNOWN",
                f"hello: {hello.group[:80]!r} is no group of kind {self._kind.value} here (there are: {names}); start "
                f"the sidecar with --group name=NAME,kind={self._kind.value}",
            )  # fmt: skip
        return pool.desk(group)


class _Stream:
    """One open stream: what waits to be written, and how what is read is carried out."""

    def __init__(self, desk: Desk, context: Context, max_result_bytes: int) -> None:
        self.worker: Worker[Task]
        self._desk = desk
        self._context = context
        self._max_result_bytes = max_result_bytes
        self._gatherer = Gatherer()
        self._response = wire.WorkResponse()
        self._leases: list[Lease[Task]] = []

    # What the desk asks for

    def send_lease(self, lease: Lease[Task]) -> None:
        """See `sipnap.sidecar.workers.remote.Connection`."""
        self._leases.append(lease)
        self._gatherer.wake()

    def send_cancel(self, lease_id: int) -> None:
        """See `sipnap.sidecar.workers.remote.Connection`."""
        self._response.cancels.append(lease_id)
        self._gatherer.wake()

    def send_go_away(self) -> None:
        """See `sipnap.sidecar.workers.remote.Connection`."""
        self._response.go_away = True
        self._gatherer.wake()

    # Writing

    async def write(self, welcome: wire.WorkerWelcome) -> None:
        """Write what gathers, until the stream ends."""
        await self._context.write(wire.WorkResponse(welcome=welcome))
        while True:
            await self._gatherer.wait()
            while self._leases or self._response.ByteSize():
                await self._context.write(self._next_response())

    def _next_response(self) -> wire.WorkResponse:
        """What may go into one message. A lease's cancel never goes before the lease."""
        if len(self._leases) > _MOST_LEASES_PER_MESSAGE:
            response = wire.WorkResponse()
        else:
            response, self._response = self._response, wire.WorkResponse()
        now = asyncio.get_running_loop().time()
        for lease in self._leases[:_MOST_LEASES_PER_MESSAGE]:
            message = response.leases.add(lease_id=lease.lease_id)
            lease.task.describe(message)
            set_duration(message.time_left, max(0.0, lease.task.ends_seconds - now))
        del self._leases[:_MOST_LEASES_PER_MESSAGE]
        return response

    # Reading

    async def read(self, requests: AsyncIterator[wire.WorkRequest]) -> None:
        """Carry out what comes, until the stream ends. A bad result ends its own job alone."""
        async for request in requests:
            stale: list[int] = []
            for result in request.results:
                task = self._desk.find(self.worker, result.lease_id)
                if task is None:
                    stale.append(result.lease_id)
                elif result.WhichOneof("outcome") == "released":
                    self._desk.finish(self.worker, result.lease_id, None)
                else:
                    outcome = job_result(result, task.prefix, self._max_result_bytes)
                    self._desk.finish(self.worker, result.lease_id, outcome)
            stale += self._desk.extend(self.worker, request.extend)
            if stale:
                self._response.stale.extend(stale)
                self._gatherer.wake()
            if request.leaving:
                self._desk.drain(self.worker)
            self._desk.hear(self.worker, request.credits)


def job_result(result: wire.LeaseResult, prefix: str, max_bytes: int) -> JobResult:
    """What a worker said of a lease, as the core has it; what cannot be sent on becomes a failure."""
    match result.WhichOneof("outcome"):
        case "completed":
            return _completed(result.completed, prefix, max_bytes)
        case "failed":
            failed = result.failed
            return JobResult(
                failed.error_code if _ERROR_CODE.match(failed.error_code) else "error",
                failed.error[:_LONGEST_ERROR_CHARACTERS],
                retry_after_seconds=max(0.0, seconds_of(failed.retry_after))
                if failed.HasField("retry_after")
                else None,
            )
    return JobResult(BAD_RESULT, "the worker's answer has no outcome")


def _completed(completed: wire.LeaseCompleted, prefix: str, max_bytes: int) -> JobResult:
    if completed.ByteSize() > max_bytes:
        return JobResult(
            BAD_RESULT, f"the worker found {completed.ByteSize()} bytes, more than {max_bytes} (--max-entry-bytes)"
        )
    if len(completed.values) > _MOST_VALUES:
        return JobResult(BAD_RESULT, f"the worker found {len(completed.values)} values, more than {_MOST_VALUES}")
    values = []
    for found in completed.values:
        found.name = prefix + found.name
        if not _VALUE_NAME.match(found.name):
            return JobResult(BAD_RESULT, f"{found.name[:80]!r} is not a name for a value: 1 to 64 of [A-Za-z0-9_]")
        if not _is_value(found.value):
            return JobResult(BAD_RESULT, f"value {found.name!r} is no text, integer or boolean, and no list of such")
        values.append(found.SerializeToString())
    return JobResult(values=tuple(values))


def _is_value(value: pb.Value) -> bool:
    kind = value.WhichOneof("kind")
    if kind == "list":
        return all(item.WhichOneof("kind") not in (None, "list") for item in value.list.values)
    return kind is not None


async def _refuse(context: Context, message: str) -> NoReturn:
    await abort(context, grpc.StatusCode.INVALID_ARGUMENT, "INVALID", message)
