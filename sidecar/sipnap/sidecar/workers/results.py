"""Results of tasks on their way from the sidecar that had one run to the one that owns its front end."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from google.protobuf.message import DecodeError

from sipnap.client.outstanding import seconds_of, set_duration
from sipnap.sidecar.core.groups import JobResult
from sipnap.sidecar.journal.tasks import Taken
from sipnap.v1 import suspension_pb2 as pb
from sipnap.v1 import worker_service_pb2 as wire

_LENGTHS = struct.Struct(">HI")


class TaskResult(NamedTuple):
    """How one attempt at a task ended."""

    taken: Taken
    """Which."""
    attempt: int
    """Number of the attempt, from 1."""
    result: JobResult
    """How it ended."""


def pack(results: Iterable[TaskResult]) -> bytes:
    """Results as bytes."""
    parts: list[bytes] = []
    for taken, attempt, result in results:
        head = f"{taken.name} {taken.entry} {taken.holder} {taken.deliveries} {attempt} {taken.operation}".encode()
        body = _to_message(result).SerializeToString()
        parts += (_LENGTHS.pack(len(head), len(body)), head, body)
    return b"".join(parts)


def unpack(packed: bytes) -> list[TaskResult]:
    """The results again.

    Raises:
        ValueError: That is not what they are.
    """
    results = []
    offset = 0
    try:
        while offset < len(packed):
            head_length, body_length = _LENGTHS.unpack_from(packed, offset)
            start = offset + _LENGTHS.size + head_length
            head, body = packed[offset + _LENGTHS.size : start], packed[start : start + body_length]
            name, entry, holder, deliveries, attempt, operation = head.decode().split(" ", 5)
            taken = Taken(name, operation, entry, holder, int(deliveries))
            results.append(TaskResult(taken, int(attempt), _from_message(wire.LeaseResult.FromString(body))))
            offset = start + body_length
    except (struct.error, DecodeError) as error:
        raise ValueError(f"a letter of results is damaged: {error}") from error
    return results


def pack_attempts(attempts: Sequence[tuple[str, int]]) -> str:
    """Names of tasks and numbers of attempts, as text."""
    return "\n".join(f"{name} {attempt}" for name, attempt in attempts)


def unpack_attempts(packed: str) -> list[tuple[str, int]]:
    """The names and numbers again; what is none is left out."""
    pairs = (line.partition(" ") for line in packed.splitlines())
    return [(name, int(attempt)) for name, _, attempt in pairs if attempt.isdecimal()]


def _to_message(result: JobResult) -> wire.LeaseResult:
    message = wire.LeaseResult()
    if not result.error_code:
        message.completed.values.extend(pb.NamedValue.FromString(value) for value in result.values)
        message.completed.SetInParent()
        return message
    message.failed.error_code, message.failed.error = result.error_code, result.error
    if result.retry_after_seconds is not None:
        set_duration(message.failed.retry_after, result.retry_after_seconds)
    return message


def _from_message(message: wire.LeaseResult) -> JobResult:
    if message.HasField("completed"):
        return JobResult(values=tuple(value.SerializeToString() for value in message.completed.values))
    failed = message.failed
    retry_after_seconds = seconds_of(failed.retry_after) if failed.HasField("retry_after") else None
    return JobResult(failed.error_code, failed.error, retry_after_seconds=retry_after_seconds)
