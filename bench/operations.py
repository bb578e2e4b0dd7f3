"""What the workers of the benchmarks do: ``--operations bench.operations``."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from sipnap.client.operations import Value
from sipnap.v1 import suspension_pb2 as pb


async def wait(arguments: Mapping[str, Value], state: pb.TransactionState) -> Mapping[str, Value]:
    """Take so many milliseconds, as a slow server would, and give the number back."""
    milliseconds, number = arguments["ms"], arguments["number"]
    assert isinstance(milliseconds, int)
    await asyncio.sleep(milliseconds / 1000)
    return {"number": number}


OPERATIONS = {"wait": wait}
