"""Operations for tests: `sipnap serve --operations tests.support.operations`. They keep a diary, if asked."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from sipnap.client.operations import Operation, OperationError, Value, operation
from sipnap.v1 import suspension_pb2 as pb

DIARY = "TEST_DIARY"
"""Environment variable that names a file; each run of an operation adds a line: its ``id`` and what became of it."""

_attempts: dict[bytes, int] = {}


async def echo(arguments: Mapping[str, Value], state: pb.TransactionState) -> Mapping[str, Value]:
    """Returns what it is given, after ``ms`` milliseconds."""
    _note(arguments, "began")
    try:
        await asyncio.sleep(_integer(arguments, "ms") / 1000)
    except asyncio.CancelledError:
        _note(arguments, "cancelled")
        raise
    _note(arguments, "ended")
    return {name: value for name, value in arguments.items() if name != "ms"}


@operation(max_attempts=3, backoff_seconds=0.05)
async def flaky(arguments: Mapping[str, Value], state: pb.TransactionState) -> Mapping[str, Value]:
    """Fails ``failures`` times for each ``id``, then says how often it was tried."""
    identity = arguments["id"]
    assert isinstance(identity, bytes)
    _attempts[identity] = attempt = _attempts.get(identity, 0) + 1
    if attempt <= _integer(arguments, "failures"):
        raise OperationError("busy", f"attempt {attempt}: not now", retry_after_seconds=0.05)
    return {"attempts": attempt}


@operation(timeout_seconds=0.1, max_attempts=2, backoff_seconds=0.01)
async def stuck(arguments: Mapping[str, Value], state: pb.TransactionState) -> Mapping[str, Value]:
    """Never answers."""
    _note(arguments, "began")
    await asyncio.Event().wait()
    return {}


async def big(arguments: Mapping[str, Value], state: pb.TransactionState) -> Mapping[str, Value]:
    """Finds as many bytes as ``size`` says, when a second has begun: many of them at once."""
    await asyncio.sleep(1 - time.time() % 1)
    return {"found": b"x" * _integer(arguments, "size")}


async def leave(arguments: Mapping[str, Value], state: pb.TransactionState) -> Mapping[str, Value]:
    """Ends the process, as somebody might think."""
    sys.exit(3)


async def broken(arguments: Mapping[str, Value], state: pb.TransactionState) -> Mapping[str, Value]:
    """Raises what nobody expects."""
    raise ZeroDivisionError("what nobody expects")


OPERATIONS: dict[str, object] = {
    "echo": echo,
    "flaky": flaky,
    "stuck": stuck,
    "broken": broken,
    "leave": leave,
    "big": big,
}
assert isinstance(flaky, Operation)


def _integer(arguments: Mapping[str, Value], name: str) -> int:
    value = arguments.get(name, 0)
    assert isinstance(value, int)
    return value


def _note(arguments: Mapping[str, Value], what: str) -> None:
    if os.environ.get(DIARY) and "id" in arguments:
        with Path(os.environ[DIARY]).open("a") as diary:  # appended in one write: processes may share it
            identity = arguments["id"]
            assert isinstance(identity, bytes)
            diary.write(f"{identity.decode()} {what}\n")
