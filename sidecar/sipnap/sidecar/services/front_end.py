"""`FrontEndService`: the session of one front end, one reader and one writer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from sipnap.client.frames import SESSION_METHOD, SessionFrame
from sipnap.client.gather import GATHER_SECONDS, Gatherer
from sipnap.client.keys import fill_key, is_front_end_id
from sipnap.client.outstanding import seconds_of, set_duration
from sipnap.client.session import PROTOCOL_VERSION
from sipnap.sidecar.core.front_ends import FrontEnd
from sipnap.sidecar.core.suspension import Held, NapKey, Outcome, Phase, Reason, Refused
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
    request_from,
)
from sipnap.v1 import front_end_service_pb2 as wire
from sipnap.v1 import suspension_pb2 as pb

_MOST_CONTINUES_PER_MESSAGE = 512
_MOST_AHEAD_SECONDS = 1.0
_MANY_SENT = 10_000
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
        session = _Session(self._dispatcher, context, ahead_seconds)
        try:
            front_end = await self._dispatcher.attach(hello.front_end_id, hello.boot_epoch, session, ahead_seconds)
        except Refused as refused:
            await refuse(context, refused)
        except JournalError as error:
            await refuse(context, Refused(Reason.JOURNAL_UNAVAILABLE, str(error)))
        session.welcome(self._instance_id)
        log.info(
            "front end connected front_end=%s boot_epoch=%d held=%d peer=%s",
            hello.front_end_id, hello.boot_epoch, len(front_end.held), context.peer(),
        )  # fmt: skip
        reader = asyncio.create_task(session.read(requests, front_end), name=f"{hello.front_end_id} reader")
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

    def __init__(self, dispatcher: Dispatcher, context: Context, ahead_seconds: float) -> None:
        self._dispatcher = dispatcher
        self._context = context
        # What is handed out ahead of its time has time to gather.
        self._gatherer = Gatherer(max(GATHER_SECONDS, ahead_seconds / 2))
        self._ahead_seconds = ahead_seconds
        self._loop = asyncio.get_running_loop()
        self._clock = self._loop.time
        self._response = wire.SessionResponse()
        self._continues: list[Held] = []
        self._sent: dict[int, Held] = {}
        self._continue_number = 0
        self.superseded: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    # What the dispatcher and the servicer ask for

    def welcome(self, instance_id: str) -> None:
        """Have the Welcome and the credits written first."""
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

    def send_continue(self, held: Held) -> None:
        """See `sipnap.sidecar.dispatcher.Connection`."""
        lead_seconds = held.due_seconds - self._clock() if held.work is None else 0.0
        if lead_seconds > self._ahead_seconds:  # begun for a session that took it earlier than this one
            self._loop.call_at(held.due_seconds - self._ahead_seconds, self.send_continue, held)
            return
        self._continues.append(held)
        if lead_seconds > self._ahead_seconds / 2:
            self._gatherer.wake()
        else:
            self._gatherer.hurry()

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
                if not self._continues:
                    break

    def _add_continues(self, response: wire.SessionResponse) -> None:
        mark_sent = self._dispatcher.engine.mark_sent
        if len(self._sent) > 2 * len(self._continues) + _MANY_SENT:
            # Those that did not end by their number: cancelled, gone, given up.
            self._sent = {number: held for number, held in self._sent.items() if held.phase is Phase.CONTINUING}
        now = self._clock()
        taken = large_bytes = 0
        for held in self._continues[:_MOST_CONTINUES_PER_MESSAGE]:
            taken += 1
            if held.phase is not Phase.CONTINUING:  # it has been given up since
                continue
            self._continue_number += 1
            self._sent[self._continue_number] = held
            message = response.continues.add()
            continue_message(held, mark_sent(held), self._continue_number, message)
            if held.work is None and held.due_seconds > now:
                message.wait_us = int((held.due_seconds - now) * 1e6) + 1  # rather too much: never early
            if held.work is not None or not held.key.nap_number:  # results and data of tasks may be large
                large_bytes += message.ByteSize()
                if large_bytes > _MOST_RESULT_BYTES_PER_MESSAGE:
                    break
        del self._continues[:taken]

    # Reading

    async def read(self, requests: AsyncIterator[SessionFrame], front_end: FrontEnd) -> None:
        """Carry out what comes, until the stream ends. A bad entry is refused by itself."""
        with suppress(asyncio.CancelledError):
            async for request in requests:
                if request.suspends:
                    self._suspend(request, front_end)
                for key in map(nap_key, request.cancels):
                    outcome = self._dispatcher.cancel(front_end.front_end_id, key)
                    fill_key(self._response.cancel_results.add(outcome=CANCEL_TO_WIRE[outcome]).key, key)
                if request.applied:
                    sent = self._sent
                    self._dispatcher.applied(held for number in request.applied if (held := sent.pop(number, None)))
                if request.results:
                    self._dispatcher.settle(front_end, _answers(request, front_end))
                if request.HasField("heartbeat"):
                    self._response.heartbeat.nonce = request.heartbeat.nonce
                if request.cancels or request.HasField("heartbeat"):
                    self._gatherer.wake()

    def _suspend(self, request: SessionFrame, front_end: FrontEnd) -> None:
        engine = self._dispatcher.engine
        answer = wire.FrameResult(frame_number=request.frame_number)
        batch: list[Held] = []
        repeated: list[Held] = []
        read, epoch = pb.Suspension.FromString, front_end.boot_epoch
        for encoded in request.suspends:
            try:
                suspension = read(encoded)
                held, is_new = engine.reserve(front_end, request_from(suspension, epoch, encoded))
            except Refused as refused:
                refusal = answer.refusals.add(
                    key=suspension.key, reason=REASON_TO_WIRE[refused.reason], message=refused.message
                )
                if refused.retry_after_seconds is not None:
                    set_duration(refusal.retry_after, refused.retry_after_seconds)
                continue
            except DecodeError:
                answer.refusals.add(reason=REASON_TO_WIRE[Reason.INVALID], message="it cannot be decoded")
                continue
            if is_new:
                batch.append(held)
            elif held.phase is Phase.COMMITTING:
                repeated.append(held)  # of an earlier session; the commit that it is in ends before this frame's

        def done(error: JournalError | None) -> None:
            not_kept = [held for held in repeated if held.phase is Phase.ENDED]
            if error is not None:
                not_kept += batch
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


def _answers(request: SessionFrame, front_end: FrontEnd) -> Iterator[tuple[NapKey, Outcome]]:
    for result in request.results:
        outcome = OUTCOME_FROM_WIRE.get(result.outcome)
        if outcome is None:
            log.warning("answer without an outcome ignored front_end=%s", front_end.front_end_id)
        else:
            yield nap_key(result.key), outcome
