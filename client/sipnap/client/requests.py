"""The contract's requests from plain Python values; shared by the asyncio and the blocking client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sipnap.client.keys import SuspensionKey
from sipnap.client.outstanding import set_duration
from sipnap.v1 import nap_service_pb2 as nap
from sipnap.v1 import suspension_pb2 as pb

PAGE_SIZE = 1000
"""Suspensions fetched per RPC when listing."""


def sleep_request(seconds: float) -> nap.SleepRequest:
    """A SleepRequest for so many seconds."""
    request = nap.SleepRequest()
    set_duration(request.duration, _checked_seconds(seconds))
    return request


def suspend_route_request(
    key: SuspensionKey,
    route: str,
    seconds: float,
    deadline_seconds: float | None,
    state: pb.TransactionState | None,
    avps: Mapping[str, str | bytes | int] | None,
    operations: Sequence[pb.Operation],
    late_policy: pb.LatePolicy,
) -> nap.SuspendRouteRequest:
    """A SuspendRouteRequest from its parts; see `sipnap.client.aio.Client.suspend_route`."""
    suspension = pb.Suspension(
        key=key.to_message(), resume_route=route, state=state, operations=operations, late_policy=late_policy
    )
    set_duration(suspension.delay, _checked_seconds(seconds))
    if deadline_seconds is not None:
        set_duration(suspension.deadline, _checked_seconds(deadline_seconds))
    for name, value in (avps or {}).items():
        if isinstance(value, int):
            suspension.state.avps.append(pb.Avp(name=name, integer=value))
        else:
            text = value.encode() if isinstance(value, str) else value
            suspension.state.avps.append(pb.Avp(name=name, text=text))
    return nap.SuspendRouteRequest(suspension=suspension)


def run_task_request(
    front_end_id: str, route: str, data: bytes | str, seconds: float, operations: Sequence[pb.Operation]
) -> nap.RunTaskRequest:
    """A RunTaskRequest from its parts; see `sipnap.client.aio.Client.run_task`."""
    request = nap.RunTaskRequest(
        front_end_id=front_end_id,
        route=route,
        data=data.encode() if isinstance(data, str) else data,
        operations=operations,
    )
    if _checked_seconds(seconds):
        set_duration(request.delay, seconds)
    return request


def _checked_seconds(seconds: float) -> float:
    if not 0 <= seconds < 1e9:  # NaN fails this too; a Duration holds no such thing
        raise ValueError(f"{seconds!r} is not a time in seconds")
    return seconds
