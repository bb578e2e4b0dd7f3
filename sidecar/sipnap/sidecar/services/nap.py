"""`NapService`: naps for any program, one call at a time."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING

import grpc

from sipnap.client.outstanding import seconds_of, set_duration
from sipnap.sidecar.core.suspension import NapKey, Phase, Reason, Refused
from sipnap.sidecar.dispatcher import Dispatcher
from sipnap.sidecar.journal.base import JournalError
from sipnap.sidecar.services.translate import (
    CANCEL_TO_WIRE,
    DURABILITY_TO_WIRE,
    Context,
    abort,
    info_message,
    key_message,
    nap_key,
    refuse,
    request_from,
    wall_time,
)
from sipnap.v1 import nap_service_pb2 as nap
from sipnap.v1 import suspension_pb2 as pb
from sipnap.v1.nap_service_pb2_grpc import NapServiceServicer

if TYPE_CHECKING:
    from sipnap.sidecar.core.front_ends import FrontEnd
    from sipnap.sidecar.core.suspension import Held

_MOST_PER_PAGE = 1000
_DEFAULT_PER_PAGE = 100
_TASK_NAP_NUMBER = 0
_ALMOST = 0.999  # of the longest delay: a Duration is rounded up, and must not get over the bound by that
_AT_ONCE_SECONDS = 0.001  # every suspension has a delay; this one is as good as none


class NapServicer(NapServiceServicer):
    """See `protos/sipnap/v1/nap_service.proto`."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._engine = dispatcher.engine

    async def Sleep(self, request: nap.SleepRequest, context: Context) -> nap.SleepResponse:
        """Return when the time has passed."""
        loop = asyncio.get_running_loop()
        try:
            future, sleeper = self._dispatcher.sleep(seconds_of(request.duration))
        except Refused as refused:
            await refuse(context, refused)
        try:
            await future
        finally:
            self._engine.wake(sleeper)
        response = nap.SleepResponse()
        set_duration(response.slept, loop.time() - sleeper.started_seconds)
        return response

    async def SuspendRoute(self, request: nap.SuspendRouteRequest, context: Context) -> nap.SuspendRouteResponse:
        """Return once accepted: after the journal has it."""
        suspension = request.suspension
        front_end_id = suspension.key.front_end_id
        try:
            front_end = self._engine.front_ends.reachable(front_end_id)
            if suspension.key.nap_number == _TASK_NAP_NUMBER:
                self._engine.counters.refused[Reason.INVALID] += 1
                raise Refused(Reason.INVALID, "key: nap_number is missing; naps count from 1 (RunTask makes tasks)")
            held, is_new = self._engine.reserve(front_end, request_from(suspension, front_end.boot_epoch))
        except Refused as refused:
            await refuse(context, refused)
        is_committing = held.phase is Phase.COMMITTING
        if is_committing:  # also a repetition is accepted after the commit, never before
            error = await self._committed([held] if is_new else [])
            if not is_new:
                error = JournalError("the journal did not take it") if held.phase is Phase.ENDED else None
            if error is not None:
                await refuse(context, Refused(Reason.JOURNAL_UNAVAILABLE, str(error)))
        return nap.SuspendRouteResponse(
            key=key_message(front_end_id, held.key),
            due_time=wall_time(held.due_seconds, asyncio.get_running_loop().time()),
            durability=DURABILITY_TO_WIRE[self._dispatcher.journal.durability],
            already_held=not is_new,
        )

    async def RunTask(self, request: nap.RunTaskRequest, context: Context) -> nap.RunTaskResponse:
        """Return once accepted: after the journal has it."""
        try:
            front_end = self._engine.front_ends.reachable(request.front_end_id)
            suspension = pb.Suspension(
                key=key_message(request.front_end_id, _new_task_key(front_end)),
                resume_route=request.route,
                data=request.data,
                operations=request.operations,
            )
            if seconds_of(request.delay):
                suspension.delay.CopyFrom(request.delay)
            elif request.operations:
                set_duration(suspension.delay, _ALMOST * self._engine.limits.max_delay_seconds)
            else:
                set_duration(suspension.delay, _AT_ONCE_SECONDS)
            held, _ = self._engine.reserve(front_end, request_from(suspension, front_end.boot_epoch))
        except Refused as refused:
            await refuse(context, refused)
        error = await self._committed([held])
        if error is not None:
            await refuse(context, Refused(Reason.JOURNAL_UNAVAILABLE, str(error)))
        return nap.RunTaskResponse(
            key=key_message(request.front_end_id, held.key),
            durability=DURABILITY_TO_WIRE[self._dispatcher.journal.durability],
        )

    async def _committed(self, batch: list[Held]) -> JournalError | None:
        future: asyncio.Future[JournalError | None] = asyncio.get_running_loop().create_future()
        self._dispatcher.submit(batch, future.set_result)
        return await asyncio.shield(future)  # a caller that goes away does not undo the commit

    async def Cancel(self, request: nap.CancelRequest, context: Context) -> nap.CancelResponse:
        """End a suspension before its time."""
        outcome = self._dispatcher.cancel(request.key.front_end_id, self._full_key(request.key))
        return nap.CancelResponse(outcome=CANCEL_TO_WIRE[outcome])

    async def Get(self, request: nap.GetRequest, context: Context) -> nap.GetResponse:
        """One suspension."""
        held = self._engine.find(request.key.front_end_id, self._full_key(request.key))
        if held is None:
            await abort(
                context, grpc.StatusCode.NOT_FOUND, "NOT_FOUND", "no such suspension: it has ended or never was"
            )
        return nap.GetResponse(suspension=info_message(held, asyncio.get_running_loop().time()))

    async def List(self, request: nap.ListRequest, context: Context) -> nap.ListResponse:
        """One page of suspensions, in order of acceptance."""
        token = request.page_token
        if token and not (token.isascii() and token.isdigit()):
            await refuse(context, Refused(Reason.INVALID, f"page_token {token[:80]!r} is not one of this sidecar's"))
        size = min(request.page_size or _DEFAULT_PER_PAGE, _MOST_PER_PAGE)
        page = self._engine.list(request.front_end_id, int(token or 0), size)
        now_seconds = asyncio.get_running_loop().time()
        return nap.ListResponse(
            suspensions=[info_message(held, now_seconds) for held in page],
            next_page_token=str(page[-1].sequence) if len(page) == size else "",
        )

    def _full_key(self, message: pb.SuspensionKey) -> NapKey:
        key = nap_key(message)
        front_end = self._engine.front_ends.get(message.front_end_id)
        return key._replace(boot_epoch=front_end.boot_epoch) if not key.boot_epoch and front_end is not None else key


def _new_task_key(front_end: FrontEnd) -> NapKey:
    """A key that no task of this life of the front end has had: 64 random bits, and none of those that are held."""
    while True:
        number = secrets.randbits(64)
        key = NapKey(front_end.boot_epoch, number >> 32, number & 0xFFFFFFFF, _TASK_NAP_NUMBER)
        if key.pack() not in front_end.held:
            return key
