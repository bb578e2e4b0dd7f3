"""An operation that leaves a note of each time that it is begun, for tests that count."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping

from sipnap.client.operations import Handler, Operation, Value
from sipnap.v1 import suspension_pb2 as pb

_notes = os.open(os.environ["NOTES"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


async def noted(arguments: Mapping[str, Value], state: pb.TransactionState) -> Mapping[str, Value]:
    """Writes its Call-ID into the file of NOTES, and takes `ms` milliseconds."""
    os.write(_notes, state.call_id + b"\n")  # one write of a short line: lines of several processes do not mix
    ms = arguments.get("ms", 0)
    await asyncio.sleep(ms / 1000 if isinstance(ms, int) else 0)
    return {"call_id": state.call_id}


OPERATIONS: dict[str, Handler | Operation] = {"noted": noted}
