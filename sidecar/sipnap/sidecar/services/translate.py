"""Between the contract's messages and the core's words. The only place that knows both."""

from __future__ import annotations

import time
from typing import Any, NoReturn

import grpc
import grpc.aio
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from sipnap.client.errors import ERROR_DOMAIN
from sipnap.client.outstanding import seconds_of, set_duration
from sipnap.client.request_head import complete
from sipnap.sidecar.core.suspension import CancelOutcome, Held, NapKey, Outcome, Phase, Reason, Refused, Request, Status
from sipnap.sidecar.journal.base import Durability
from sipnap.sidecar.workers.base import operations_of
from sipnap.v1 import suspension_pb2 as pb

REASON_TO_WIRE: dict[Reason, pb.RefusalReason] = {
    reason: getattr(pb, f"REFUSAL_REASON_{reason.name}") for reason in Reason
}
CANCEL_TO_WIRE: dict[CancelOutcome, pb.CancelOutcome] = {
    outcome: getattr(pb, f"CANCEL_OUTCOME_{outcome.name}") for outcome in CancelOutcome
}
STATUS_TO_WIRE: dict[Status, pb.ContinueStatus] = {
    status: getattr(pb, f"CONTINUE_STATUS_{status.name}") for status in Status
}
DURABILITY_TO_WIRE: dict[Durability, pb.Durability] = {
    kept: getattr(pb, f"DURABILITY_{kept.name}") for kept in Durability
}
OUTCOME_FROM_WIRE: dict[pb.ContinueOutcome, Outcome] = {
    getattr(pb, f"CONTINUE_OUTCOME_{outcome.name}"): outcome for outcome in Outcome
}

Context = grpc.aio.ServicerContext[Any, Any]
"""The context of any RPC here."""

_CODE_OF_REASON = {
    Reason.FULL: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.DRAINING: grpc.StatusCode.UNAVAILABLE,
    Reason.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.TOO_LARGE: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.DELAY_OUT_OF_RANGE: grpc.StatusCode.OUT_OF_RANGE,
    Reason.STALE_EPOCH: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.FRONT_END_UNKNOWN: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.OPERATION_UNKNOWN: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.JOURNAL_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
}


def nap_key(message: pb.SuspensionKey) -> NapKey:
    """The key within its front end."""
    return NapKey(message.boot_epoch, message.transaction_index, message.transaction_label, message.nap_number)


def key_message(front_end_id: str, key: NapKey) -> pb.SuspensionKey:
    """The key with nothing left implied."""
    return pb.SuspensionKey(
        front_end_id=front_end_id,
        boot_epoch=key[0],
        transaction_index=key[1],
        transaction_label=key[2],
        nap_number=key[3],
    )


def request_from(suspension: pb.Suspension, present_epoch: int, encoded: bytes | None = None) -> Request:
    """A request for the core to judge; boot epoch 0 becomes the present one. `encoded`: the same message as it came."""
    key = suspension.key
    return Request(
        NapKey(key.boot_epoch or present_epoch, key.transaction_index, key.transaction_label, key.nap_number),
        suspension.resume_route,
        seconds_of(suspension.delay),
        seconds_of(suspension.deadline) if suspension.HasField("deadline") else None,
        suspension.SerializeToString() if encoded is None else encoded,
        operations_of(suspension) if suspension.operations else (),
    )


def continue_message(held: Held, attempt: int, message: pb.Continue) -> None:
    """Fill in the continue of a suspension; the front end id is implied in a session."""
    key = message.key
    key.boot_epoch, key.transaction_index, key.transaction_label, nap_number = held.key
    key.nap_number = nap_number
    message.resume_route = held.route
    message.attempt = attempt
    work = held.work
    if work is None:
        message.status = pb.CONTINUE_STATUS_OK
    else:
        message.status = STATUS_TO_WIRE[work.status]
        message.error = work.error
        message.error_code = work.error_code
        for value in work.values:
            message.values.add().MergeFromString(value)
    if not nap_number:  # a task; its data stays in the payload until then
        message.data = pb.Suspension.FromString(held.payload).data


def info_message(held: Held, now_seconds: float) -> pb.SuspensionInfo:
    """What Get and List tell of a suspension."""
    suspension = pb.Suspension.FromString(held.payload)
    info = pb.SuspensionInfo(
        suspension=suspension,
        phase=pb.SUSPENSION_PHASE_CONTINUING if held.phase is Phase.CONTINUING else pb.SUSPENSION_PHASE_PENDING,
        accept_time=wall_time(held.due_seconds - seconds_of(suspension.delay), now_seconds),
        due_time=wall_time(held.due_seconds, now_seconds),
        attempt=held.attempt,
    )
    complete(info.suspension.state)
    info.suspension.key.CopyFrom(key_message(held.front_end.front_end_id, held.key))
    return info


def wall_time(monotonic_seconds: float, now_seconds: float) -> Timestamp:
    """An instant of the monotonic clock as a time of day."""
    timestamp = Timestamp()
    timestamp.FromNanoseconds(time.time_ns() + int((monotonic_seconds - now_seconds) * 1e9))
    return timestamp


async def refuse(context: Context, refused: Refused) -> NoReturn:
    """End an RPC with what the core had to say."""
    details: list[Message] = []
    if refused.retry_after_seconds is not None:
        retry_info = error_details_pb2.RetryInfo()
        set_duration(retry_info.retry_delay, refused.retry_after_seconds)
        details.append(retry_info)
    await abort(context, _CODE_OF_REASON[refused.reason], refused.reason.name, refused.message, *details)


async def abort(context: Context, code: grpc.StatusCode, reason: str, message: str, *more: Message) -> NoReturn:
    """End an RPC with a google.rpc.Status that has an ErrorInfo, and whatever details come with it."""
    status = status_pb2.Status(code=code_pb2.Code.Value(code.name), message=message)
    for detail in (error_details_pb2.ErrorInfo(reason=reason, domain=ERROR_DOMAIN), *more):
        status.details.add().Pack(detail)
    await context.abort_with_status(rpc_status.to_status(status))
    raise AssertionError("abort_with_status does not return")
