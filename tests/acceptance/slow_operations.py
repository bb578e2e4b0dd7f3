"""Operations of the acceptance tests' own; ``sipnap serve --operations tests.acceptance.slow_operations``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from sipnap.client.operations import Operation, OperationError, Value
from sipnap.v1 import suspension_pb2 as pb


async def find(arguments: Mapping[str, Value], state: pb.TransactionState) -> Mapping[str, Value]:
    """After 200 ms what `tests.support.http_server` says of a number, and whose Call-ID it was."""
    await asyncio.sleep(0.2)
    number = arguments["number"]
    assert isinstance(number, bytes)
    decision = 302 if number[-1:] in b"02468" else 404
    return {"number": number, "decision": decision, "uri": b"sip:%s@127.0.0.1" % number, "call_id": state.call_id}


async def spoil(arguments: Mapping[str, Value], state: pb.TransactionState) -> Mapping[str, Value]:
    """What must do no harm to the proxy, by the number asked for."""
    match arguments.get("number"):
        case b"large":
            return {"found": b"x" * 40_000}
        case b"many":
            return {f"v{number}": number for number in range(1000)}
        case b"slow":
            await asyncio.sleep(60)
        case b"raise":
            raise RuntimeError("of its own")
    raise OperationError("spoiled", 'it is "spoiled"\r\nX-Injected: yes, $ru\x00')


async def compute(arguments: Mapping[str, Value], state: pb.TransactionState) -> Mapping[str, Value]:
    """Keep a CPU busy for a moment, and a worker for longer."""
    until = time.process_time() + 0.001
    while time.process_time() < until:
        pass
    await asyncio.sleep(0.008)
    number = arguments["number"]
    assert isinstance(number, bytes)
    return {"number": number, "decision": 302, "uri": b"sip:%s@127.0.0.1" % number}


OPERATIONS = {
    "find": find,
    "spoil": spoil,
    "compute": Operation(compute, max_attempts=3),
    "compute_once": compute,
}
