"""The RPCs alone, client and sidecar on this machine: unary calls, and whole naps over a Session."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import results
from sipnap.client import FrontEndSession, SuspensionKey, aio, key_of
from sipnap.v1 import suspension_pb2 as pb
from tests.support.processes import Sidecar

SUMMARY = "unary calls, and cycles of suspend, fire, continue and acknowledge over a Session"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--journals", nargs="+", default=["memory", "normal", "full"], help="memory, or SQLite's sync")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32, 128], help="naps in flight together")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each is measured")


def run(arguments: argparse.Namespace) -> int:
    """Measure, show, keep."""
    rows = asyncio.run(_measure(arguments))
    print(results.table(rows))
    settings = {key: value for key, value in vars(arguments).items() if key != "run"}
    print(results.keep("rpc", rows, rows, settings))
    lines = {
        journal: [(row["batch"], row["per_second"]) for row in rows if row["journal"] == journal and row["batch"]]
        for journal in arguments.journals
    }
    print(results.plot("rpc", "Naps over a Session", "naps in a batch", "cycles/s", lines))
    return 0


async def _measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """In one event loop: grpc.aio does not like to be moved to another."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="sipnap-bench-") as directory:
        for number, journal in enumerate(arguments.journals):
            flags = (
                ["--journal", "memory"]
                if journal == "memory"
                else ["--journal", f"sqlite:{Path(directory) / str(number)}", "--journal-sync", journal]
            )
            with Sidecar(*flags) as sidecar:
                rows.append({"journal": journal, **await _unary(sidecar, arguments.seconds)})
                rows += [
                    {"journal": journal, **await _cycles(sidecar, batch, arguments.seconds)}
                    for batch in arguments.batches
                ]
    return rows


async def _unary(sidecar: Sidecar, seconds: float) -> dict[str, Any]:
    numbers = itertools.count()
    async with (
        aio.Client(sidecar.target) as client,
        FrontEndSession([sidecar.target], front_end_id="unary", boot_epoch=time.time_ns()) as session,
    ):
        await session.wait_connected(10)
        end = time.monotonic() + seconds

        async def caller() -> int:
            done = 0
            while time.monotonic() < end:
                await client.suspend_route(SuspensionKey("unary", 0, next(numbers), 1, 1), "R", 90)
                done += 1
            return done

        meter = _Meter(sidecar)
        done = sum(await asyncio.gather(*(caller() for _ in range(16))))
        return {"what": "SuspendRoute", "batch": None, **meter.read(done)}


async def _cycles(sidecar: Sidecar, batch: int, seconds: float) -> dict[str, Any]:
    """Batches of naps of 1 ms, each batch sent when the one before has come back, as many batches at once as keep both
    sides busy.
    """
    epoch = time.time_ns()
    numbers = itertools.count()
    async with FrontEndSession([sidecar.target], front_end_id="cycles", boot_epoch=epoch) as session:
        await session.wait_connected(10)

        def send(count: int) -> None:
            for number in itertools.islice(numbers, count):
                suspension = pb.Suspension(resume_route="R")
                key = suspension.key
                key.boot_epoch, key.transaction_index, key.nap_number = epoch, number, 1
                suspension.delay.nanos = 1_000_000
                suspension.state.call_id = b"c" * 250
                session.suspend(suspension)

        in_flight = batch * 16
        meter = _Meter(sidecar)
        end = time.monotonic() + seconds
        send(in_flight)
        done = waiting = 0
        async for continues in session.batches():
            for order in continues:
                session.answer(key_of(order.key), pb.CONTINUE_OUTCOME_APPLIED)
            done += len(continues)
            waiting += len(continues)
            if time.monotonic() > end:
                break
            if waiting >= batch:
                send(waiting)
                waiting = 0
        return {"what": "Session", "batch": batch, **meter.read(done)}


class _Meter:
    """CPU of both sides between its making and its reading."""

    def __init__(self, sidecar: Sidecar) -> None:
        self._sidecar = sidecar
        self._sidecar_seconds = sidecar.cpu_seconds()
        self._client_seconds = time.process_time()
        self._started = time.monotonic()

    def read(self, done: int) -> dict[str, float]:
        elapsed = time.monotonic() - self._started
        return {
            "per_second": done / elapsed,
            "client_us": (time.process_time() - self._client_seconds) / done * 1e6,
            "sidecar_us": (self._sidecar.cpu_seconds() - self._sidecar_seconds) / done * 1e6,
        }
