"""A front end's end of the `FrontEndService.Session` stream: batches, reconnects, re-submission, heartbeats.

The front end never waits for it: every method but `batches` and `wait_connected` returns at once, whatever the sidecar
does. What is outstanding is kept in `Outstanding` and submitted again when a sidecar is there.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

import grpc
import grpc.aio

from sipnap.client.channel import open_aio
from sipnap.client.errors import NapError, ProtocolError, error_from
from sipnap.client.gather import Gatherer
from sipnap.client.keys import SuspensionKey, is_front_end_id
from sipnap.client.outstanding import Outstanding
from sipnap.v1 import front_end_service_pb2 as wire
from sipnap.v1 import suspension_pb2 as pb
from sipnap.v1.front_end_service_pb2_grpc import FrontEndServiceStub

if TYPE_CHECKING:  # the generated stubs have it for type checkers only
    from sipnap.v1.front_end_service_pb2_grpc import FrontEndServiceAsyncStub

    _Call = grpc.aio.StreamStreamCall[wire.SessionRequest, wire.SessionResponse]

PROTOCOL_VERSION = 1
"""What this library speaks."""

HEARTBEAT_SECONDS = 1.0
"""How often a sign of life is asked for."""

STALE_SECONDS = 2.5
"""Without a sign of life for this long the gate closes."""

DEAD_SECONDS = 6.0
"""Without a sign of life for this long the stream is given up and opened anew."""

_GATHER_SECONDS = 0.005  # a nap's time runs while it waits here, so it costs no lateness
_MOST_ENTRIES_PER_MESSAGE = 128
_SHORTEST_RETRY_SECONDS = 0.05
_LONGEST_RETRY_SECONDS = 1.0
_FAREWELL_SECONDS = 1.0
_HELLO_SECONDS = 30.0  # a sidecar that takes a front end over reads all its naps before it says Welcome

log = logging.getLogger("sipnap.session")


class FrontEndSession:
    """The session of one front end with the first of several sidecars that answers. An asynchronous context manager.

    Iterate `batches` to receive continues; each suspension ends in exactly one of: a continue, your own `cancel`, or
    `set_boot_epoch`. A refused suspension arrives as a continue with status FAILED and attempt 0, one that nobody
    answered for until its deadline as LOST with attempt 0.
    """

    def __init__(
        self,
        targets: Sequence[str],
        *,
        front_end_id: str,
        boot_epoch: int | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        on_shipped: Callable[[Sequence[pb.Suspension]], None] | None = None,
    ) -> None:
        """Prepare; nothing is connected before the context is entered.

        Args:
            targets: Sidecars as ``HOST:PORT`` or ``unix:PATH``; the first that answers is used.
            front_end_id: Name of the front end, 1 to 128 characters of ``[A-Za-z0-9._:-]``.
            boot_epoch: Start of the front end's life; None: wait for `set_boot_epoch` before the Hello.
            credentials: For TLS; None: plain text.
            on_shipped: Called in the loop with suspensions that were just written to the stream.

        Raises:
            ValueError: No target, or a malformed front end id.
        """
        if not targets:
            raise ValueError("a session needs at least one sidecar to talk to")
        if not is_front_end_id(front_end_id):
            raise ValueError(f"{front_end_id!r} is not a front end id: expected 1 to 128 of [A-Za-z0-9._:-]")
        self._targets = list(targets)
        self._front_end_id = front_end_id
        self._boot_epoch = boot_epoch
        self._credentials = credentials
        self._on_shipped = on_shipped
        self._gate_callbacks: list[Callable[[bool], None]] = []
        self._gate = False
        self._max_pending = 0
        self._leaving = False
        self._connected = asyncio.Event()
        self._epoch_known = asyncio.Event()
        if boot_epoch is not None:
            self._epoch_known.set()
        self._inbox: list[pb.Continue] = []
        self._inbox_filled = asyncio.Event()
        self._suspends: list[SuspensionKey] = []
        self._cancels: list[SuspensionKey] = []
        self._results: list[tuple[SuspensionKey, pb.ContinueOutcome]] = []
        self._heartbeat_wanted = False
        self._call: _Call | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._table = Outstanding(self._loop.time)
        self._gatherer = Gatherer(_GATHER_SECONDS)
        self._heard_seconds = self._loop.time()
        self._tasks = [
            self._loop.create_task(self._keep_connected(), name="sipnap session"),
            self._loop.create_task(self._keep_time(), name="sipnap session clock"),
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(TimeoutError):  # answers already given should reach the sidecar, but not at any price
            async with asyncio.timeout(_FAREWELL_SECONDS):
                while self._connected.is_set() and (self._results or self._suspends or self._cancels):
                    await asyncio.sleep(0.002)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def is_open(self) -> bool:
        """Whether suspensions may be sent now: connected, alive, not draining, below the sidecar's bound."""
        return self._gate

    @property
    def outstanding(self) -> int:
        """Suspensions that have not been answered for yet."""
        return len(self._table)

    def on_gate(self, callback: Callable[[bool], None]) -> None:
        """Have `callback` called in the loop with the new value at each change of `is_open`."""
        self._gate_callbacks.append(callback)

    async def wait_connected(self, timeout_seconds: float) -> None:
        """Return when a sidecar has answered the Hello.

        Raises:
            TimeoutError: None has, in time.
        """
        async with asyncio.timeout(timeout_seconds):
            await self._connected.wait()

    def suspend(self, suspension: pb.Suspension) -> None:
        """Have a transaction held. Kept, and submitted again where needed, until it ends.

        The message belongs to the session from now on. A key that is outstanding already is ignored.
        """
        key = self._own_key(suspension.key)
        if self._table.add(key, suspension):
            self._suspends.append(key)
            if len(self._table) >= self._max_pending:
                self._update_gate()
            self._gatherer.wake()

    def cancel(self, key: SuspensionKey) -> None:
        """End a suspension before its time. A continue that had arrived already may still be delivered."""
        self._table.answer(key, pb.CONTINUE_OUTCOME_GONE)
        self._cancels.append(key)
        self._gatherer.wake()

    def answer(self, key: SuspensionKey, outcome: pb.ContinueOutcome) -> None:
        """Say what became of a continue."""
        self._table.answer(key, outcome)
        self._results.append((key, outcome))
        self._gatherer.wake_later()

    def set_boot_epoch(self, boot_epoch: int) -> None:
        """The front end has been restarted: forget what is outstanding and say Hello with the new epoch."""
        if boot_epoch == self._boot_epoch:
            return
        self._boot_epoch = boot_epoch
        self._table.clear()
        self._suspends.clear()
        self._cancels.clear()
        self._inbox.clear()
        self._epoch_known.set()
        if self._call is not None:
            self._call.cancel()

    async def batches(self) -> AsyncIterator[list[pb.Continue]]:
        """Continues as they arrive, all that there are at a time, for ever. Each suspension's comes once."""
        while True:
            await self._inbox_filled.wait()
            self._inbox_filled.clear()
            batch, self._inbox = self._inbox, []
            if batch:
                yield batch

    # Connection

    async def _keep_connected(self) -> None:
        failures = 0
        targets = itertools.cycle(self._targets)
        while True:
            await self._epoch_known.wait()
            target = next(targets)
            started_seconds = self._loop.time()
            try:
                await self._converse(target)
                reason = "the sidecar ended the session"
            except NapError as error:
                reason = str(error)
            except Exception as error:  # whatever it is, a front end must not stay without a session for it
                log.exception("session failed target=%s; it is opened anew", target)
                reason = repr(error)
            was_connected = self._connected.is_set()
            self._connected.clear()
            self._call = None
            self._leaving = False
            self._update_gate()
            failures = 1 if was_connected else failures + 1
            if was_connected or failures == 1:
                log.warning("sidecar lost target=%s outstanding=%d reason=%s", target, len(self._table), reason)
            elif failures % 60 == 0:
                log.warning("sidecar still away target=%s tries=%d reason=%s", target, failures, reason)
            most_seconds = min(_SHORTEST_RETRY_SECONDS * 2 ** min(failures, 10), _LONGEST_RETRY_SECONDS)
            if self._loop.time() - started_seconds < most_seconds:
                await asyncio.sleep(random.uniform(0.5, 1.0) * most_seconds)  # jitter: shims must not knock in step

    def _open_call(self, target: str) -> tuple[_Call, Callable[[], Awaitable[None]]]:
        """Open a stream; returns it, and how to give up its connection. The simulator of the tests replaces it."""
        channel = open_aio(target, self._credentials)
        stub: FrontEndServiceAsyncStub = FrontEndServiceStub(channel)
        return stub.Session(None), lambda: channel.close(grace=None)

    async def _converse(self, target: str) -> None:
        call, close = self._open_call(target)
        try:
            self._call = call
            epoch = self._boot_epoch
            hello = wire.Hello(
                protocol_version=PROTOCOL_VERSION, front_end_id=self._front_end_id, boot_epoch=epoch or 0
            )
            async with asyncio.timeout(_HELLO_SECONDS):
                await call.write(wire.SessionRequest(hello=hello))
                first = await call.read()
            if not isinstance(first, wire.SessionResponse) or not first.HasField("welcome"):
                await call.code()  # raises what the sidecar had to say, if it said anything
                raise ProtocolError(f"{target} did not answer the Hello with a Welcome")
            self._heard_seconds = self._loop.time()
            self._suspends = self._table.undelivered()
            self._results = []  # the sidecar asks again for what it has no answer to
            self._connected.set()
            log.info(
                "sidecar connected target=%s instance=%s durability=%s resubmitted=%d",
                target,
                first.welcome.instance_id,
                pb.Durability.Name(first.welcome.durability),
                len(self._suspends),
            )
            writer = self._loop.create_task(self._write(call), name="sipnap session writer")
            try:
                while isinstance(response := await call.read(), wire.SessionResponse):
                    self._receive(response)
                status = await call.code()
                if status != grpc.StatusCode.OK:
                    raise NapError(f"{status.name}: {await call.details()}")
            finally:
                writer.cancel()
                await asyncio.gather(writer, return_exceptions=True)
        except TimeoutError as error:
            raise NapError(f"{target} did not answer the Hello within {_HELLO_SECONDS:g} s") from error
        except grpc.aio.UsageError as error:  # the call ended under our hands
            raise NapError(str(error)) from error
        except grpc.RpcError as error:
            raise error_from(error, target) from error
        except asyncio.CancelledError:
            if self._call is not None and self._call.cancelled() and not _being_cancelled():
                raise NapError("left: no sign of life, a drain, or a restart of the front end") from None
            raise
        finally:
            await close()

    async def _write(self, call: _Call) -> None:
        frame_number = 0
        self._gatherer.wake()
        while True:
            await self._gatherer.wait()
            while self._suspends or self._cancels or self._results or self._heartbeat_wanted:
                request = wire.SessionRequest()
                suspends = self._table.to_send(self._suspends[:_MOST_ENTRIES_PER_MESSAGE])
                del self._suspends[:_MOST_ENTRIES_PER_MESSAGE]
                if suspends:
                    frame_number += 1
                    request.frame_number = frame_number
                    request.suspends.extend(suspends)
                for key in self._cancels[:_MOST_ENTRIES_PER_MESSAGE]:
                    request.cancels.append(key.to_message())
                del self._cancels[: len(request.cancels)]
                for key, outcome in self._results[:_MOST_ENTRIES_PER_MESSAGE]:
                    request.results.append(wire.ContinueResult(key=key.to_message(), outcome=outcome))
                del self._results[: len(request.results)]
                if self._heartbeat_wanted:
                    self._heartbeat_wanted = False
                    request.heartbeat.nonce = 1
                await call.write(request)
                if suspends and self._on_shipped is not None:
                    self._on_shipped(suspends)

    def _receive(self, response: wire.SessionResponse) -> None:
        self._heard_seconds = self._loop.time()
        for received in response.continues:
            key = self._own_key(received.key)
            outcome = self._table.remembered_answer(key)
            if outcome is not None:
                self._results.append((key, outcome))
                self._gatherer.wake_later()
            elif self._table.deliver(key):
                received.key.front_end_id = self._front_end_id
                self._inbox.append(received)
        for result in response.frame_results:
            for refusal in result.refusals:
                self._end_locally(
                    self._own_key(refusal.key),
                    pb.CONTINUE_STATUS_FAILED,
                    f"refused: {reason_text(refusal.reason)}: {refusal.message}",
                )
        if response.HasField("credits"):
            self._max_pending = response.credits.max_pending
        if response.HasField("go_away") and not self._leaving:
            self._leaving = True
            log.warning("sidecar is leaving reason=%s", response.go_away.reason)
            if len(self._targets) > 1 and self._call is not None:
                self._call.cancel()  # the next one takes over what is outstanding
        if self._inbox:
            self._inbox_filled.set()
        self._update_gate()

    def _end_locally(self, key: SuspensionKey, status: pb.ContinueStatus, error: str) -> None:
        """Deliver a continue of our own making; its answer is nobody's business but is remembered like any other.

        One that was cancelled, or has been answered, is over already.
        """
        if key in self._table and self._table.deliver(key):
            self._inbox.append(
                pb.Continue(key=key.to_message(), resume_route=self._table.route_of(key), status=status, error=error)
            )
            self._inbox_filled.set()

    # Time

    async def _keep_time(self) -> None:
        while True:
            asked_seconds = self._loop.time()
            await asyncio.sleep(HEARTBEAT_SECONDS)
            # While this process was stopped it heard nobody: that is no silence of the sidecar's.
            now = self._loop.time()
            self._heard_seconds = min(now, self._heard_seconds + (now - asked_seconds - HEARTBEAT_SECONDS))
            self._heartbeat_wanted = self._connected.is_set()
            self._gatherer.wake()
            for key, route in self._table.sweep():
                self._inbox.append(
                    pb.Continue(
                        key=key.to_message(),
                        resume_route=route,
                        status=pb.CONTINUE_STATUS_LOST,
                        error="no sidecar answered for it in time",
                    )
                )
                self._inbox_filled.set()
            self._update_gate()
            if self._connected.is_set() and self._silent_seconds() > DEAD_SECONDS and self._call is not None:
                log.warning("sidecar silent seconds=%.1f; opening a new session", self._silent_seconds())
                self._call.cancel()

    def _silent_seconds(self) -> float:
        return self._loop.time() - self._heard_seconds

    def _update_gate(self) -> None:
        gate = (
            self._connected.is_set()
            and not self._leaving
            and len(self._table) < self._max_pending
            and self._silent_seconds() < STALE_SECONDS
        )
        if gate != self._gate:
            self._gate = gate
            for callback in self._gate_callbacks:
                callback(gate)

    def _own_key(self, message: pb.SuspensionKey) -> SuspensionKey:
        return SuspensionKey(
            self._front_end_id,
            message.boot_epoch,
            message.transaction_index,
            message.transaction_label,
            message.nap_number,
        )


def reason_text(reason: pb.RefusalReason) -> str:
    """A refusal's reason as scripts and logs show it, such as ``full``."""
    return pb.RefusalReason.Name(reason).removeprefix("REFUSAL_REASON_").lower()


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
