"""Operations for the tests of the Python front end."""

import asyncio
from collections.abc import Mapping

from sipnap.client.operations import OperationError, Value, operation
from sipnap.v1 import suspension_pb2 as pb


async def directory(arguments: Mapping[str, Value], state: pb.TransactionState) -> Mapping[str, Value]:
    """Answer with what only this call can know: its number and its Call-ID."""
    number = arguments["number"]
    assert isinstance(number, bytes)
    await asyncio.sleep(0.2)
    return {"uri": b"sip:" + number + b"@192.0.2.7", "call_id": state.call_id, "digits": len(number)}


async def fail(arguments: Mapping[str, Value], state: pb.TransactionState) -> Mapping[str, Value]:
    raise OperationError("no_luck", "it does not work")


async def hang(arguments: Mapping[str, Value], state: pb.TransactionState) -> Mapping[str, Value]:
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        print(f"operation cancelled {state.call_id.decode()}", flush=True)
        raise
    return {}


_tries: dict[bytes, int] = {}


@operation(max_attempts=3, backoff_seconds=0.05)
async def flaky(arguments: Mapping[str, Value], state: pb.TransactionState) -> Mapping[str, Value]:
    """Succeed the third time."""
    tries = _tries[state.call_id] = _tries.get(state.call_id, 0) + 1
    if tries < 3:
        raise OperationError("not_yet", "try again", retry_after_seconds=0.05)
    return {"uri": f"sip:try{tries}@192.0.2.7"}


async def enum(arguments: Mapping[str, Value], state: pb.TransactionState) -> Mapping[str, Value]:
    """Stand in for the real one, without DNS."""
    if arguments["number"] == b"+4999":
        return {"found": False}
    return {"found": True, "uri": "sip:bob@192.0.2.9", "uris": ["sip:bob@192.0.2.9"]}


OPERATIONS = {"directory": directory, "enum": enum, "fail": fail, "flaky": flaky, "hang": hang}
