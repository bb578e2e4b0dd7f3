"""What is sent to the sidecar: the suspensions of calls, and tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sipnap.client.keys import SuspensionKey
from sipnap.client.outstanding import set_duration
from sipnap.v1 import suspension_pb2 as pb

if TYPE_CHECKING:
    from sipnap.shim.sip.call import Call

MOST_OPERATIONS = 8
"""How many operations may run in one nap."""

TASK_NAP_NUMBER = 0
"""What stands in a key for: a task, no nap of a transaction."""

_AT_ONCE_SECONDS = 0.001  # every suspension has a delay; this one is as good as none


def suspension_of(
    call: Call,
    key: SuspensionKey,
    route: str,
    seconds: float,
    deadline_seconds: float,
    operations: Sequence[pb.Operation],
) -> pb.Suspension:
    """A nap of a call.

    Raises:
        ValueError: An AVP has a name that cannot travel, or a number beyond 64 bits.
        TypeError: An AVP has a value that cannot travel.
    """
    request = call.request
    suspension = pb.Suspension(
        key=key.to_message(),
        resume_route=route,
        state=pb.TransactionState(
            method=request.method.encode(),
            request_uri=request.request_uri,
            to=request.to,
            call_id=request.call_id,
            cseq=request.cseq,
            via_branch=request.top_via.branch,
            source_ip=request.source_ip,
            source_port=request.source_port,
        ),
        operations=operations,
    )
    setattr(suspension.state, "from", request.from_)  # a word of the language
    for name, value in call.avps.items():
        if not 0 < len(name) <= 64:
            raise ValueError(f"{name!r} is not the name of an AVP: use 1 to 64 characters")
        if isinstance(value, int):
            suspension.state.avps.add(name=name, integer=value)
        elif isinstance(value, str):
            suspension.state.avps.add(name=name, text=value.encode("utf-8", "surrogateescape"))
        elif isinstance(value, bytes):
            suspension.state.avps.add(name=name, text=value)
        else:
            raise TypeError(f"avps[{name!r}] is a {type(value).__name__}: only str, bytes and int can travel")
    set_duration(suspension.delay, seconds)
    set_duration(suspension.deadline, deadline_seconds)
    return suspension


def task_suspension(
    key: SuspensionKey, route: str, data: bytes | str, seconds: float, operations: Sequence[pb.Operation]
) -> pb.Suspension:
    """A task."""
    suspension = pb.Suspension(
        key=key.to_message(),
        resume_route=route,
        data=data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data,
        operations=operations,
    )
    set_duration(suspension.delay, seconds or _AT_ONCE_SECONDS)
    return suspension


def checked_operations(operations: Sequence[pb.Operation]) -> Sequence[pb.Operation]:
    """The operations themselves.

    Raises:
        ValueError: There are too many for one nap.
    """
    if len(operations) > MOST_OPERATIONS:
        raise ValueError(f"{len(operations)} operations are too many for one nap: at most {MOST_OPERATIONS}")
    return operations
