"""The sidecar's timers alone: what a pending nap costs in time and memory, how late naps fire, how long its loop stands
still; beside ``asyncio.call_later`` and beside the list of milliseconds in Kamailio's async module.

Each measurement has a process of its own. The collector is set as the sidecar sets it.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import multiprocessing
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from bench import random_naps, results
from sipnap.client import collector
from sipnap.sidecar.core.engine import Engine
from sipnap.sidecar.core.front_ends import FrontEnd
from sipnap.sidecar.core.suspension import Held, Limits, NapKey, Outcome, Request
from sipnap.sidecar.dispatcher import Dispatcher
from sipnap.sidecar.journal.memory import MemoryJournal

SUMMARY = "the timer heap alone: insertion, memory, lateness; beside asyncio.call_later and Kamailio's list"
SHORT = [
    "--pending", "1000", "20000", "--fires", "2000", "--seconds", "1", "--list-pending", "100", "--list-rate",
    "200",
]  # fmt: skip
LONG = [
    "--pending", "1000", "10000", "100000", "1000000", "--seconds", "10", "--list-pending", "100", "1000",
    "8000", "12000",
]  # fmt: skip

STATE_BYTES = 250
"""Of transaction state in each nap."""

_BATCH = 32
_PROBES = 500
_PROBE_ROUNDS = 20
_WATCH_SECONDS = 0.001
_LEAST_FOR_MEMORY = 10_000  # of fewer naps the process's own ups and downs are a greater part


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--pending", nargs="+", type=int, default=[1_000, 100_000], help="naps pending at once")
    parser.add_argument("--fires", type=int, default=10_000, help="naps fired per second when measuring lateness")
    parser.add_argument("--seconds", type=int, default=3, help="how long lateness is measured")
    parser.add_argument(
        "--list-pending", nargs="*", type=int, default=[100, 1000],
        help="naps of random length pending at once in a real Kamailio; the module's list ends at 10,000",
    )  # fmt: skip
    parser.add_argument("--list-rate", type=int, default=600, help="calls/s while they are")
    results.add_directory_flag(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, show, keep."""
    machine = results.machine()
    sections: dict[str, list[dict[str, Any]]] = {}
    sections["insertion"] = [
        _apart(measure, count) for count in arguments.pending for measure in (_pending, _pending_call_later)
    ]
    print(results.table(sections["insertion"]), flush=True)
    sections["lateness"] = [
        _apart(measure, arguments.fires, arguments.seconds, background)
        for background in (0, max(arguments.pending))
        for measure in (_lateness, _lateness_call_later)
    ]
    print(results.table(sections["lateness"]), flush=True)
    sections["list"] = random_naps.compare(arguments.list_pending, arguments.list_rate)
    if sections["list"]:
        print(results.table(sections["list"]))
    print(results.keep("timers", arguments, machine, sections))
    lines = {
        what: [(row["pending"], row["insert_us"]) for row in sections["insertion"] if row["what"] == what]
        for what in ("sipnap", "asyncio.call_later")
    }
    print(results.plot(arguments.results, "timers", "Inserting a nap", ("naps pending", "µs"), lines))
    return 0


def _apart(measure: Callable[..., dict[str, Any]], *arguments: int) -> dict[str, Any]:
    """What it returns, from a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, arguments)


# Insertion and memory


def _request(number: int, delay_seconds: float) -> Request:
    payload = number.to_bytes(8, "big") * (STATE_BYTES // 8) + b"\0" * (STATE_BYTES % 8)
    return Request(NapKey(1, number, number ^ 0x5BD1E995, 1), "RESUME", delay_seconds, None, payload)


def _set_collector() -> None:
    gc.collect()
    collector.restrain()


def _pending(count: int) -> dict[str, Any]:
    dice = random.Random(count)
    engine = Engine(time.monotonic, Limits(max_delay_seconds=1e6, max_pending=10**9))
    front_end = engine.attach("bench", 1)
    _set_collector()
    before = _resident_bytes()
    _insert(engine, front_end, 0, count, dice)
    memory = _resident_bytes() - before

    def probe(number: int) -> None:
        _insert(engine, front_end, count + number * _PROBES, _PROBES, dice)

    insert_us = _probed(probe)
    beyond = memory / count - (STATE_BYTES + sys.getsizeof(b"")) if count >= _LEAST_FOR_MEMORY else None
    return {"what": "sipnap", "pending": count, "insert_us": insert_us, "bytes_beyond_state": beyond}


def _probed(probe: Callable[[int], None]) -> float:
    """Median cost of one of many insertions, µs."""
    costs = []
    for number in range(_PROBE_ROUNDS):
        started = time.perf_counter()
        probe(number)
        costs.append((time.perf_counter() - started) / _PROBES * 1e6)
    return statistics.median(costs)


def _insert(engine: Engine, front_end: FrontEnd, first: int, count: int, dice: random.Random) -> None:
    for start in range(first, first + count, _BATCH):
        engine.activate(
            [
                engine.reserve(front_end, _request(number, dice.uniform(1000, 100_000)))[0]
                for number in range(start, min(start + _BATCH, first + count))
            ]
        )


def _pending_call_later(count: int) -> dict[str, Any]:
    return asyncio.run(_fill_call_later(count))


async def _fill_call_later(count: int) -> dict[str, Any]:
    """The peer: asyncio's own timers, a handle for each nap, nothing of what a nap has beside its time."""
    loop = asyncio.get_running_loop()
    dice = random.Random(count)
    _set_collector()
    before = _resident_bytes()
    handles = [loop.call_later(dice.uniform(1000, 100_000), _nothing, number) for number in range(count)]
    memory = _resident_bytes() - before

    def probe(number: int) -> None:
        handles.extend(loop.call_later(dice.uniform(1000, 100_000), _nothing, number) for _ in range(_PROBES))

    insert_us = _probed(probe)
    per_nap = memory / count if count >= _LEAST_FOR_MEMORY else None
    return {
        "what": "asyncio.call_later", "pending": count, "insert_us": insert_us, "bytes_beyond_state": per_nap,
    }  # fmt: skip


def _nothing(number: int) -> None:
    del number


def _resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


# Lateness and stalls


class _Watchdog:
    """Comes by every millisecond, and notes the longest time that the loop kept it waiting."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._due_seconds = loop.time()
        self.longest_seconds = 0.0
        self._look()

    def _look(self) -> None:
        now = self._loop.time()
        self.longest_seconds = max(self.longest_seconds, now - self._due_seconds)
        self._due_seconds = now + _WATCH_SECONDS
        self._loop.call_at(self._due_seconds, self._look)

    def read_ms(self) -> float:
        """The longest stall since the last reading, ms."""
        longest, self.longest_seconds = self.longest_seconds, 0.0
        return longest * 1e3


class _Sink:
    """A front end's session that answers for each continue in the loop's next turn."""

    def __init__(self, loop: asyncio.AbstractEventLoop, dispatcher: Dispatcher) -> None:
        self._loop = loop
        self._dispatcher = dispatcher
        self._unanswered: list[Held] = []
        self.front_end: FrontEnd | None = None
        self.late_seconds: list[float] = []

    def send_continues(self, batch: Sequence[Held]) -> None:
        now = self._loop.time()
        self.late_seconds += [now - held.due_seconds for held in batch]
        if not self._unanswered:
            self._loop.call_soon(self._answer)
        self._unanswered += batch

    def _answer(self) -> None:
        answered, self._unanswered = self._unanswered, []
        assert self.front_end is not None
        self._dispatcher.settle(self.front_end, [(held.key, Outcome.APPLIED) for held in answered])

    def send_due(self, numbers: Sequence[int]) -> None: ...

    def supersede(self, reason: str) -> None: ...

    def set_credits(self, max_pending: int) -> None: ...

    def go_away(self, reason: str) -> None: ...


def _lateness(fires_per_second: int, seconds: int, background: int) -> dict[str, Any]:
    return asyncio.run(_fire(fires_per_second, seconds, background))


async def _fire(fires_per_second: int, seconds: int, background: int) -> dict[str, Any]:
    """So many naps pending for long; among them, others come in and fire at a steady rate."""
    loop = asyncio.get_running_loop()
    engine = Engine(loop.time, Limits(max_pending=10**9, max_delay_seconds=1e6))
    dispatcher = Dispatcher(engine, MemoryJournal())
    committer = asyncio.create_task(dispatcher.commit_forever())
    sink = _Sink(loop, dispatcher)
    sink.front_end = await dispatcher.attach("bench", 1, sink)
    _set_collector()
    watchdog = _Watchdog(loop)
    dice = random.Random(1)
    for start in range(0, background, _BATCH):
        numbers = range(start, min(start + _BATCH, background))
        _submit(dispatcher, sink.front_end, [_request(n, dice.uniform(1000, 100_000)) for n in numbers])
        await asyncio.sleep(0)
    fill_stall_ms = watchdog.read_ms()
    per_tick = max(1, fires_per_second // 200)
    number, started = background, loop.time()
    total = fires_per_second * seconds
    while number < background + total:
        numbers = range(number, min(number + per_tick, background + total))
        _submit(dispatcher, sink.front_end, [_request(n, 0.5 + dice.uniform(0, 0.5)) for n in numbers])
        number = numbers.stop
        await asyncio.sleep(max(0.0, started + (number - background) / fires_per_second - loop.time()))
    while len(sink.late_seconds) < total:
        await asyncio.sleep(0.01)
    committer.cancel()
    return {
        "what": "sipnap", "pending": background, "fires_per_second": fires_per_second,
        **results.lateness(value * 1e3 for value in sink.late_seconds),
        "early": sum(1 for value in sink.late_seconds if value < 0),
        "longest_stall_ms": watchdog.read_ms(), "longest_stall_filling_ms": fill_stall_ms,
    }  # fmt: skip


def _submit(dispatcher: Dispatcher, front_end: FrontEnd, requests: list[Request]) -> None:
    dispatcher.submit([dispatcher.engine.reserve(front_end, request)[0] for request in requests], _committed)


def _committed(error: Exception | None) -> None:
    assert error is None, error


def _lateness_call_later(fires_per_second: int, seconds: int, background: int) -> dict[str, Any]:
    return asyncio.run(_fire_call_later(fires_per_second, seconds, background))


async def _fire_call_later(fires_per_second: int, seconds: int, background: int) -> dict[str, Any]:
    """The peer under the same load."""
    loop = asyncio.get_running_loop()
    dice = random.Random(1)
    _set_collector()
    watchdog = _Watchdog(loop)
    handles = []
    for start in range(0, background, _BATCH):
        handles += [loop.call_later(dice.uniform(1000, 100_000), _nothing, start) for _ in range(_BATCH)]
        await asyncio.sleep(0)
    fill_stall_ms = watchdog.read_ms()
    late_seconds: list[float] = []

    def fire(due_seconds: float) -> None:
        late_seconds.append(loop.time() - due_seconds)

    per_tick = max(1, fires_per_second // 200)
    number, started = 0, loop.time()
    total = fires_per_second * seconds
    while number < total:
        for _ in range(min(per_tick, total - number)):
            due_seconds = loop.time() + 0.5 + dice.uniform(0, 0.5)
            loop.call_at(due_seconds, fire, due_seconds)
            number += 1
        await asyncio.sleep(max(0.0, started + number / fires_per_second - loop.time()))
    while len(late_seconds) < total:
        await asyncio.sleep(0.01)
    return {
        "what": "asyncio.call_later", "pending": background, "fires_per_second": fires_per_second,
        **results.lateness(value * 1e3 for value in late_seconds),
        # The loop runs what is due within its clock's resolution (base_events.py: _run_once), a nanosecond here.
        "early": sum(1 for value in late_seconds if value < 0),
        "longest_stall_ms": watchdog.read_ms(), "longest_stall_filling_ms": fill_stall_ms,
    }  # fmt: skip
