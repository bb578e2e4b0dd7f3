"""A front end that speaks the session by hand and helps the sidecar with nothing.

It never submits a suspension again, so whatever was acknowledged and does not come back was lost by the sidecar, and it
checks what `sipnap.client` would forgive: lost acknowledgements, early continues, a continue for what was never asked.
Some of its sessions take numbers (`Hello.ahead`), some full continues alone.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc.aio

from sipnap.client.outstanding import set_duration
from sipnap.v1 import front_end_service_pb2 as wire
from sipnap.v1 import suspension_pb2 as pb
from sipnap.v1.front_end_service_pb2_grpc import FrontEndServiceStub

EPOCH = 1
_AHEAD_SECONDS = 0.04
_OPTIONS = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]


@dataclass(slots=True)
class Tally:
    """What has been seen."""

    submitted: int = 0
    """Suspensions sent."""
    acknowledged: dict[int, float] = field(default_factory=dict)
    """Acknowledged ones that have not been continued yet, by number; with the time of sending."""
    acknowledged_count: int = 0
    """All that were acknowledged."""
    applied: set[int] = field(default_factory=set)
    """Those continued; this front end applies each once."""
    repeated: int = 0
    """Continues that came again and were answered again."""
    early: int = 0
    """Continues before their time, and numbers still more ahead of it than was asked for."""
    unknown: int = 0
    """Continues of what was never submitted."""
    refused: int = 0
    """Suspensions refused."""
    late_seconds: list[float] = field(default_factory=list)
    """How long after its time each was continued."""


class FrontEnd:
    """One front end with one session after the other."""

    def __init__(self, targets: Sequence[str], front_end_id: str, dice: random.Random) -> None:
        self.tally = Tally()
        self._targets = itertools.cycle(targets)
        self._front_end_id = front_end_id
        self._dice = dice
        self._numbers = itertools.count(1)
        self._due: dict[int, float] = {}
        self._frames: dict[int, list[int]] = {}
        self._by_number: dict[int, int] = {}
        self._waiting: list[int] = []
        self._frame_numbers = itertools.count(1)
        self._results: list[pb.SuspensionKey] = []
        self.rate = 0
        """Suspensions per second to submit; 0: none."""
        self.nap_seconds = (0.1, 2.0)
        """Shortest and longest nap."""
        self.patience_seconds = 3.0
        """How long a silent sidecar is waited for before the next one is tried."""
        self.sessions = 0
        """Sessions that were welcomed."""

    async def run(self) -> None:
        """Keep a session open until cancelled."""
        while True:
            try:
                async with grpc.aio.insecure_channel(next(self._targets), options=_OPTIONS) as channel:
                    await self._converse(channel)
            except (grpc.RpcError, grpc.aio.UsageError, asyncio.InvalidStateError):  # also: it ended under our hands
                await asyncio.sleep(0.02)

    async def _converse(self, channel: grpc.aio.Channel) -> None:
        call = FrontEndServiceStub(channel).Session()
        hello = wire.Hello(protocol_version=1, front_end_id=self._front_end_id, boot_epoch=EPOCH)
        if self._dice.random() < 0.5:
            set_duration(hello.ahead, _AHEAD_SECONDS)
        await call.write(wire.SessionRequest(hello=hello))
        if await call.read() is grpc.aio.EOF:
            return
        self.sessions += 1
        self._frames.clear()  # of the stream before: whether they were accepted, nobody will say
        self._by_number.clear()
        self._waiting.clear()  # they come again, in full
        self._frame_numbers = itertools.count(1)
        writer = asyncio.create_task(self._write(call))
        try:
            while isinstance(response := await self._read(call), wire.SessionResponse):
                self._receive(response)
        except TimeoutError:
            call.cancel()  # stopped, not dead: there was a heartbeat in every second
        finally:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    async def _read(self, call: grpc.aio.StreamStreamCall[wire.SessionRequest, wire.SessionResponse]) -> object:
        async with asyncio.timeout(self.patience_seconds):  # `wait_for` can lose a cancel that comes with an answer
            return await call.read()

    async def _write(self, call: grpc.aio.StreamStreamCall[wire.SessionRequest, wire.SessionResponse]) -> None:
        started, sent = time.monotonic(), 0
        while True:
            await asyncio.sleep(0.005)
            request = wire.SessionRequest()
            request.heartbeat.nonce = 1
            wanted = int((time.monotonic() - started) * self.rate) if self.rate else sent
            for _ in range(min(wanted - sent, 200)):
                self._add(request)
            sent = wanted
            if request.suspends:
                request.frame_number = next(self._frame_numbers)
                self._frames[request.frame_number] = [entry.key.transaction_index for entry in request.suspends]
            results, self._results = self._results, []
            for key in results:
                request.results.add(key=key, outcome=pb.CONTINUE_OUTCOME_APPLIED)
            request.applied.extend(self._resume_waiting())
            await call.write(request)

    def _resume_waiting(self) -> list[int]:
        """Of what was said ahead of its time, the numbers of those whose time has come."""
        now = time.monotonic()
        over = [number for number in self._waiting if self._due[self._by_number[number]] <= now]
        self._waiting = [number for number in self._waiting if self._due[self._by_number[number]] > now]
        for number in over:
            self._continued(self._by_number[number], now)
        return over

    def _add(self, request: wire.SessionRequest) -> None:
        number = next(self._numbers)
        nap_seconds = self._dice.uniform(*self.nap_seconds)
        suspension = request.suspends.add(resume_route="R")
        suspension.key.boot_epoch, suspension.key.transaction_index, suspension.key.nap_number = EPOCH, number, 1
        set_duration(suspension.delay, nap_seconds)
        self._due[number] = time.monotonic() + nap_seconds
        self.tally.submitted += 1

    def _receive(self, response: wire.SessionResponse) -> None:
        tally, now = self.tally, time.monotonic()
        for result in response.frame_results:
            refused = {refusal.key.transaction_index for refusal in result.refusals}
            tally.refused += len(refused)
            frame = self._frames.pop(result.frame_number)
            self._by_number.update(zip(result.numbers, frame, strict=bool(result.numbers)))
            for number in frame:
                if number not in refused:
                    tally.acknowledged_count += 1
                    if number not in tally.applied:
                        tally.acknowledged[number] = now
        known = [number for number in response.due if number in self._by_number]
        tally.unknown += len(response.due) - len(known)
        tally.early += sum(now + _AHEAD_SECONDS < self._due[self._by_number[number]] for number in known)
        self._waiting += known
        for order in response.continues:
            self._results.append(order.key)
            if order.key.transaction_index in self._due:
                self._continued(order.key.transaction_index, now)
            else:
                tally.unknown += 1

    def _continued(self, number: int, now: float) -> None:
        tally = self.tally
        if number in tally.applied:
            tally.repeated += 1
            return
        tally.applied.add(number)
        tally.acknowledged.pop(number, None)
        late = now - self._due[number]
        tally.late_seconds.append(late)
        tally.early += late < 0
