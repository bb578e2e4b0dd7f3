"""Runs the handlers of operations for a worker: in an event loop of their own, in a thread of its own.

So a handler that computes, or blocks where it should await, delays its neighbours but not the conversation with the
sidecar: leases are extended, signals are heard. A handler that blocks for ever is noticed.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Self

from sipnap.client.operations import Operation, OperationError, arguments_of, error_of, named_values
from sipnap.client.outstanding import set_duration
from sipnap.v1 import worker_service_pb2 as wire

TIMEOUT = "timeout"
"""Error code of an attempt that took longer than the operation's own ``timeout_seconds``."""

MOST_RESULT_BYTES = 1024 * 1024
"""Largest result that is sent, encoded; a sidecar's own bound is lower (``--max-entry-bytes``)."""

_BEAT_SECONDS = 0.5
_JOIN_SECONDS = 2.0
_SECONDS_BETWEEN_REPORTS = 10.0

log = logging.getLogger("sipnap.worker")


class Attempt:
    """One job in a worker's hands."""

    __slots__ = ("cancelled_seconds", "lease", "owner", "task")

    def __init__(self, lease: wire.Lease, owner: object) -> None:
        self.lease = lease
        """What is to be done."""
        self.owner = owner
        """Whoever wants to know of it: the stream that it came by."""
        self.cancelled_seconds: float | None = None
        """When it was cancelled, on the monotonic clock; None: it was not."""
        self.task: asyncio.Task[None] | None = None
        """Belongs to the handlers' thread; None: not begun, or over."""


class Handlers:
    """The thread. A context manager; its methods are called in the event loop that entered it, and return at once."""

    def __init__(
        self, operations: Mapping[str, Operation], on_end: Callable[[Attempt, wire.LeaseResult | None], None]
    ) -> None:
        """Prepare.

        Args:
            operations: What can be run.
            on_end: Called in the event loop when an attempt has ended, with what is to be said of it, if anything.
        """
        self._operations = operations
        self._on_end = on_end
        # Whoever takes an attempt out of here decides about it: the thread begins it, `withdraw` gives it back.
        self._waiting: dict[Attempt, None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._raised: dict[str, int] = {}
        self._reported_seconds: dict[str, float] = {}
        self._beat_seconds = time.monotonic()
        self._thread = threading.Thread(target=self._run_loop, name="sipnap operations", daemon=True)

    def __enter__(self) -> Self:
        self._outer = asyncio.get_running_loop()
        self._inner = asyncio.new_event_loop()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._inner.call_soon_threadsafe(self._stop)
        self._thread.join(_JOIN_SECONDS)  # one that is blocked is left alone

    @property
    def silent_seconds(self) -> float:
        """For how long the thread has not come round: some handler blocks it."""
        return max(0.0, time.monotonic() - self._beat_seconds - _BEAT_SECONDS)

    def start(self, attempts: Iterable[Attempt]) -> None:
        """Run these; `on_end` follows for each."""
        fresh = list(attempts)
        self._waiting.update(dict.fromkeys(fresh))
        self._inner.call_soon_threadsafe(self._begin, fresh)

    def withdraw(self, attempt: Attempt) -> bool:
        """Take back an attempt that has not begun: it never will. False: it has."""
        return self._waiting.pop(attempt, attempt) is None

    def cancel(self, attempt: Attempt) -> None:
        """Stop an attempt that has begun; `on_end` follows, when its handler has let go."""
        attempt.cancelled_seconds = time.monotonic()
        self._inner.call_soon_threadsafe(self._cancel, attempt)

    # In the thread

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._inner)
        self._inner.call_soon(self._beat)
        try:
            self._inner.run_forever()
            self._inner.run_until_complete(self._inner.shutdown_asyncgens())
        finally:
            self._inner.close()

    def _beat(self) -> None:
        self._beat_seconds = time.monotonic()
        self._inner.call_later(_BEAT_SECONDS, self._beat)

    def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        gathered = asyncio.gather(*self._tasks, return_exceptions=True)
        gathered.add_done_callback(lambda _: self._inner.stop())

    def _begin(self, attempts: list[Attempt]) -> None:
        for attempt in attempts:
            if self._waiting.pop(attempt, attempt) is attempt:
                continue  # withdrawn
            task = self._inner.create_task(self._run(attempt), name=f"operation {attempt.lease.operation}")
            attempt.task = task
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _cancel(self, attempt: Attempt) -> None:
        if attempt.task is not None:
            attempt.task.cancel()

    async def _run(self, attempt: Attempt) -> None:
        result: wire.LeaseResult | None = None
        try:
            result = await self._result_of(attempt.lease)
        except asyncio.CancelledError:
            if attempt.cancelled_seconds is None:  # the handler's own doing, or the worker ends
                result = _failed(attempt.lease, OperationError("stopped", "the operation was cancelled from within"))
        finally:
            attempt.task = None
            with suppress(RuntimeError):  # the loop outside is closed: nobody wants to know
                self._outer.call_soon_threadsafe(self._on_end, attempt, result)

    async def _result_of(self, lease: wire.Lease) -> wire.LeaseResult:
        operation = self._operations.get(lease.operation)
        if operation is None:
            return _failed(lease, OperationError("operation_unknown", f"this worker has no {lease.operation!r}"))
        try:
            async with asyncio.timeout(operation.timeout_seconds) as limit:
                found = await operation.handler(arguments_of(lease.arguments), lease.state)
            result = wire.LeaseResult(
                lease_id=lease.lease_id, completed=wire.LeaseCompleted(values=named_values(found))
            )
            if result.ByteSize() > MOST_RESULT_BYTES:
                raise OperationError("bad_result", f"the operation returned {result.ByteSize()} bytes")
            return result
        except OperationError as failed:
            return _failed(lease, failed)
        except SystemExit as raised:  # it would end the thread, and the worker with it
            self._report(lease, raised)
            return _failed(lease, OperationError("system_exit", f"the operation called sys.exit({raised.code!r})"))
        except Exception as raised:  # somebody else's code: whatever it raises is its answer
            if isinstance(raised, TimeoutError) and limit.expired():
                pause_seconds = operation.backoff_seconds * 2 ** (lease.attempt - 1)
                has_another = lease.attempt < operation.max_attempts
                text = f"took longer than {operation.timeout_seconds:g} s"
                return _failed(
                    lease, OperationError(TIMEOUT, text, retry_after_seconds=pause_seconds if has_another else None)
                )
            self._report(lease, raised)
            return _failed(lease, error_of(raised))

    def _report(self, lease: wire.Lease, raised: BaseException) -> None:
        """Log what no operation should raise, of each operation now and then: it may raise it for every call."""
        self._raised[lease.operation] = times = self._raised.get(lease.operation, 0) + 1
        now_seconds = time.monotonic()
        if now_seconds >= self._reported_seconds.get(lease.operation, 0.0) + _SECONDS_BETWEEN_REPORTS:
            self._reported_seconds[lease.operation] = now_seconds
            log.warning(
                "operation raised what it should not name=%s call_id=%r error=%r times=%d",
                lease.operation, lease.state.call_id, raised, times,
            )  # fmt: skip


def _failed(lease: wire.Lease, error: OperationError) -> wire.LeaseResult:
    failed = wire.LeaseFailed(error_code=error.code, error=error.text)
    if error.retry_after_seconds is not None:
        failed.retry_after.SetInParent()
        set_duration(failed.retry_after, error.retry_after_seconds)
    return wire.LeaseResult(lease_id=lease.lease_id, failed=failed)
