"""The RPCs alone, client and sidecar on this machine: unary calls, and whole naps over a Session.

A cycle is suspend, accept, fire, continue, acknowledge. Rows of a batch use a bare stream whose every message holds so
many naps, and answers for as many; "session" is the client library as shims use it, which chooses its own batches.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc.aio

from bench import results
from sipnap.client import FrontEndSession, SuspensionKey, aio, key_of
from sipnap.client.outstanding import set_duration
from sipnap.v1 import front_end_service_pb2 as wire
from sipnap.v1 import suspension_pb2 as pb
from sipnap.v1.front_end_service_pb2_grpc import FrontEndServiceStub
from tests.support.processes import Sidecar
from tests.support.redis_server import RedisServer

SUMMARY = "unary calls, and cycles of suspend, fire, continue and acknowledge over a Session"
SHORT = ["--batches", "1", "32", "--seconds", "0.5"]
LONG = ["--batches", "1", "2", "4", "8", "16", "32", "64", "128", "--seconds", "2", "--repeats", "3"]

JOURNALS = ("memory", "normal", "full", "redis")
"""Memory, SQLite synced now and then, SQLite synced with each commit, Redis without persistence of its own."""

STATE_BYTES = 250
_NAP_SECONDS = 0.001
_AHEAD_SECONDS = 0.04


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--journals", nargs="+", choices=JOURNALS, default=list(JOURNALS), help="the sidecar's journal")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32, 128], help="naps in a message")
    parser.add_argument("--in-flight", type=int, default=4096, help="naps held at once, where batches allow")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each is measured")
    parser.add_argument("--repeats", type=int, default=1, help="how often; medians are shown")
    results.add_directory_flag(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, show, keep."""
    machine = results.machine()
    raw = asyncio.run(_measure(arguments))
    keys = {(row["journal"], row["what"], row["batch"]): None for row in raw}
    rows = [
        {"journal": journal, "what": what, "batch": batch, **results.medians(group, _FIGURES)}
        for journal, what, batch in keys
        if (group := [row for row in raw if (row["journal"], row["what"], row["batch"]) == (journal, what, batch)])
    ]
    print(results.table(rows))
    print(results.keep("rpc", arguments, machine, {"rows": rows, "raw": raw}))
    lines = {
        journal: [(row["batch"], row["per_second"]) for row in rows if row["journal"] == journal and row["batch"]]
        for journal in arguments.journals
    }
    axes = ("naps in a message", "cycles/s")
    print(results.plot(arguments.results, "rpc", "Whole naps over a Session", axes, lines))
    return 0


_FIGURES = ("per_second", "client_us", "sidecar_us")


async def _measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """In one event loop: grpc.aio does not like to be moved to another."""
    rows: list[dict[str, Any]] = []
    for turn in range(arguments.repeats):
        for journal in arguments.journals:
            with ExitStack() as stack:
                directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sipnap-bench-")))
                sidecar = stack.enter_context(Sidecar(*_flags(journal, directory, stack)))
                measured = [await _unary(sidecar, arguments.seconds)]
                for batch in arguments.batches:
                    in_flight = min(arguments.in_flight, batch * 64)
                    measured.append(await _Stream(sidecar, batch, in_flight).measure(arguments.seconds))
                measured.append(await _session(sidecar, arguments.in_flight, arguments.seconds))
            for row in measured:
                rows.append({"journal": journal, "turn": turn, **row})
                print(f"{journal} {row['what']} {row['batch'] or ''}: {row['per_second']:.0f}/s", flush=True)
    return rows


def _flags(journal: str, directory: Path, stack: ExitStack) -> list[str]:
    if journal == "memory":
        return ["--journal", "memory"]
    if journal == "redis":
        return ["--journal", stack.enter_context(RedisServer(directory)).url]
    return ["--journal", f"sqlite:{directory}/journal.sqlite3", "--journal-sync", journal]


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
        done = sum(await asyncio.gather(*(caller() for _ in range(32))))
        measured = meter.read(done)
        session.set_boot_epoch(time.time_ns())  # what it held is over
        await session.wait_connected(10)
        return {"what": "SuspendRoute", "batch": None, **measured}


def _suspension(epoch: int, number: int, payload: bytes) -> pb.Suspension:
    suspension = pb.Suspension(resume_route="R")
    key = suspension.key
    key.boot_epoch, key.transaction_index, key.nap_number = epoch, number, 1
    set_duration(suspension.delay, _NAP_SECONDS)
    suspension.state.call_id = payload
    return suspension


class _Stream:
    """A bare session: exactly `batch` naps in each message that suspends, and in each that answers.

    It keeps of each nap only what a front end cannot do without: when it is over, by its number.
    """

    def __init__(self, sidecar: Sidecar, batch: int, in_flight: int) -> None:
        self._sidecar = sidecar
        self._batch = batch
        self._in_flight = in_flight
        self._epoch = time.time_ns()
        self._numbers = itertools.count()
        self._frame_numbers = itertools.count(1)
        self._payload = b"c" * STATE_BYTES
        self._left_us = [int(_NAP_SECONDS * 1e6)] * batch
        self._frames: dict[int, float] = {}
        self._over_seconds: dict[int, float] = {}

    async def measure(self, seconds: float) -> dict[str, Any]:
        """Cycles/s and what they cost on both sides."""
        async with grpc.aio.insecure_channel(self._sidecar.target) as channel:
            call = FrontEndServiceStub(channel).Session()
            hello = wire.Hello(protocol_version=1, front_end_id="stream", boot_epoch=self._epoch)
            set_duration(hello.ahead, _AHEAD_SECONDS)
            await call.write(wire.SessionRequest(hello=hello))
            await self._welcomed(call)
            meter = _Meter(self._sidecar)
            end = time.monotonic() + seconds
            for _ in range(max(1, self._in_flight // self._batch)):
                await call.write(self._frame([]))
            done = 0
            over: list[int] = []
            async for response in self._responses(call, end):
                for result in response.frame_results:
                    assert not result.refusals, result.refusals[0].message
                    over_seconds = self._frames.pop(result.frame_number)
                    self._over_seconds.update(zip(result.numbers, itertools.repeat(over_seconds), strict=False))
                assert not response.continues, "what is plain and new comes by its number"
                over += await self._over(response.due)
                while len(over) >= self._batch:
                    batch, over = over[: self._batch], over[self._batch :]
                    done += len(batch)
                    await call.write(self._frame(batch))
            measured = meter.read(done)
            call.cancel()
        return {"what": "stream", "batch": self._batch, **measured}

    async def _welcomed(self, call: Any) -> None:
        while True:
            response = await call.read()
            assert response is not grpc.aio.EOF, "the sidecar ended the session"
            if response.HasField("welcome"):
                return

    async def _responses(self, call: Any, end: float) -> AsyncIterator[wire.SessionResponse]:
        while time.monotonic() < end:
            response = await call.read()
            assert response is not grpc.aio.EOF, "the sidecar ended the session"
            if response.HasField("heartbeat"):
                await call.write(wire.SessionRequest(heartbeat=response.heartbeat))
            yield response

    async def _over(self, due: Sequence[int]) -> Sequence[int]:
        """What is said to be due, once it is over by the front end's own clock. They all wait for the last of them."""
        if due:
            last_seconds = max(map(self._over_seconds.pop, due))
            if (left_seconds := last_seconds - time.monotonic()) > 0:
                await asyncio.sleep(left_seconds)
        return due

    def _frame(self, applied: Sequence[int]) -> wire.SessionRequest:
        """The next naps, and that these were resumed."""
        frame = wire.SessionRequest(
            frame_number=next(self._frame_numbers),
            suspends=[
                _suspension(self._epoch, number, self._payload)
                for number in itertools.islice(self._numbers, self._batch)
            ],
            left_us=self._left_us,
            applied=applied,
        )
        self._frames[frame.frame_number] = time.monotonic() + _NAP_SECONDS
        return frame


async def _session(sidecar: Sidecar, in_flight: int, seconds: float) -> dict[str, Any]:
    """The client library: what has come back is sent anew."""
    epoch = time.time_ns()
    numbers = itertools.count()
    payload = b"c" * STATE_BYTES
    async with FrontEndSession([sidecar.target], front_end_id="session", boot_epoch=epoch) as session:
        await session.wait_connected(10)

        def send(count: int) -> None:
            for number in itertools.islice(numbers, count):
                session.suspend(_suspension(epoch, number, payload))

        meter = _Meter(sidecar)
        end = time.monotonic() + seconds
        send(in_flight)
        done = 0
        async for continues in session.batches():
            for order in continues:
                session.answer(key_of(order.key), pb.CONTINUE_OUTCOME_APPLIED)
            done += len(continues)
            if time.monotonic() > end:
                break
            send(len(continues))
        measured = meter.read(done)
        session.set_boot_epoch(time.time_ns())  # what is in flight is over
        return {"what": "session", "batch": None, **measured}


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
