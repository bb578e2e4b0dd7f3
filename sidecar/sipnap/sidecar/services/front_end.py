"""`FrontEndService`: the session of one front end, one reader and one writer."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from sipnap.client.frames import SESSION_METHOD, SessionFrame
from sipnap.client.gather import Gatherer
from sipnap.client.keys import fill_key, is_front_end_id
from sipnap.client.outstanding import seconds_of, set_duration
from sipnap.client.session import PROTOCOL_VERSION
from sipnap.sidecar.core.front_ends import FrontEnd
from sipnap.sidecar.core.streams import Stream
from sipnap.sidecar.core.suspension import Held, NapKey, Outcome, Phase, Reason, Refused, pack_key
from sipnap.sidecar.dispatcher import Dispatcher
from sipnap.sidecar.journal.base import JournalError
from sipnap.sidecar.services.translate import (
    CANCEL_TO_WIRE,
    DURABILITY_TO_WIRE,
    OUTCOME_FROM_WIRE,
    REASON_TO_WIRE,
    Context,
    abort,
    continue_message,
    nap_key,
    refuse,
)
from sipnap.sidecar.workers.base import operations_of
from sipnap.v1 import front_end_service_pb2 as wire
from sipnap.v1 import suspension_pb2 as pb

_MOST_CONTINUES_PER_MESSAGE = 512
_MOST_AHEAD_SECONDS = 1.0
_MOST_NUMBERS_PER_MESSAGE = 4096
_MOST_RESULT_BYTES_PER_MESSAGE = 1024 * 1024  # far below `MAX_MESSAGE_BYTES`, over which gRPC ends the stream

_ENDS_OF_STREAMS = (grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError)

log = logging.getLogger("sipnap.sidecar")


def add_front_end_service(server: grpc.aio.Server, servicer: FrontEndServicer) -> None:
    """What the generated function does, but requests come as `SessionFrame`."""
    method = grpc.stream_stream_rpc_method_handler(
        servicer.Session,
        request_deserializer=SessionFrame.FromString,
        response_serializer=wire.SessionResponse.SerializeToString,
    )
    _, service, name = SESSION_METHOD.split("/")
    server.add_registered_method_handlers(service, {name: method})


class FrontEndServicer:
    """See `protos/sipnap/v1/front_end_service.proto`."""

    def __init__(self, dispatcher: Dispatcher, instance_id: str) -> None:
        self._dispatcher = dispatcher
        self._instance_id = instance_id

    async def Session(self, requests: AsyncIterator[SessionFrame], context: Context) -> None:
        """Serve one stream until either side ends it."""
        hello = await self._read_hello(requests, context)
        ahead_seconds = min(max(seconds_of(hello.ahead), 0.0), _MOST_AHEAD_SECONDS)
        session = _Session(self._dispatcher, context)
        try:
            front_end = await self._dispatcher.attach(hello.front_end_id, hello.boot_epoch, session, ahead_seconds)
        except Refused as refused:
            await refuse(context, refused)
        except JournalError as error:
            await refuse(context, Refused(Reason.JOURNAL_UNAVAILABLE, str(error)))
        session.begin(front_end, self._instance_id)
        log.info(
            "front end connected front_end=%s boot_epoch=%d held=%d peer=%s",
            hello.front_end_id, hello.boot_epoch, len(front_end.held), context.peer(),
        )  # fmt: skip
        reader = asyncio.create_task(session.read(requests), name=f"{hello.front_end_id} reader")
        writer = asyncio.create_task(session.write(), name=f"{hello.front_end_id} writer")
        try:
            ends: set[asyncio.Future[Any]] = {reader, writer, session.superseded}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._dispatcher.detach(front_end, session)
            for task in (reader, writer):
                task.cancel()
            failure, _ = await asyncio.gather(reader, writer, return_exceptions=True)
            if isinstance(failure, Exception) and not isinstance(failure, _ENDS_OF_STREAMS):
                log.error("session failed, please report it front_end=%s", hello.front_end_id, exc_info=failure)
            log.info("front end disconnected front_end=%s held=%d", hello.front_end_id, len(front_end.held))
        if session.superseded.done():
            await abort(context, grpc.StatusCode.ABORTED, "SUPERSEDED", session.superseded.result())

    async def _read_hello(self, requests: AsyncIterator[SessionFrame], context: Context) -> wire.Hello:
        first = await anext(requests, None)
        if first is None or not first.HasField("hello"):
            await refuse(context, Refused(Reason.INVALID, "the first message of a session has to carry hello"))
        hello = first.hello
        if hello.protocol_version != PROTOCOL_VERSION:
            await abort(
                context, grpc.StatusCode.FAILED_PRECONDITION, "PROTOCOL",
                f"protocol version {hello.protocol_version} is not spoken here, only {PROTOCOL_VERSION}",
            )  # fmt: skip
        if not hello.boot_epoch:
            await refuse(context, Refused(Reason.INVALID, "hello: boot_epoch is missing; 0 is not one"))
        if not is_front_end_id(hello.front_end_id):
            await refuse(
                context,
                Refused(
                    Reason.INVALID,
                    f"hello: front_end_id {hello.front_end_id[:160]!r} is not 1 to 128 of [A-Za-z0-9._:-]",
                ),
            )
        return hello


class _Session:
    """One open stream: what waits to be written, and how what is read is carried out."""

    def __init__(self, dispatcher: Dispatcher, context: Context) -> None:
        self._dispatcher = dispatcher
        self._context = context
        self._gatherer = Gatherer()
        self._loop = asyncio.get_running_loop()
        self._clock = self._loop.time
        self._response = wire.SessionResponse()
        self._stream: Stream | None = None
        self._due: list[int] = []
        self._continues: list[Held] = []
        self.superseded: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    # What the dispatcher and the servicer ask for

    def begin(self, front_end: FrontEnd, instance_id: str) -> None:
        """It serves this front end from now on. Have the Welcome and the credits written first."""
        self._front_end = front_end
        self._stream = front_end.stream
        limits = self._dispatcher.engine.limits
        self._welcome = wire.Welcome(
            protocol_version=PROTOCOL_VERSION,
            instance_id=instance_id,
            durability=DURABILITY_TO_WIRE[self._dispatcher.journal.durability],
            max_entry_bytes=limits.max_entry_bytes,
        )
        set_duration(self._welcome.max_delay, limits.max_delay_seconds)
        engine = self._dispatcher.engine
        self.set_credits(0 if engine.journal_error else limits.max_pending)
        if engine.draining:
            self.go_away("the sidecar is shutting down")

    def send_due(self, numbers: Sequence[int]) -> None:
        """See `sipnap.sidecar.dispatcher.Connection`."""
        self._due += numbers
        self._gatherer.wake()

    def send_continues(self, batch: Sequence[Held]) -> None:
        """See `sipnap.sidecar.dispatcher.Connection`."""
        now = self._clock()
        for held in batch:
            if held.work is None and held.due_seconds > now:  # an earlier stream was told of it ahead of its time
                self._loop.call_at(held.due_seconds, self.send_continues, [held])
            else:
                self._continues.append(held)
        self._gatherer.wake()

    def supersede(self, reason: str) -> None:
        """See `sipnap.sidecar.dispatcher.Connection`."""
        if not self.superseded.done():
            self.superseded.set_result(reason)

    def set_credits(self, max_pending: int) -> None:
        """See `sipnap.sidecar.dispatcher.Connection`."""
        self._response.credits.max_pending = max_pending
        self._gatherer.wake()

    def go_away(self, reason: str) -> None:
        """See `sipnap.sidecar.dispatcher.Connection`."""
        self._response.credits.max_pending = 0
        self._response.go_away.reason = reason
        self._gatherer.wake()

    # Writing

    async def write(self) -> None:
        """Write what gathers, until the stream ends."""
        await self._context.write(wire.SessionResponse(welcome=self._welcome))
        while True:
            await self._gatherer.wait()
            while True:
                response, self._response = self._response, wire.SessionResponse()
                self._add_continues(response)
                await self._context.write(response)
                if not self._continues and not self._due:
                    break

    def _add_continues(self, response: wire.SessionResponse) -> None:
        mark_sent = self._dispatcher.engine.mark_sent
        if self._due:
            response.due.extend(self._due[:_MOST_NUMBERS_PER_MESSAGE])
            del self._due[:_MOST_NUMBERS_PER_MESSAGE]
        taken = large_bytes = 0
        for held in self._continues[:_MOST_CONTINUES_PER_MESSAGE]:
            taken += 1
            if held.phase is not Phase.CONTINUING:  # it has been given up since
                continue
            message = response.continues.add()
            continue_message(held, mark_sent(held), message)
            if held.work is not None or not held.key.nap_number:  # results and data of tasks may be large
                large_bytes += message.ByteSize()
                if large_bytes > _MOST_RESULT_BYTES_PER_MESSAGE:
                    break
        del self._continues[:taken]

    # Reading

    async def read(self, requests: AsyncIterator[SessionFrame]) -> None:
        """Carry out what comes, until the stream ends. A bad entry is refused by itself."""
        front_end = self._front_end
        with suppress(asyncio.CancelledError):
            async for request in requests:
                if request.suspends:
                    self._suspend(request)
                for key in map(nap_key, request.cancels):
                    outcome = self._dispatcher.cancel(front_end.front_end_id, key)
                    fill_key(self._response.cancel_results.add(outcome=CANCEL_TO_WIRE[outcome]).key, key)
                if request.applied:
                    self._dispatcher.settle_applied(front_end, self._stream, request.applied)
                if request.results:
                    self._dispatcher.settle(front_end, _answers(request, front_end))
                if request.HasField("heartbeat"):
                    self._response.heartbeat.nonce = request.heartbeat.nonce
                if request.cancels or request.HasField("heartbeat"):
                    self._gatherer.wake()

    def _suspend(self, request: SessionFrame) -> None:
        answer = wire.FrameResult(frame_number=request.frame_number)
        batch: list[Held] = []
        repeated: list[Held] = []
        numbers: list[int] = []
        suspends, lefts_us = request.suspends, request.left_us
        if lefts_us and len(lefts_us) != len(suspends):
            self._refuse_all(suspends, f"left_us has {len(lefts_us)} entries for {len(suspends)} suspends", answer)
        else:
            self._take_in(suspends, lefts_us, answer, batch, repeated, numbers)

        def done(error: JournalError | None) -> None:
            not_kept = [held for held in repeated if held.phase is Phase.ENDED]
            if error is not None:
                not_kept += batch
            elif self._stream is not None:
                answer.numbers.extend(numbers)
            for held in not_kept:
                message = str(error or "the journal did not take it")
                refusal = answer.refusals.add(reason=REASON_TO_WIRE[Reason.JOURNAL_UNAVAILABLE], message=message)
                fill_key(refusal.key, held.key)
            self._response.frame_results.append(answer)
            if answer.refusals:
                self._gatherer.wake()
            else:
                self._gatherer.wake_later()

        self._dispatcher.submit(batch, done)

    def _take_in(
        self,
        suspends: Sequence[bytes],
        lefts_us: Sequence[int],
        answer: wire.FrameResult,
        batch: list[Held],
        repeated: list[Held],
        numbers: list[int],
    ) -> None:
        front_end, stream = self._front_end, self._stream
        epoch, now = front_end.boot_epoch, self._clock()
        read, take_in = pb.Suspension.FromString, self._dispatcher.engine.take_in
        for encoded, left_us in zip(suspends, lefts_us or itertools.repeat(None), strict=False):
            number = 0
            try:
                suspension = read(encoded)
                key = suspension.key
                nap_number = key.nap_number
                operations = suspension.operations
                held, is_new = take_in(
                    front_end,
                    pack_key(key.boot_epoch or epoch, key.transaction_index, key.transaction_label, nap_number),
                    suspension.resume_route,
                    seconds_of(suspension.delay) if left_us is None else left_us * 1e-6,
                    seconds_of(suspension.deadline) if suspension.HasField("deadline") else None,
                    encoded,
                    operations_of(suspension) if operations else (),
                    now,
                    stream if nap_number and not operations else None,
                )
                if is_new:
                    batch.append(held)
                    number = held.sequence
                elif held.phase is Phase.COMMITTING:
                    repeated.append(held)  # of an earlier session; the commit that it is in ends before this frame's
            except Refused as refused:
                refusal = answer.refusals.add(
                    key=suspension.key, reason=REASON_TO_WIRE[refused.reason], message=refused.message
                )
                if refused.retry_after_seconds is not None:
                    set_duration(refusal.retry_after, refused.retry_after_seconds)
            except DecodeError:
                answer.refusals.add(reason=REASON_TO_WIRE[Reason.INVALID], message="it cannot be decoded")
            numbers.append(number)

    def _refuse_all(self, suspends: Sequence[bytes], message: str, answer: wire.FrameResult) -> None:
        counters = self._dispatcher.engine.counters
        for encoded in suspends:
            counters.refusal(Reason.INVALID, message)
            refusal = answer.refusals.add(reason=REASON_TO_WIRE[Reason.INVALID], message=message)
            with suppress(DecodeError):
                refusal.key.CopyFrom(pb.Suspension.FromString(encoded).key)


def _answers(request: SessionFrame, front_end: FrontEnd) -> Iterator[tuple[NapKey, Outcome]]:
    for result in request.results:
        outcome = OUTCOME_FROM_WIRE.get(result.outcome)
        if outcome is None:
            log.warning("answer without an outcome ignored front_end=%s", front_end.front_end_id)
        else:
            yield nap_key(result.key), outcome
