"""How a nap ended, and what its operations found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from sipnap.client.operations import Value, arguments_of
from sipnap.v1 import suspension_pb2 as pb

Status: TypeAlias = Literal["", "ok", "failed", "timed_out", "lost"]
"""How a nap ended; empty before the first."""

_STATUS: dict[int, Status] = {
    pb.CONTINUE_STATUS_OK: "ok",
    pb.CONTINUE_STATUS_FAILED: "failed",
    pb.CONTINUE_STATUS_TIMED_OUT: "timed_out",
    pb.CONTINUE_STATUS_LOST: "lost",
}


class OperationFailed(Exception):
    """A value is not there, because what should have found it failed."""

    def __init__(self, result: OperationResult) -> None:
        super().__init__(f"{result.error} ({result.error_code})")
        self.result = result
        """Of which it was asked."""


@dataclass(frozen=True, slots=True)
class OperationResult:
    """What became of the operations of one nap. It is true if all of them did what they should."""

    status: Literal["", "ok", "failed", "timed_out", "lost", "refused"]
    """``ok``, ``failed`` (one of them at least), ``timed_out``, ``lost`` (no sidecar answered in time), or ``refused``
    at the door: the call did not nap then. Empty of a call that has not napped yet."""
    error: str = ""
    """When it is not ``ok``: what went wrong, for people."""
    error_code: str = ""
    """When it is not ``ok``: what went wrong, for programs; a word such as ``http_connect``, or the status itself."""
    values: Mapping[str, Value] = field(default_factory=dict)
    """What was found, by name: `bytes`, `int`, `bool`, or a list of such. If one of several operations failed, what
    the others found is here."""

    def __bool__(self) -> bool:
        return self.status == "ok"

    def text(self, name: str, default: str | None = None) -> str:
        """A value that is text. Bytes that are no UTF-8 come as lone surrogates (PEP 383), as in `Call.header`.

        Args:
            name: Its name.
            default: What to return if it is not there, for whatever reason; None: raise.

        Raises:
            OperationFailed: It is not there, and an operation failed.
            KeyError: It is not there, and none failed.
            TypeError: It is no text.
        """
        if name not in self.values:
            if default is not None:
                return default
            if not self:
                raise OperationFailed(self)
        value = self.values[name]
        if not isinstance(value, bytes):
            raise TypeError(f"{name!r} is no text but {value!r}: take it from 'values'")
        return value.decode("utf-8", "surrogateescape")


NOT_NAPPED = OperationResult("")
"""Of a call that has not napped yet."""


def result_of(received: pb.Continue) -> OperationResult:
    """What a continue says."""
    status = _STATUS.get(received.status, "failed")
    if status == "ok":
        return OperationResult("ok", values=arguments_of(received.values))
    return OperationResult(status, received.error, received.error_code or status, arguments_of(received.values))
