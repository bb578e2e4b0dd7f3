"""Operations: what a worker does while a transaction naps, in the sidecar or in a remote worker.

An operation is an async function from (arguments, transaction state) to named values. A package offers some through the
entry-point group ``sipnap.operations``; a module named with ``--operations`` through its dictionary ``OPERATIONS``.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata

from sipnap.client.outstanding import set_duration
from sipnap.v1 import suspension_pb2 as pb

ENTRY_POINT_GROUP = "sipnap.operations"
"""Where packages register operations."""

PASS = "pass"
"""The operation that is always there: it finds nothing. What it does is to wait for a free worker of a group."""

MOST_ATTEMPTS = 10
"""Upper bound of ``max_attempts``, here and in the contract."""

Scalar = bytes | str | int | bool
"""One value of an operation; `str` is sent as UTF-8, what arrives as text is `bytes`."""

Value = Scalar | list[Scalar]
"""What an operation takes and gives under one name."""

Argument = Scalar | Sequence[Scalar]
"""What may be given to an operation under one name; a sequence arrives as a list."""

Handler = Callable[[Mapping[str, Value], pb.TransactionState], Awaitable[Mapping[str, Value]]]
"""The function itself. It is cancelled when nobody waits for it any more."""

_VALUE_NAME = re.compile(r"[A-Za-z0-9_]{1,64}\Z")
_VALUE_PREFIX = re.compile(r"[A-Za-z0-9_]{0,32}\Z")
_ERROR_CODE = re.compile(r"[a-z0-9_]{1,64}\Z")
_NO_CODE_CHARACTER = re.compile(r"[^a-z0-9]+")
_LONGEST_ERROR_CHARACTERS = 400
_LONGEST_SECONDS = 1e9


class OperationError(Exception):
    """An operation could not do it: the nap ends as FAILED, or it is tried again."""

    def __init__(self, code: str, text: str, *, retry_after_seconds: float | None = None) -> None:
        """Say what went wrong.

        Args:
            code: For scripts (Kamailio: ``$avp(sipnap_error_code)``): 1 to 64 characters of ``[a-z0-9_]``.
            text: For people.
            retry_after_seconds: Another attempt after so long may do better, if the policy has one left; None: it
                will not.

        Raises:
            ValueError: The code is malformed.
        """
        if not _ERROR_CODE.match(code):
            raise ValueError(f"{code!r} is not an error code: expected 1 to 64 of [a-z0-9_]")
        super().__init__(text)
        self.code = code
        self.text = text[:_LONGEST_ERROR_CHARACTERS]
        self.retry_after_seconds = retry_after_seconds


@dataclass(frozen=True, slots=True)
class Operation:
    """A handler and its policy. A plain function stands for one with this policy."""

    handler: Handler
    """What runs."""
    timeout_seconds: float | None = None
    """Most that one attempt may take; None: the nap's own time."""
    max_attempts: int = 1
    """How often it is tried at most, 1 to 10."""
    backoff_seconds: float = 0.1
    """Pause before the second attempt, doubled for each one more; an error's own ``retry_after_seconds`` goes first."""


def operation(
    *, timeout_seconds: float | None = None, max_attempts: int = 1, backoff_seconds: float = 0.1
) -> Callable[[Handler], Operation]:
    """Decorate an async function with a policy; see `Operation` for the arguments.

    Raises:
        ValueError: One of them is out of its range.
    """
    if not 1 <= max_attempts <= MOST_ATTEMPTS:
        raise ValueError(f"max_attempts is {max_attempts}, expected 1 to {MOST_ATTEMPTS}")
    if backoff_seconds < 0 or (timeout_seconds is not None and timeout_seconds <= 0):
        raise ValueError("timeout_seconds has to be more than 0, backoff_seconds not less")
    return lambda handler: Operation(handler, timeout_seconds, max_attempts, backoff_seconds)


def load_operations(modules: Iterable[str]) -> dict[str, Operation]:
    """`PASS`, all operations of installed packages and of the named modules; later ones replace earlier ones of a name.

    Raises:
        ValueError: A module is not there or offers no ``OPERATIONS``; the message names it.
    """
    offered: dict[str, object] = {PASS: _pass}
    offered |= {entry_point.name: entry_point.load() for entry_point in metadata.entry_points(group=ENTRY_POINT_GROUP)}
    for name in modules:
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            raise ValueError(f"--operations {name}: cannot be imported: {error}") from error
        of_module = getattr(module, "OPERATIONS", None)
        if not isinstance(of_module, dict):
            raise ValueError(f"--operations {name}: the module has no dictionary OPERATIONS of name to async function")
        offered.update(of_module)
    return {name: _as_operation(name, candidate) for name, candidate in offered.items()}


async def _pass(arguments: Mapping[str, Value], state: pb.TransactionState) -> Mapping[str, Value]:
    return {}


def _as_operation(name: str, candidate: object) -> Operation:
    if isinstance(candidate, Operation):
        return candidate
    if not callable(candidate):
        raise ValueError(f"operation {name!r} is {candidate!r}, expected an async function")
    return Operation(candidate)


def error_of(error: Exception) -> OperationError:
    """What a handler raised as what it means: anything but an `OperationError` gets its class's name as the code."""
    if isinstance(error, OperationError):
        return error
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(error).__name__).lower()
    code = _NO_CODE_CHARACTER.sub("_", words).strip("_")[:64]
    return OperationError(code or "error", f"{type(error).__name__}: {error}")


def arguments_of(named_values: Iterable[pb.NamedValue]) -> dict[str, Value]:
    """What a handler is given, from the wire."""
    return {named.name: from_value(named.value) for named in named_values}


def named_values(found: Mapping[str, Value], prefix: str = "") -> list[pb.NamedValue]:
    """What a handler found, for the wire.

    Raises:
        OperationError: It is nothing that can be sent (code "bad_result").
    """
    try:
        return [pb.NamedValue(name=_value_name(prefix + name), value=_to_value(value)) for name, value in found.items()]
    except (AttributeError, TypeError, ValueError) as error:
        raise OperationError("bad_result", f"the operation returned what cannot be sent: {error}") from error


def from_value(value: pb.Value) -> Value:
    """A value of the contract as a Python value; text is bytes."""
    kind = value.WhichOneof("kind")
    if kind == "list":
        return [item for entry in value.list.values if not isinstance(item := from_value(entry), list)]
    return b"" if kind is None else getattr(value, kind)


def _value_name(name: str) -> str:
    if not _VALUE_NAME.match(name):
        raise ValueError(f"{name!r} is not a name for a value: expected 1 to 64 of [A-Za-z0-9_]")
    return name


def _to_value(value: Argument) -> pb.Value:
    if isinstance(value, list | tuple):
        return pb.Value(list=pb.ValueList(values=[_to_scalar(item) for item in value]))
    return _to_scalar(value)


def _to_scalar(value: object) -> pb.Value:
    if isinstance(value, bool):
        return pb.Value(boolean=value)
    if isinstance(value, int):
        return pb.Value(integer=value)
    if isinstance(value, str):
        return pb.Value(text=value.encode("utf-8", "surrogateescape"))  # bytes that SIP sent stay what they are
    if isinstance(value, bytes):
        return pb.Value(text=value)
    raise TypeError(f"a {type(value).__name__} is no text, integer or boolean, and no list of such")


def operation_message(
    name: str,
    arguments: Mapping[str, Argument] | None = None,
    *,
    group: str = "",
    prefix: str = "",
    timeout_seconds: float | None = None,
    max_attempts: int = 0,
) -> pb.Operation:
    """An operation to ask for, from plain Python values; several of them may go into one suspension.

    Args:
        name: Name under which the sidecar knows it.
        arguments: What it is given, by name: 1 to 64 characters of ``[A-Za-z0-9_]`` each.
        group: Worker group that runs it; empty: ``default``.
        prefix: Put before the name of each value that it finds, so that several do not collide: at most 32 characters
            of ``[A-Za-z0-9_]``.
        timeout_seconds: Most that one attempt may take; None: what the operation itself says.
        max_attempts: How often it is tried at most, 1 to 10; 0: what the operation itself says.

    Raises:
        ValueError: One of them is malformed, or an argument is nothing that can be sent.
    """
    if not _VALUE_PREFIX.match(prefix):
        raise ValueError(f"{prefix!r} is not a prefix: expected at most 32 of [A-Za-z0-9_]")
    if not 0 <= max_attempts <= MOST_ATTEMPTS:
        raise ValueError(f"max_attempts is {max_attempts}, expected 0 to {MOST_ATTEMPTS}")
    message = pb.Operation(name=name, group=group, prefix=prefix, max_attempts=max_attempts)
    for argument, value in (arguments or {}).items():
        try:
            message.arguments.add(name=_value_name(argument), value=_to_value(value))
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"argument {argument!r} of operation {name!r} cannot be sent: {error}") from error
    if timeout_seconds is not None:
        if not 0 < timeout_seconds < _LONGEST_SECONDS:
            raise ValueError(f"timeout_seconds is {timeout_seconds!r}, expected more than 0")
        set_duration(message.timeout, timeout_seconds)
    return message
