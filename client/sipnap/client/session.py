"""A front end's end of the `FrontEndService.Session` stream: batches, reconnects, re-submission, heartbeats.

The front end never waits for it: every method but `batches` and `wait_connected` returns at once, whatever the sidecar
does. What is outstanding is kept in `Outstanding` and submitted again when a sidecar is there. What there is to say
waits in `Outbox`, and what the sidecar says ahead of its time in `EarlyContinues`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

import grpc
import grpc.aio

from sipnap.client import own_continues
from sipnap.client.channel import open_aio
from sipnap.client.early import EarlyContinues
from sipnap.client.errors import NapError, ProtocolError, error_from
from sipnap.client.frames import SESSION_METHOD, SessionFrame
from sipnap.client.gather import Gatherer
from sipnap.client.keys import Key, SuspensionKey, is_front_end_id, key_of
from sipnap.client.outbox import Outbox
from sipnap.client.outstanding import Outstanding, Suspended, seconds_of, set_duration
from sipnap.v1 import front_end_service_pb2 as wire
from sipnap.v1 import suspension_pb2 as pb

if TYPE_CHECKING:
    _Call = grpc.aio.StreamStreamCall[SessionFrame, wire.SessionResponse]

PROTOCOL_VERSION = 1
"""What this library speaks."""

HEARTBEAT_SECONDS = 1.0
"""How often a sign of life is asked for."""

STALE_SECONDS = 2.5
"""Without a sign of life for this long the gate closes."""

DEAD_SECONDS = 6.0
"""Without a sign of life for this long the stream is given up and opened anew."""

AHEAD_SECONDS = 0.08
"""How long before its time a sidecar may say that a nap is over; it waits here for its time."""

_GATHER_SECONDS = 0.04  # a nap's time runs while it waits here, so it costs no lateness
_SHORT_NAP_SECONDS = 0.15  # but a nap that is over soon does not wait
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
        on_shipped: Callable[[Sequence[Key]], None] | None = None,
    ) -> None:
        """Prepare; nothing is connected before the context is entered.

        Args:
            targets: Sidecars as ``HOST:PORT`` or ``unix:PATH``; the first that answers is used.
            front_end_id: Name of the front end, 1 to 128 characters of ``[A-Za-z0-9._:-]``.
            boot_epoch: Start of the front end's life; None: wait for `set_boot_epoch` before the Hello.
            credentials: For TLS; None: plain text.
            on_shipped: Called in the loop with the keys of suspensions that were just written to the stream.

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
        self._on_continues: Callable[[Sequence[tuple[Key, pb.Continue]]], None] = self._keep_for_batches
        self._on_due: Callable[[Sequence[Suspended]], None] = self._continue_as_asked
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
        self._call: _Call | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._table = Outstanding(self._loop.time)
        self._outbox = Outbox(self._table)
        self._early = EarlyContinues(
            self._loop.time,
            self._loop.call_at,
            on_due=self._hand_on,
            on_ended=self._tell_again,
        )
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
                while self._connected.is_set() and self._outbox:
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

    def on_continues(self, callback: Callable[[Sequence[tuple[Key, pb.Continue]]], None]) -> None:
        """Have `callback` called in the loop with continues and their keys as they come, in place of `batches`."""
        self._on_continues = callback

    def on_due(self, callback: Callable[[Sequence[Suspended]], None]) -> None:
        """Have `callback` called in the loop with what is over just as it was asked for, at its time.

        That is: status OK, in its own route, with nothing more to tell. Answer with `applied` or `answer`. Without such
        a callback each of them is a continue like any other.
        """
        self._on_due = callback

    async def wait_connected(self, timeout_seconds: float) -> None:
        """Return when a sidecar has answered the Hello.

        Raises:
            TimeoutError: None has, in time.
        """
        async with asyncio.timeout(timeout_seconds):
            await self._connected.wait()

    def suspend(self, suspension: pb.Suspension) -> None:
        """Have a transaction held. Kept, and submitted again where needed, until it ends.

        A key that is outstanding already is ignored.
        """
        deadline_seconds = seconds_of(suspension.deadline) if suspension.HasField("deadline") else None
        kept = suspension
        if deadline_seconds is not None:
            kept = pb.Suspension()
            kept.CopyFrom(suspension)
            kept.ClearField("deadline")
        self.submit(
            Suspended(
                self._own_key(suspension.key),
                kept.SerializeToString(),
                suspension.resume_route,
                seconds_of(suspension.delay),
                deadline_seconds,
            ),
            is_urgent=bool(suspension.operations),
        )

    def submit(self, suspended: Suspended, *, is_urgent: bool = False) -> bool:
        """`suspend` for those in a hurry.

        Args:
            suspended: What to submit; it is kept, and handed on as it is.
            is_urgent: It has operations, which begin when it has arrived.

        Returns:
            False: its key is outstanding already; this one is ignored.
        """
        if not self._table.add(suspended):
            return False
        self._outbox.suspends.append(suspended)
        if len(self._table) >= self._max_pending:
            self._update_gate()
        if is_urgent or suspended.delay_seconds < _SHORT_NAP_SECONDS:
            self._gatherer.hurry()
        else:
            self._gatherer.wake()
        return True

    def find(self, key: Key) -> Suspended | None:
        """The suspension of that key, if it is outstanding, or past its deadline and not answered for."""
        return self._table.find(key)

    def cancel(self, key: Key) -> None:
        """End a suspension before its time. A continue that had arrived already may still be delivered."""
        self._table.answer(key, pb.CONTINUE_OUTCOME_GONE)
        self._outbox.cancels.append(key)
        self._gatherer.wake()

    def answer(self, key: Key, outcome: pb.ContinueOutcome) -> None:
        """Say what became of a continue."""
        number = self._table.answer(key, outcome)
        if number and outcome == pb.CONTINUE_OUTCOME_APPLIED:
            self._outbox.applied.append(number)
        else:
            self._outbox.results.append((key, outcome))
        self._gatherer.wake_later()

    def applied(self, batch: Sequence[Suspended]) -> None:
        """Say that these were resumed: `answer` for many. Cheap for those that `on_due` has handed on."""
        numbers, unnumbered = self._table.applied(batch)
        self._outbox.applied += numbers
        self._outbox.results += [(key, pb.CONTINUE_OUTCOME_APPLIED) for key in unnumbered]
        self._gatherer.wake_later()

    def set_boot_epoch(self, boot_epoch: int) -> None:
        """The front end has been restarted: forget what is outstanding and say Hello with the new epoch."""
        if boot_epoch == self._boot_epoch:
            return
        self._boot_epoch = boot_epoch
        self._table.clear()
        self._outbox.clear()
        self._inbox.clear()
        self._early.clear()
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
        session: grpc.aio.StreamStreamMultiCallable[SessionFrame, wire.SessionResponse] = channel.stream_stream(
            SESSION_METHOD,
            request_serializer=SessionFrame.SerializeToString,
            response_deserializer=wire.SessionResponse.FromString,
        )
        return session(), lambda: channel.close(grace=None)

    async def _converse(self, target: str) -> None:
        call, close = self._open_call(target)
        try:
            self._call = call
            epoch = self._boot_epoch
            hello = SessionFrame()
            hello.hello.protocol_version = PROTOCOL_VERSION
            hello.hello.front_end_id = self._front_end_id
            hello.hello.boot_epoch = epoch or 0
            set_duration(hello.hello.ahead, AHEAD_SECONDS)
            async with asyncio.timeout(_HELLO_SECONDS):
                await call.write(hello)
                first = await call.read()
            if not isinstance(first, wire.SessionResponse) or not first.HasField("welcome"):
                await call.code()  # raises what the sidecar had to say, if it said anything
                raise ProtocolError(f"{target} did not answer the Hello with a Welcome")
            self._heard_seconds = self._loop.time()
            resubmitted = self._outbox.begin_stream()
            self._connected.set()
            log.info(
                "sidecar connected target=%s instance=%s durability=%s resubmitted=%d",
                target,
                first.welcome.instance_id,
                pb.Durability.Name(first.welcome.durability),
                resubmitted,
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
        self._gatherer.wake()
        while True:
            await self._gatherer.wait()
            while self._outbox:
                frame, shipped = self._outbox.next_frame()
                await call.write(frame)
                if shipped and self._on_shipped is not None:
                    self._on_shipped([suspended.key for suspended in shipped])

    def _receive(self, response: wire.SessionResponse) -> None:
        self._heard_seconds = self._loop.time()
        for result in response.frame_results:
            self._frame_answered(result)
        if response.due:
            due, ended = self._table.deliver_due(response.due)
            self._tell_again(ended)
            if due:
                self._early.add(due)
                self._early.release()
        if response.continues:
            self._take_continues(response.continues)
        if response.HasField("credits"):
            self._max_pending = response.credits.max_pending
        if response.HasField("go_away") and not self._leaving:
            self._leaving = True
            log.warning("sidecar is leaving reason=%s", response.go_away.reason)
            if len(self._targets) > 1 and self._call is not None:
                self._call.cancel()  # the next one takes over what is outstanding
        self._update_gate()

    def _frame_answered(self, result: wire.FrameResult) -> None:
        table, batch, numbers = self._table, self._outbox.take_frame(result.frame_number), result.numbers
        if batch and numbers:
            if len(batch) != len(numbers):  # in a new stream it names them by their keys
                raise ProtocolError(f"the sidecar gave {len(numbers)} numbers for {len(batch)} suspensions")
            table.set_numbers(batch, numbers)
        for refusal in result.refusals:
            key = self._own_key(refusal.key)
            suspended = table.find(key)
            if suspended is not None and table.deliver(key):  # else it was cancelled, or answered: it is over already
                self._on_continues([(key, own_continues.refused(key, suspended.route, refusal))])

    def _take_continues(self, continues: Iterable[pb.Continue]) -> None:
        table, front_end_id = self._table, self._front_end_id
        arrived: list[tuple[Key, pb.Continue]] = []
        for received in continues:
            message = received.key
            key = (
                front_end_id,
                message.boot_epoch,
                message.transaction_index,
                message.transaction_label,
                message.nap_number,
            )
            if key not in table and (outcome := table.remembered_answer(key)) is not None:
                self._outbox.results.append((key, outcome))
                self._gatherer.wake_later()
            elif table.deliver(key):
                arrived.append((key, received))
        if arrived:
            self._on_continues(arrived)

    def _tell_again(self, ended: Sequence[Suspended]) -> None:
        """The sidecar said of these that they are over; meanwhile they were cancelled. For it that was too late."""
        for suspended in ended:
            if (outcome := suspended.outcome) is not None:
                self._outbox.results.append((suspended.key, outcome))
                self._gatherer.wake_later()

    def _hand_on(self, due: Sequence[Suspended]) -> None:
        self._on_due(due)

    def _continue_as_asked(self, due: Sequence[Suspended]) -> None:
        self._on_continues([(each.key, own_continues.as_asked(each.key, each.route)) for each in due])

    def _keep_for_batches(self, continues: Sequence[tuple[Key, pb.Continue]]) -> None:
        for _, order in continues:
            order.key.front_end_id = self._front_end_id
            self._inbox.append(order)
        self._inbox_filled.set()

    # Time

    async def _keep_time(self) -> None:
        while True:
            asked_seconds = self._loop.time()
            await asyncio.sleep(HEARTBEAT_SECONDS)
            # While this process was stopped it heard nobody: that is no silence of the sidecar's.
            now = self._loop.time()
            self._heard_seconds = min(now, self._heard_seconds + (now - asked_seconds - HEARTBEAT_SECONDS))
            self._outbox.heartbeat_wanted = self._connected.is_set()
            self._gatherer.wake()
            has_sidecar = self._connected.is_set() and self._silent_seconds() < STALE_SECONDS
            for key, route in self._table.sweep(has_sidecar=has_sidecar):
                self._on_continues([(key, own_continues.lost(key, route))])
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
        return key_of(message)._replace(front_end_id=self._front_end_id)


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
