"""A remote worker: runs operations for a sidecar over `WorkerService.Work`, in its own process, on any machine."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import random
import re
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress

import grpc
import grpc.aio

from sipnap.client.channel import open_aio
from sipnap.client.errors import GroupUnknown, Invalid, NapError, ProtocolError, error_from
from sipnap.client.gather import Gatherer
from sipnap.client.handlers import Attempt, Handlers
from sipnap.client.keys import is_front_end_id
from sipnap.client.operations import Handler, Operation
from sipnap.client.outstanding import seconds_of
from sipnap.v1 import worker_service_pb2 as wire
from sipnap.v1.worker_service_pb2_grpc import WorkerServiceStub

PROTOCOL_VERSION = 1
"""What this library speaks."""

MOST_CONCURRENCY = 10_000
"""Upper bound of ``concurrency``."""

STUCK_SECONDS = 10.0
"""A handler that blocks its thread for so long, for a job that nobody waits for any more, ends the worker."""

_SHORTEST_RETRY_SECONDS = 0.05
_LONGEST_RETRY_SECONDS = 1.0
_HELLO_SECONDS = 10.0
_WATCH_SECONDS = 1.0
_FAREWELL_SECONDS = 5.0
_MOST_RESULTS_PER_MESSAGE = 64
_DEFAULT_LEASE_SECONDS = 10.0

log = logging.getLogger("sipnap.worker")

_Call = grpc.aio.StreamStreamCall[wire.WorkRequest, wire.WorkResponse]


class WorkerStuck(NapError):
    """A handler blocks its thread and does not heed that nobody waits for it any more."""


class Worker:
    """Serves the operations of one worker group for the first of several sidecars that answers.

    It is given as many jobs at a time as it has free places, never more: a slow worker holds nothing that a fast one
    could do. When its sidecar ends or leaves it goes to the next one; jobs that it had are done by somebody else, so
    what it did may be done again: operations should bear that (compare `SuspensionKey` in the lease).
    """

    def __init__(
        self,
        targets: Sequence[str],
        *,
        group: str,
        operations: Mapping[str, Operation | Handler],
        concurrency: int = 16,
        worker_id: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        on_connected: Callable[[str], None] | None = None,
    ) -> None:
        """Prepare; nothing is connected before `run`.

        Args:
            targets: Sidecars as ``HOST:PORT`` or ``unix:PATH``; the first that answers is used.
            group: Name of the worker group, of kind remote.
            operations: What can be run, by name; see `sipnap.client.operations`.
            concurrency: How many jobs to run at once, 1 to 10,000.
            worker_id: Name for logs, 1 to 128 characters of ``[A-Za-z0-9._:-]``; None: host name and process id.
            credentials: For TLS; None: plain text.
            on_connected: Called in the loop with the target, each time a sidecar has welcomed the worker.

        Raises:
            ValueError: No target, no operation, or something malformed.
        """
        if not targets:
            raise ValueError("a worker needs at least one sidecar to work for")
        if not operations:
            raise ValueError("a worker needs at least one operation")
        if not 1 <= concurrency <= MOST_CONCURRENCY:
            raise ValueError(f"concurrency is {concurrency}, expected 1 to {MOST_CONCURRENCY}")
        self.worker_id = worker_id if worker_id is not None else _default_worker_id()
        """Its name in the sidecar's logs."""
        if not is_front_end_id(self.worker_id):
            raise ValueError(f"{self.worker_id!r} is not a worker id: expected 1 to 128 of [A-Za-z0-9._:-]")
        self.group = group
        """The worker group that it works for."""
        self.operations = {
            name: operation if isinstance(operation, Operation) else Operation(operation)
            for name, operation in operations.items()
        }
        """What it can run."""
        self.concurrency = concurrency
        """How many jobs it runs at once, at most."""
        self.in_hand = 0
        """Jobs that occupy a place now, those included that are being stopped."""
        self._targets = list(targets)
        self._credentials = credentials
        self._on_connected = on_connected
        self._is_draining = False
        self._was_welcome = False
        self._stream: _Stream | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._cancelled: set[Attempt] = set()

    async def run(self) -> None:
        """Work until `drain` has been called and all that was in hand is answered for. Once in the worker's life.

        Raises:
            Invalid: The first sidecar that answered cannot use this worker: its name or an operation's is malformed.
            GroupUnknown: It has no such group, or the group has workers of another kind.
            ProtocolError: It speaks another version of the protocol.
            WorkerStuck: A handler blocks, and nobody waits for it any more: the process had better end.
        """
        if self._is_draining:
            return
        loop = asyncio.get_running_loop()
        with Handlers(self.operations, self._attempt_ended) as self._handlers:
            self._keeper = loop.create_task(self._keep_connected(), name="sipnap worker")
            watcher = loop.create_task(self._watch_handlers(), name="sipnap worker watcher")
            tasks = (self._keeper, watcher)
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            for task in done:
                if not task.cancelled():
                    task.result()

    def drain(self) -> None:
        """Take nothing more, finish what has begun, give back what has not, then have `run` return."""
        if self._is_draining:
            return
        self._is_draining = True
        if self._stream is not None:
            log.info("worker drains in_hand=%d", self.in_hand)
            self._stream.leave()
        elif self._keeper is not None:
            self._keeper.cancel()

    # For the stream

    def take(self, attempts: Iterable[Attempt]) -> None:
        """Run what was leased."""
        fresh = list(attempts)
        self.in_hand += len(fresh)
        self._handlers.start(fresh)

    def withdraw(self, attempt: Attempt) -> bool:
        """Take back what has not begun: its place is free. False: it has begun."""
        is_withdrawn = self._handlers.withdraw(attempt)
        self.in_hand -= is_withdrawn
        return is_withdrawn

    def give_up(self, attempt: Attempt) -> bool:
        """Stop what nobody waits for any more. True: it had not begun, its place is free."""
        if self.withdraw(attempt):
            return True
        self._cancelled.add(attempt)
        self._handlers.cancel(attempt)
        return False

    def _attempt_ended(self, attempt: Attempt, result: wire.LeaseResult | None) -> None:
        self._cancelled.discard(attempt)
        self.in_hand -= 1
        if self._stream is not None:
            self._stream.end(attempt, result)

    # Connection

    async def _keep_connected(self) -> None:
        failures = 0
        targets = itertools.cycle(self._targets)
        while not self._is_draining:
            target = next(targets)
            started_seconds = time.monotonic()
            was_connected = False
            try:
                was_connected = await self._converse(target)
                reason = "the sidecar ended the stream"
            except (Invalid, GroupUnknown, ProtocolError) as error:
                if not self._was_welcome:
                    raise
                reason = str(error)
            except NapError as error:
                reason = str(error)
            except Exception as error:  # whatever it is, a worker must not stay away for it
                log.exception("stream failed target=%s; it is opened anew", target)
                reason = repr(error)
            if self._is_draining:
                return
            failures = 1 if was_connected else failures + 1
            if failures == 1:
                log.warning("sidecar lost target=%s reason=%s", target, reason)
            elif failures % 60 == 0:
                log.warning("sidecar still away target=%s tries=%d reason=%s", target, failures, reason)
            most_seconds = min(_SHORTEST_RETRY_SECONDS * 2 ** min(failures, 10), _LONGEST_RETRY_SECONDS)
            if time.monotonic() - started_seconds < most_seconds:
                await asyncio.sleep(random.uniform(0.5, 1.0) * most_seconds)  # jitter: workers must not knock in step

    async def _converse(self, target: str) -> bool:
        """Serve one sidecar until the stream ends. True: it had welcomed us."""
        channel = open_aio(target, self._credentials)
        try:
            call = WorkerServiceStub(channel).Work(None)
            welcome = await self._greet(call, target)
            self._was_welcome = True
            log.info(
                "sidecar connected target=%s instance=%s group=%s concurrency=%d in_hand=%d",
                target, welcome.instance_id, self.group, self.concurrency, self.in_hand,
            )  # fmt: skip
            stream = _Stream(self, call, seconds_of(welcome.lease_time) or _DEFAULT_LEASE_SECONDS)
            self._stream = stream
            if self._on_connected is not None:
                self._on_connected(target)
            try:
                await stream.serve()
            finally:
                self._stream = None
                stream.abandon()
            return True
        except grpc.aio.UsageError as error:  # the call ended under our hands
            raise NapError(str(error)) from error
        except grpc.RpcError as error:
            raise error_from(error, target) from error
        finally:
            await channel.close(grace=None)

    async def _greet(self, call: _Call, target: str) -> wire.WorkerWelcome:
        hello = wire.WorkerHello(
            protocol_version=PROTOCOL_VERSION,
            worker_id=self.worker_id,
            group=self.group,
            operations=sorted(self.operations),
        )
        try:
            async with asyncio.timeout(_HELLO_SECONDS):
                await call.write(wire.WorkRequest(hello=hello))
                first = await call.read()
        except TimeoutError as error:
            raise NapError(f"{target} did not answer the hello within {_HELLO_SECONDS:g} s") from error
        if not isinstance(first, wire.WorkResponse) or not first.HasField("welcome"):
            raise ProtocolError(f"{target} did not answer the hello with a welcome")
        return first.welcome

    async def _watch_handlers(self) -> None:
        strikes = 0  # a process that was stopped comes round with old times once
        while strikes < 2:
            await asyncio.sleep(_WATCH_SECONDS)
            since_seconds = time.monotonic() - STUCK_SECONDS
            is_stuck = self._handlers.silent_seconds > STUCK_SECONDS and any(
                attempt.cancelled_seconds is not None and attempt.cancelled_seconds < since_seconds
                for attempt in self._cancelled
            )
            strikes = strikes + 1 if is_stuck else 0
        names = ", ".join(sorted({attempt.lease.operation for attempt in self._cancelled}))
        raise WorkerStuck(f"operation {names} blocks for {STUCK_SECONDS:g} s after nobody waited for it any more")


class _Stream:
    """One open stream: what is leased by it, what waits to be written, and how what is read is carried out."""

    def __init__(self, worker: Worker, call: _Call, lease_seconds: float) -> None:
        self._worker = worker
        self._call = call
        self._lease_seconds = lease_seconds
        self._gatherer = Gatherer()
        self._attempts: dict[int, Attempt] = {}
        self._credits = worker.concurrency - worker.in_hand
        self._results: list[wire.LeaseResult] = []
        self._is_extending = False
        self._is_leaving = False
        self._leaving_said = False
        # Nothing more will be leased in this stream.
        self._is_last = False

    async def serve(self) -> None:
        """Converse until the stream ends."""
        loop = asyncio.get_running_loop()
        tasks = [
            loop.create_task(self._write(), name="sipnap worker writer"),
            loop.create_task(self._extend(), name="sipnap worker extensions"),
        ]
        self._gatherer.wake()
        try:
            while isinstance(response := await self._call.read(), wire.WorkResponse):
                self._receive(response)
            status = await self._call.code()
            if status != grpc.StatusCode.OK:
                raise NapError(f"{status.name}: {await self._call.details()}")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def leave(self) -> None:
        """Take nothing more; end the stream when all that is leased is answered for."""
        self._is_leaving = True
        self._credits = 0
        for lease_id, attempt in list(self._attempts.items()):
            if self._worker.withdraw(attempt):
                del self._attempts[lease_id]
                self._release(lease_id)
        # A sidecar that does not confirm it is not waited for.
        asyncio.get_running_loop().call_later(_FAREWELL_SECONDS, self._close)
        self._gatherer.wake()

    def end(self, attempt: Attempt, result: wire.LeaseResult | None) -> None:
        """A place is free; `result` is what to say of the attempt, if the stream still wants to know."""
        lease_id = attempt.lease.lease_id
        if self._attempts.get(lease_id) is attempt:
            del self._attempts[lease_id]
            if result is not None:
                self._results.append(result)
        self._give(1)

    def abandon(self) -> None:
        """The stream has ended: what was leased by it is somebody else's now."""
        for attempt in self._attempts.values():
            self._worker.give_up(attempt)
        self._attempts.clear()

    # Reading

    def _receive(self, response: wire.WorkResponse) -> None:
        if self._is_leaving:
            for lease in response.leases:
                self._release(lease.lease_id)
        elif response.leases:
            fresh = {lease.lease_id: Attempt(lease, self) for lease in response.leases}
            self._attempts.update(fresh)
            self._worker.take(fresh.values())
        # After the leases: one that was cancelled at once comes with its cancel.
        for lease_id in itertools.chain(response.cancels, response.stale):
            attempt = self._attempts.pop(lease_id, None)
            if attempt is not None and self._worker.give_up(attempt):
                self._give(1)
        if response.go_away:
            if not self._is_leaving:
                log.info("sidecar is leaving in_hand=%d", len(self._attempts))
            self._close()

    def _close(self) -> None:
        self._is_last = True
        self._gatherer.wake()

    # Writing

    def _give(self, places: int) -> None:
        if not self._is_leaving:
            self._credits += places
        self._gatherer.wake()

    def _release(self, lease_id: int) -> None:
        self._results.append(wire.LeaseResult(lease_id=lease_id, released=wire.LeaseReleased()))
        self._gatherer.wake()

    async def _extend(self) -> None:
        while True:
            await asyncio.sleep(self._lease_seconds / 3)
            if self._attempts:
                self._is_extending = True
                self._gatherer.wake()

    async def _write(self) -> None:
        with suppress(grpc.aio.UsageError, grpc.RpcError):  # whoever reads finds out why
            while not (self._is_last and not self._attempts and not self._results):
                await self._gatherer.wait()
                while (request := self._next_request()) is not None:
                    await self._call.write(request)
            await self._call.done_writing()

    def _next_request(self) -> wire.WorkRequest | None:
        request = wire.WorkRequest()
        if self._is_extending:
            self._is_extending = False
            request.extend.extend(self._attempts)
        if self._results:
            request.results.extend(self._results[:_MOST_RESULTS_PER_MESSAGE])
            del self._results[:_MOST_RESULTS_PER_MESSAGE]
        if self._is_leaving and not self._leaving_said:
            self._leaving_said = request.leaving = True
        request.credits, self._credits = self._credits, 0
        return request if request.ByteSize() else None


def _default_worker_id() -> str:
    host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:100] or "worker"
    return f"{host}-{os.getpid()}"
