"""`NapService` where several sidecars share a journal: each call is carried out by the owner of its front end."""

from __future__ import annotations

from typing import Any, NoReturn, TypeVar, cast

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2
from grpc_status import rpc_status

from sipnap.client.keys import is_front_end_id
from sipnap.sidecar.core.suspension import Reason, Refused
from sipnap.sidecar.dispatcher import Dispatcher
from sipnap.sidecar.hand_over import HandOver, OwnerRefused, OwnerSilent
from sipnap.sidecar.journal.base import JournalError, Mailbox
from sipnap.sidecar.services.nap import NapServicer
from sipnap.sidecar.services.translate import Context, abort, refuse
from sipnap.v1 import nap_service_pb2 as nap

_Response = TypeVar("_Response", bound=Message)


class SharedNapServicer(NapServicer):
    """See `protos/sipnap/v1/nap_service.proto`. Sleep and List are this sidecar's own business."""

    def __init__(self, dispatcher: Dispatcher, mailbox: Mailbox, instance_id: str) -> None:
        super().__init__(dispatcher)
        self.hand_over = HandOver(mailbox, instance_id, self._carry_out, dispatcher.check_owners)

    async def SuspendRoute(self, request: nap.SuspendRouteRequest, context: Context) -> nap.SuspendRouteResponse:
        """Return once accepted, here or there."""
        front_end_id = request.suspension.key.front_end_id
        answer = await self._ask(front_end_id, request, nap.SuspendRouteResponse, context)
        return answer if answer is not None else await super().SuspendRoute(request, context)

    async def RunTask(self, request: nap.RunTaskRequest, context: Context) -> nap.RunTaskResponse:
        """Return once accepted, here or there. A caller that got no answer and asks again may have made two tasks."""
        answer = await self._ask(request.front_end_id, request, nap.RunTaskResponse, context)
        return answer if answer is not None else await super().RunTask(request, context)

    async def Cancel(self, request: nap.CancelRequest, context: Context) -> nap.CancelResponse:
        """End a suspension before its time, here or there."""
        answer = await self._ask(request.key.front_end_id, request, nap.CancelResponse, context)
        return answer if answer is not None else await super().Cancel(request, context)

    async def Get(self, request: nap.GetRequest, context: Context) -> nap.GetResponse:
        """One suspension, from here or there."""
        answer = await self._ask(request.key.front_end_id, request, nap.GetResponse, context)
        return answer if answer is not None else await super().Get(request, context)

    async def _ask(
        self, front_end_id: str, request: Message, response: type[_Response], context: Context
    ) -> _Response | None:
        """What the owner answers; None: it is to be carried out here."""
        front_end = self._engine.front_ends.get(front_end_id)
        if (front_end is not None and front_end.connected) or not is_front_end_id(front_end_id):
            return None
        call = type(request).__name__.removesuffix("Request")
        try:
            answer = await self.hand_over.ask(front_end_id, call, request.SerializeToString())
        except OwnerRefused as refused:
            await context.abort_with_status(rpc_status.to_status(status_pb2.Status.FromString(refused.status)))
        except OwnerSilent as silent:
            await abort(context, grpc.StatusCode.UNAVAILABLE, "OWNER_SILENT", str(silent))
        except JournalError as error:
            await refuse(context, Refused(Reason.JOURNAL_UNAVAILABLE, str(error)))
        return response.FromString(answer) if answer is not None else None

    async def _carry_out(self, call: str, request: bytes) -> bytes:
        """What another sidecar was asked; never handed on."""
        context = cast("Context", _Letter())
        answer: Message
        try:
            match call:
                case "SuspendRoute":
                    answer = await super().SuspendRoute(nap.SuspendRouteRequest.FromString(request), context)
                case "RunTask":
                    answer = await super().RunTask(nap.RunTaskRequest.FromString(request), context)
                case "Cancel":
                    answer = await super().Cancel(nap.CancelRequest.FromString(request), context)
                case "Get":
                    answer = await super().Get(nap.GetRequest.FromString(request), context)
                case _:
                    await abort(context, grpc.StatusCode.UNIMPLEMENTED, "CALL", f"{call[:80]!r} is not known here")
        except DecodeError:
            await abort(context, grpc.StatusCode.INVALID_ARGUMENT, "INVALID", "the letter does not hold a request")
        return answer.SerializeToString()


class _Letter:
    """As much of an RPC's context as the servicer needs: where a refusal goes."""

    async def abort_with_status(self, status: Any) -> NoReturn:
        (_, details), *_ = status.trailing_metadata
        raise OwnerRefused(details)
