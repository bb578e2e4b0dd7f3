"""What can go wrong between a program and its sidecar, one class for each thing that a caller may want to tell apart.

The table `ERROR_OF_REASON` is the only place where the wire's reasons become classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from sipnap.client.outstanding import seconds_of

ERROR_DOMAIN = "sipnap"
"""`ErrorInfo.domain` of every error that a sidecar sends."""


class NapError(Exception):
    """The sidecar could not do what was asked."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or type(self).__doc__)


class Unavailable(NapError):
    """No sidecar answered in time."""


class Refused(NapError):
    """The sidecar did not accept the suspension."""

    retry_after_seconds: float | None = None
    """When it may be worth another try, counted from the answer; None: nobody knows."""


class Full(Refused):
    """A bound is reached; try again later: after `retry_after_seconds`, if the sidecar could tell."""


class Draining(Refused):
    """The sidecar is shutting down."""


class Invalid(Refused):
    """A field is missing or malformed."""


class TooLarge(Refused):
    """The suspension is larger than the sidecar takes."""


class DelayOutOfRange(Refused):
    """The delay is not within what the sidecar takes."""


class StaleEpoch(Refused):
    """The front end has been restarted since."""


class FrontEndUnknown(Refused):
    """No such front end has a session, nor had one lately."""


class OperationUnknown(Refused):
    """The sidecar has no such operation or worker group."""


class GroupUnknown(Refused):
    """The sidecar has no such worker group, or one whose workers are of another kind."""


class JournalUnavailable(Refused):
    """The sidecar's journal cannot take it at present."""


class NotFound(NapError):
    """No such suspension: it has ended or never was. Or no such worker group."""


class ProtocolError(NapError):
    """The other side does not speak this version of the protocol."""


ERROR_OF_REASON: dict[str, type[NapError]] = {
    "FULL": Full,
    "DRAINING": Draining,
    "INVALID": Invalid,
    "TOO_LARGE": TooLarge,
    "DELAY_OUT_OF_RANGE": DelayOutOfRange,
    "STALE_EPOCH": StaleEpoch,
    "FRONT_END_UNKNOWN": FrontEndUnknown,
    "OPERATION_UNKNOWN": OperationUnknown,
    "GROUP_UNKNOWN": GroupUnknown,
    "JOURNAL_UNAVAILABLE": JournalUnavailable,
    "NOT_FOUND": NotFound,
    "PROTOCOL": ProtocolError,
    "OWNER_SILENT": Unavailable,
}


def error_from(call_error: grpc.RpcError, target: str) -> NapError:
    """The error that a failed RPC stands for; `target` is named when nobody answered."""
    details = str(getattr(call_error, "details", lambda: "")() or "")
    error: NapError | None = None
    for detail in _details_of(call_error):
        info, retry_info = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        if detail.Unpack(info) and info.domain == ERROR_DOMAIN:
            error = ERROR_OF_REASON.get(info.reason, NapError)(details)
        elif detail.Unpack(retry_info) and isinstance(error, Refused):
            error.retry_after_seconds = seconds_of(retry_info.retry_delay)
    if error is not None:
        return error
    code = getattr(call_error, "code", lambda: None)()
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return Unavailable(f"no sidecar answered at {target}: {details}")
    return NapError(f"{code.name if code else 'UNKNOWN'}: {details}")


def _details_of(call_error: grpc.RpcError) -> Iterable[Any]:
    try:
        status = rpc_status.from_call(cast("grpc.Call", call_error))
    except (ValueError, AttributeError):  # the peer's details contradict its status, or it sent none: nothing to trust
        return ()
    return status.details if status is not None else ()
