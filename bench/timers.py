"""The sidecar's engine alone: what a pending nap costs in time and memory, and how late timers fire."""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
import resource
import sys
import time
from typing import Any

from bench import results
from sipnap.sidecar.core.engine import Engine
from sipnap.sidecar.core.front_ends import FrontEnd
from sipnap.sidecar.core.suspension import Limits, NapKey, Request
from sipnap.sidecar.dispatcher import Dispatcher
from sipnap.sidecar.journal.memory import MemoryJournal
from sipnap.sidecar.operations import Runner

SUMMARY = "the timer heap alone: insertion, memory, lateness; beside asyncio.call_later"

STATE_BYTES = 250
_BATCH = 32


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--pending", nargs="+", type=int, default=[1_000, 100_000], help="naps pending at once")
    parser.add_argument("--fires", type=int, default=10_000, help="naps fired per second when measuring lateness")
    parser.add_argument("--seconds", type=int, default=3, help="how long lateness is measured")


def run(arguments: argparse.Namespace) -> int:
    """Measure, show, keep."""
    rows = [_pending(count) for count in arguments.pending]
    print(results.table(rows))
    late = asyncio.run(_lateness(arguments.fires, arguments.seconds))
    print(results.table([late]))
    peer = asyncio.run(_call_later(max(arguments.pending)))
    print(results.table([peer]))
    settings = {key: value for key, value in vars(arguments).items() if key != "run"}
    print(results.keep("timers", rows, [late, peer], settings))
    lines = {"insert": [(row["pending"], row["insert_us"]) for row in rows]}
    print(results.plot("timers", "Inserting a nap", "naps pending", "µs", lines))
    return 0


def _request(number: int, delay_seconds: float, payload: bytes) -> Request:
    return Request(NapKey(1, number, number ^ 0x5BD1E995, 1), "RESUME", delay_seconds, None, payload)


def _pending(count: int) -> dict[str, Any]:
    """Insertion with so many pending, memory of each beyond its state, the longest stall of a collection."""
    dice = random.Random(count)
    engine = Engine(time.monotonic, Limits(max_delay_seconds=1e6, max_pending=10**9))
    front_end = engine.attach("bench", 1)
    gc.collect()
    gc.freeze()
    before = _resident_bytes()
    _insert(engine, front_end, 0, count, dice)
    gc.freeze()
    memory = _resident_bytes() - before
    probes = 2000
    started = time.perf_counter()
    _insert(engine, front_end, count, probes, dice)
    insert_us = (time.perf_counter() - started) / probes * 1e6
    started = time.perf_counter()
    gc.collect()
    stall_ms = (time.perf_counter() - started) * 1e3
    gc.unfreeze()
    per_nap = memory / count - (STATE_BYTES + sys.getsizeof(b""))
    return {"pending": count, "insert_us": insert_us, "bytes_beyond_state": per_nap, "collection_ms": stall_ms}


def _insert(engine: Engine, front_end: FrontEnd, first: int, count: int, dice: random.Random) -> None:
    for start in range(first, first + count, _BATCH):
        batch = []
        for number in range(start, min(start + _BATCH, first + count)):
            payload = number.to_bytes(8, "big") * (STATE_BYTES // 8) + b"\0" * (STATE_BYTES % 8)
            batch.append(engine.reserve(front_end, _request(number, dice.uniform(1000, 100_000), payload))[0])
        engine.activate(batch)


class _Sink:
    """A session that only counts."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.late_seconds: list[float] = []

    def send_continue(self, held: Any) -> None:
        self.late_seconds.append(self._loop.time() - held.due_seconds)

    def supersede(self, reason: str) -> None: ...

    def set_credits(self, max_pending: int) -> None: ...

    def go_away(self, reason: str) -> None: ...


async def _lateness(fires_per_second: int, seconds: int) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    engine = Engine(loop.time, Limits(max_pending=10**9))
    dispatcher = Dispatcher(engine, MemoryJournal(), Runner({}))
    committer = asyncio.create_task(dispatcher.commit_forever())
    sink = _Sink(loop)
    front_end = engine.attach("bench", 1)
    dispatcher._connections[front_end] = sink
    dice = random.Random(1)
    total = fires_per_second * seconds
    batch = [
        engine.reserve(front_end, _request(n, 0.5 + dice.uniform(0, seconds), b"s" * STATE_BYTES))[0]
        for n in range(total)
    ]
    dispatcher.submit(batch, lambda error: None)
    gc.freeze()
    while len(sink.late_seconds) < total:
        await asyncio.sleep(0.05)
    committer.cancel()
    late = sorted(value * 1e3 for value in sink.late_seconds)
    return {
        "fires_per_second": fires_per_second,
        "early": sum(1 for value in late if value < 0),
        **{f"late_p{str(p).replace('.', '')}_ms": results.percentile(late, p) for p in (50, 90, 99, 99.9)},
    }


async def _call_later(count: int) -> dict[str, Any]:
    """The peer: asyncio's own timers, a handle for each nap."""
    loop = asyncio.get_running_loop()
    dice = random.Random(count)
    gc.collect()
    gc.freeze()
    before = _resident_bytes()
    handles = [loop.call_later(dice.uniform(1000, 100_000), _nothing, number) for number in range(count)]
    memory = _resident_bytes() - before
    started = time.perf_counter()
    handles += [loop.call_later(dice.uniform(1000, 100_000), _nothing, number) for number in range(2000)]
    insert_us = (time.perf_counter() - started) / 2000 * 1e6
    for handle in handles:
        handle.cancel()
    gc.unfreeze()
    return {"peer": "asyncio.call_later", "pending": count, "insert_us": insert_us, "bytes": memory / count}


def _nothing(number: int) -> None:
    del number


def _resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()
