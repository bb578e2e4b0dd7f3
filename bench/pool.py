"""The worker pool: a group that is given other numbers of workers while operations come in at one rate; remote workers.

Each operation is given a number and has to give it back, once: what is lost, comes twice or comes mixed up is counted.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from bench import results
from sipnap.client import FrontEndSession, aio, key_of
from sipnap.v1 import suspension_pb2 as pb
from tests.support.processes import Process, Sidecar, sipnap

SUMMARY = "a worker group resized under load, and remote workers added"
SHORT = ["--phase-seconds", "1.5", "--remote-seconds", "1", "--remote-workers", "1", "2"]
LONG = ["--phase-seconds", "10", "--remote-seconds", "6", "--remote-workers", "1", "2", "4", "8"]

_GROUP = "lookups"
_TICK_SECONDS = 0.01
_SAMPLE_SECONDS = 0.2
_BIN_SECONDS = 0.5
_NAP_SECONDS = 90
_DRAIN_SECONDS = 60.0


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "--workers", nargs="+", type=int, default=[1, 64, 1, 16], help="of the group, one after another"
    )
    parser.add_argument("--phase-seconds", type=float, default=8.0, help="how long it has each of them")
    parser.add_argument("--rate", type=int, default=60, help="operations asked for per second")
    parser.add_argument("--operation-ms", type=int, default=200, help="how long one takes")
    parser.add_argument("--remote-workers", nargs="*", type=int, default=[1, 2, 4], help="remote worker processes")
    parser.add_argument("--remote-ms", type=int, default=50, help="how long an operation takes there")
    parser.add_argument("--remote-seconds", type=float, default=4.0, help="how long each number of them is measured")
    parser.add_argument("--concurrency", type=int, default=16, help="operations at once in each remote worker")
    results.add_directory_flag(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, show, keep; fails if an operation was lost, or ended twice, or with another's answer."""
    machine = results.machine()
    sections, lines = asyncio.run(_resize(arguments))
    print(results.table(sections["phases"]))
    print(results.table(sections["total"]))
    sections["remote"] = asyncio.run(_remote(arguments))
    if sections["remote"]:
        print(results.table(sections["remote"]))
    print(results.keep("pool", arguments, machine, sections))
    axes = ("seconds", "operations/s, workers")
    title = f"A group resized under {arguments.rate} operations/s of {arguments.operation_ms} ms"
    print(results.plot(arguments.results, "pool", title, axes, lines, second=["waiting (right)"]))
    total = sections["total"][0]
    return 1 if total["lost"] or total["twice"] or total["failed"] else 0


@dataclass(slots=True)
class _Asked:
    """What was asked for, and what came of it."""

    milliseconds: int
    """Of each operation."""
    epoch: int = field(default_factory=time.time_ns)
    """The front end's."""
    count: int = 0
    """Operations asked for; they are numbered from 0."""
    answers: Counter[int] = field(default_factory=Counter)
    """How often each was answered."""
    failed: int = 0
    """Answers that were not OK, or another's."""
    ended: list[float] = field(default_factory=list)
    """When each answer came, monotonic."""

    def ask(self, session: FrontEndSession) -> None:
        """Ask for another one."""
        suspension = pb.Suspension(resume_route="R")
        key = suspension.key
        key.boot_epoch, key.transaction_index, key.nap_number = self.epoch, self.count, 1
        suspension.delay.seconds = _NAP_SECONDS
        operation = suspension.operations.add(name="wait", group=_GROUP)
        for name, value in (("ms", self.milliseconds), ("number", self.count)):
            operation.arguments.add(name=name).value.integer = value
        self.count += 1
        session.suspend(suspension)

    async def collect(self, session: FrontEndSession) -> None:
        """Take answers, for ever."""
        async for continues in session.batches():
            now = time.monotonic()
            for order in continues:
                number = order.key.transaction_index
                found = [value.value.integer for value in order.values if value.name == "number"]
                self.answers[number] += 1
                self.ended.append(now)
                if order.status != pb.CONTINUE_STATUS_OK or found != [number]:
                    self.failed += 1
                session.answer(key_of(order.key), pb.CONTINUE_OUTCOME_APPLIED)

    def total(self) -> dict[str, int]:
        """What became of all."""
        return {
            "asked": self.count,
            "once": sum(1 for count in self.answers.values() if count == 1),
            "lost": self.count - len(self.answers),
            "twice": sum(1 for count in self.answers.values() if count > 1),
            "failed": self.failed,
        }


def _sidecar(kind: str, workers: int) -> Sidecar:
    group = f"name={_GROUP},kind={kind},queue=100000" + (f",workers={workers}" if kind != "remote" else "")
    return Sidecar("--group", group, "--operations", "bench.operations")


# A group that is resized


async def _resize(
    arguments: argparse.Namespace,
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, list[tuple[float, float]]]]:
    asked = _Asked(arguments.operation_ms)
    with _sidecar("async", arguments.workers[0]) as sidecar:
        async with (
            aio.Client(sidecar.target) as client,
            FrontEndSession([sidecar.target], front_end_id="pool", boot_epoch=asked.epoch) as session,
        ):
            await session.wait_connected(10)
            collector = asyncio.create_task(asked.collect(session))
            started = time.monotonic()
            end = started + arguments.phase_seconds * len(arguments.workers)
            asker = asyncio.create_task(_ask_steadily(asked, session, arguments.rate, end))
            samples: list[tuple[float, int, int]] = []
            sampler = asyncio.create_task(_sample(client, started, samples))
            for number, workers in enumerate(arguments.workers):
                if number:
                    await client.set_workers(_GROUP, workers)
                await asyncio.sleep(started + (number + 1) * arguments.phase_seconds - time.monotonic())
            await asker
            await _drained(asked)
            sampler.cancel()
            collector.cancel()
    ended = [moment - started for moment in asked.ended]
    phases = []
    for number, workers in enumerate(arguments.workers):
        first, last = number * arguments.phase_seconds, (number + 1) * arguments.phase_seconds
        done = sum(1 for moment in ended if first <= moment < last)
        queued = [count for moment, count, _ in samples if first <= moment < last]
        phases.append(
            {
                "workers": workers,
                "seconds": arguments.phase_seconds,
                "done_per_second": done / arguments.phase_seconds,
                "most_queued": max(queued, default=0),
            }
        )
    bins = Counter(int(moment / _BIN_SECONDS) for moment in ended)
    lines = {
        "done per second": [
            ((place + 0.5) * _BIN_SECONDS, bins[place] / _BIN_SECONDS)
            for place in range(int(max(ended) / _BIN_SECONDS) + 1)
        ],
        "workers": [(moment, float(workers)) for moment, _, workers in samples],
        "waiting (right)": [(moment, float(queued)) for moment, queued, _ in samples],
    }
    raw = [{"seconds": moment, "queued": queued, "workers": workers} for moment, queued, workers in samples]
    return {"phases": phases, "total": [asked.total()], "raw": raw}, lines


async def _ask_steadily(asked: _Asked, session: FrontEndSession, rate: float, end: float) -> None:
    started = time.monotonic()
    while (now := time.monotonic()) < end:
        while asked.count < (now - started) * rate:
            asked.ask(session)
        await asyncio.sleep(_TICK_SECONDS)


async def _sample(client: aio.Client, started: float, samples: list[tuple[float, int, int]]) -> None:
    while True:
        status = await client.status()
        group = next(group for group in status.worker_groups if group.name == _GROUP)
        samples.append((time.monotonic() - started, group.queued, group.workers))
        await asyncio.sleep(_SAMPLE_SECONDS)


async def _drained(asked: _Asked) -> None:
    """Wait until all are answered, or for too long; then a little, so that a second answer would be seen."""
    end = time.monotonic() + _DRAIN_SECONDS
    while len(asked.answers) < asked.count and time.monotonic() < end:
        await asyncio.sleep(_TICK_SECONDS)
    await asyncio.sleep(0.3)


# Remote workers


async def _remote(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """As many operations asked for as the workers can take, and some more; what is done per second."""
    rows: list[dict[str, Any]] = []
    for workers in arguments.remote_workers:
        with ExitStack() as stack:
            sidecar = stack.enter_context(_sidecar("remote", 0))
            helpers: list[Process] = [sidecar]
            for number in range(workers):
                command = sipnap(
                    "worker", "--sidecar", sidecar.target, "--group", _GROUP, "--operations", "bench.operations",
                    "--concurrency", str(arguments.concurrency), "--worker-id", f"bench-{number}",
                )  # fmt: skip
                helpers.append(stack.enter_context(Process(f"worker-{number}", command, ready="^sipnap worker: ready")))
            row = await _saturated(sidecar, helpers, workers * arguments.concurrency, arguments)
            ratio = row["per_second"] / rows[0]["per_second"] if rows else 1.0
            rows.append({"workers": workers, "concurrency": arguments.concurrency, **row, "ratio": ratio})
    return rows


async def _saturated(
    sidecar: Sidecar, helpers: list[Process], slots: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    asked = _Asked(arguments.remote_ms)
    async with FrontEndSession([sidecar.target], front_end_id="pool", boot_epoch=asked.epoch) as session:
        await session.wait_connected(10)
        collector = asyncio.create_task(asked.collect(session))
        started = time.monotonic()
        warm_seconds = min(1.0, arguments.remote_seconds / 4)
        end = started + warm_seconds + arguments.remote_seconds
        before = 0.0
        while (now := time.monotonic()) < end:
            while asked.count - len(asked.answers) < slots * 3:  # some always wait
                asked.ask(session)
            if not before and now - started > warm_seconds:
                before = sum(helper.cpu_seconds() for helper in helpers)
            await asyncio.sleep(_TICK_SECONDS)
        used = sum(helper.cpu_seconds() for helper in helpers) - before
        done = sum(1 for moment in asked.ended if started + warm_seconds <= moment < end)
        await _drained(asked)
        collector.cancel()
    total = asked.total()
    return {
        "per_second": done / arguments.remote_seconds,
        "cpu_us": used / max(1, done) * 1e6,
        "failed": total["failed"] + total["lost"] + total["twice"],
    }
