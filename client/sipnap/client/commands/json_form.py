r"""Messages of the contract as the JSON that `--json` prints: for scripts, so with plain names and plain numbers.

It differs from protobuf's own JSON where that is awkward in a script:

- 64-bit numbers are numbers, and a duration is a number of seconds under a name that says so (``delay_seconds``).
- An enum's value is its short name in lower case (``pending``).
- Bytes are text: what is not UTF-8 appears as ``\udc80`` to ``\udcff``, so that Python has the very bytes again with
  ``text.encode("utf-8", "surrogateescape")``.
"""

from __future__ import annotations

from datetime import UTC
from typing import Any, cast

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp


def json_form(message: Message) -> dict[str, Any]:
    """The message as `json.dumps` takes it: every scalar and list, and the messages that are set."""
    members: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        if field.has_presence and not message.HasField(field.name):
            continue
        value = getattr(message, field.name)
        name, kind = field.name, cast(EnumDescriptor | None, field.enum_type)
        if field.message_type is Duration.DESCRIPTOR:
            name += "_seconds"
        members[name] = [_value(kind, item) for item in value] if field.is_repeated else _value(kind, value)
    return members


def short_name(kind: EnumDescriptor, number: int) -> str:
    """An enum's value as people say it: ``pending`` for SUSPENSION_PHASE_PENDING; an unknown one is its number."""
    if number not in kind.values_by_number:
        return str(number)
    # The values' common beginning, up to the zero's UNSPECIFIED: every enum of the contract has one.
    prefix = kind.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return kind.values_by_number[number].name.removeprefix(prefix).lower()


def _value(kind: EnumDescriptor | None, value: Any) -> Any:
    if isinstance(value, Timestamp):
        return value.ToDatetime(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(value, Duration):
        return value.seconds + value.nanos / 1e9
    if isinstance(value, Message):
        return json_form(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return value if kind is None else short_name(kind, value)
