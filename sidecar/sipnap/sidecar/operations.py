"""Operations: what a worker does while a transaction naps. Found by name, run as coroutines of this process.

An operation is an async function from (arguments, transaction state) to named values. A package offers some through the
entry-point group ``sipnap.operations``; a module named with ``--operations`` through its dictionary ``OPERATIONS``.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata

from sipnap.sidecar.core.groups import Job
from sipnap.v1 import suspension_pb2 as pb

ENTRY_POINT_GROUP = "sipnap.operations"
"""Where packages register operations."""

Scalar = bytes | str | int | bool
"""One value of an operation; `str` is sent as UTF-8, what arrives as text is `bytes`."""

Value = Scalar | list[Scalar]
"""What an operation takes and gives under one name."""

Operation = Callable[[Mapping[str, Value], pb.TransactionState], Awaitable[Mapping[str, Value]]]
"""An operation. Whatever it raises becomes the status FAILED with the exception's text as the error."""

_VALUE_NAME = re.compile(r"[A-Za-z0-9_]{1,64}\Z")

log = logging.getLogger("sipnap.operations")


@dataclass(frozen=True, slots=True)
class Answer:
    """How an operation ended."""

    error: str
    """What went wrong; empty: nothing."""
    values: tuple[bytes, ...] = ()
    """What it found: encoded NamedValue messages."""


class Runner:
    """Runs jobs as tasks. The worker groups decide how many at a time."""

    def __init__(self, operations: Mapping[str, Operation]) -> None:
        self.operations = operations

    def start(self, job: Job, done: Callable[[Job, Answer], None]) -> None:
        """Start a job; `done` is called once, also when it was stopped."""
        task = asyncio.get_running_loop().create_task(self._run(job), name=f"operation {job.operation}")
        job.runner = task
        task.add_done_callback(lambda ended: done(job, Answer("stopped") if ended.cancelled() else ended.result()))

    def stop(self, job: Job) -> None:
        """Cancel a running job; its `done` follows."""
        if isinstance(job.runner, asyncio.Task):
            job.runner.cancel()

    async def _run(self, job: Job) -> Answer:
        suspension = pb.Suspension.FromString(job.held.payload)
        arguments = {argument.name: from_value(argument.value) for argument in suspension.operation.arguments}
        try:
            found = await self.operations[job.operation](arguments, suspension.state)
            return Answer("", tuple(_named_value(name, value).SerializeToString() for name, value in found.items()))
        except Exception as error:  # an operation is somebody else's code: whatever it raises is its answer
            log.info("operation failed name=%s key=%s error=%r", job.operation, job.held.key, error)
            return Answer(f"{type(error).__name__}: {error}")


def load_operations(modules: Iterable[str]) -> dict[str, Operation]:
    """All operations of installed packages and of the named modules; later ones replace earlier ones of a name.

    Raises:
        ValueError: A module is not there or offers no ``OPERATIONS``; the message names it.
    """
    operations: dict[str, Operation] = {
        entry_point.name: entry_point.load() for entry_point in metadata.entry_points(group=ENTRY_POINT_GROUP)
    }
    for name in modules:
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            raise ValueError(f"--operations {name}: cannot be imported: {error}") from error
        offered = getattr(module, "OPERATIONS", None)
        if not isinstance(offered, dict):
            raise ValueError(f"--operations {name}: the module has no dictionary OPERATIONS of name to async function")
        operations.update(offered)
    return operations


def from_value(value: pb.Value) -> Value:
    """A value of the contract as a Python value; text is bytes."""
    kind = value.WhichOneof("kind")
    if kind == "list":
        return [item for entry in value.list.values if not isinstance(item := from_value(entry), list)]
    return b"" if kind is None else getattr(value, kind)


def _named_value(name: str, value: Value) -> pb.NamedValue:
    if not _VALUE_NAME.match(name):
        raise ValueError(f"{name!r} is not a name for a value: expected 1 to 64 of [A-Za-z0-9_]")
    return pb.NamedValue(name=name, value=_to_value(value))


def _to_value(value: Value) -> pb.Value:
    if isinstance(value, bool):
        return pb.Value(boolean=value)
    if isinstance(value, int):
        return pb.Value(integer=value)
    if isinstance(value, str):
        return pb.Value(text=value.encode())
    if isinstance(value, bytes):
        return pb.Value(text=value)
    return pb.Value(list=pb.ValueList(values=[_to_value(item) for item in value]))
