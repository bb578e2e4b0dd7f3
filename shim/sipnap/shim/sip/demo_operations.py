"""The operation that `sipnap demo` calls: what a user would write, and name with ``serve --operations``."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from sipnap.client.operations import OperationError, Value
from sipnap.v1 import suspension_pb2 as pb

LOOKUP_SECONDS = 0.2

_SUBSCRIBERS = {b"4711": "sip:carol@192.0.2.7"}


async def directory(arguments: Mapping[str, Value], state: pb.TransactionState) -> Mapping[str, Value]:
    """Find where a number is registered, as slowly as a database far away would."""
    await asyncio.sleep(LOOKUP_SECONDS)
    number = arguments["number"]
    if not isinstance(number, bytes) or number not in _SUBSCRIBERS:
        raise OperationError("directory_unknown", f"nobody has the number {number!r}")
    return {"uri": _SUBSCRIBERS[number]}


OPERATIONS = {"directory": directory}
