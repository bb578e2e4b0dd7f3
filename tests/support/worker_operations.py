"""Operations for tests of workers: what they do is up to their arguments."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Mapping

from sipnap.client.operations import Handler, Operation, OperationError, Value, operation
from sipnap.v1 import suspension_pb2 as pb

_EXTRA_SECONDS = int(os.environ.get("WORKER_EXTRA_MS", "0")) / 1000  # makes a slow worker


async def echo(arguments: Mapping[str, Value], state: pb.TransactionState) -> Mapping[str, Value]:
    """Gives back its arguments, who it is, and the Call-ID; after `ms` milliseconds. Says so first, if it is to."""
    if "say" in arguments:
        print("echo has begun", flush=True)
    await asyncio.sleep(_number(arguments, "ms") / 1000 + _EXTRA_SECONDS)
    return {**arguments, "pid": os.getpid(), "call_id": state.call_id}


async def spin(arguments: Mapping[str, Value], state: pb.TransactionState) -> Mapping[str, Value]:
    """Computes for `ms` milliseconds without a pause."""
    end_seconds = time.monotonic() + _number(arguments, "ms") / 1000
    while time.monotonic() < end_seconds:
        pass
    return {**arguments, "pid": os.getpid()}


async def hang(arguments: Mapping[str, Value], state: pb.TransactionState) -> Mapping[str, Value]:
    """Blocks its thread, and heeds nothing."""
    time.sleep(60)  # noqa: ASYNC251 - that is the point
    return {}


async def die(arguments: Mapping[str, Value], state: pb.TransactionState) -> Mapping[str, Value]:
    """Takes its process with it."""
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


async def fail(arguments: Mapping[str, Value], state: pb.TransactionState) -> Mapping[str, Value]:
    """Cannot do it; wants to try again after `retry_ms`, if that is given."""
    retry_after_seconds = _number(arguments, "retry_ms") / 1000 if "retry_ms" in arguments else None
    raise OperationError("no_luck", "it cannot be done", retry_after_seconds=retry_after_seconds)


@operation(timeout_seconds=0.1)
async def too_slow(arguments: Mapping[str, Value], state: pb.TransactionState) -> Mapping[str, Value]:
    """Takes longer than it may."""
    await asyncio.sleep(30)
    return {}


async def odd(arguments: Mapping[str, Value], state: pb.TransactionState) -> Mapping[str, Value]:
    """Finds what is no value."""
    return {"odd": object()}  # type: ignore[dict-item]  # that is the point


async def leave(arguments: Mapping[str, Value], state: pb.TransactionState) -> Mapping[str, Value]:
    """Calls sys.exit."""
    raise SystemExit(3)


def _number(arguments: Mapping[str, Value], name: str) -> int:
    value = arguments.get(name, 0)
    return value if isinstance(value, int) else 0


OPERATIONS: dict[str, Handler | Operation] = {
    "echo": echo,
    "spin": spin,
    "hang": hang,
    "die": die,
    "fail": fail,
    "too_slow": too_slow,
    "odd": odd,
    "leave": leave,
}
