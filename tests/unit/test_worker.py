"""A worker against a sidecar that does what the test says: credits, extensions, cancels, drains."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from sipnap.client import worker as worker_module
from sipnap.client.errors import GroupUnknown, ProtocolError
from sipnap.client.operations import Handler, Operation, OperationError, Value
from sipnap.client.outstanding import seconds_of, set_duration
from sipnap.client.worker import Worker, WorkerStuck
from sipnap.sidecar.services.translate import abort
from sipnap.v1 import suspension_pb2 as pb
from sipnap.v1 import worker_service_pb2 as wire
from sipnap.v1.worker_service_pb2_grpc import WorkerServiceServicer, add_WorkerServiceServicer_to_server


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


class Stream:
    """One stream as the sidecar sees it."""

    def __init__(self, hello: wire.WorkerHello, context: Any) -> None:
        self.hello = hello
        self.heard: list[wire.WorkRequest] = []
        self.credits = 0
        self.results: dict[int, wire.LeaseResult] = {}
        self.extended: list[int] = []
        self.is_leaving = False
        self.is_over = False
        self.end = asyncio.Event()
        self._context = context
        self._last_lease_id = 0

    async def lease(self, *operations: str, cancelled: bool = False) -> list[int]:
        response = wire.WorkResponse()
        for operation in operations:
            self._last_lease_id += 1
            response.leases.add(lease_id=self._last_lease_id, operation=operation, attempt=1)
        lease_ids = [lease.lease_id for lease in response.leases]
        self.credits -= len(lease_ids)
        if cancelled:
            response.cancels.extend(lease_ids)
        await self.send(response)
        return lease_ids

    async def send(self, response: wire.WorkResponse) -> None:
        await self._context.write(response)

    def outcome(self, lease_id: int) -> str | None:
        return self.results[lease_id].WhichOneof("outcome") if lease_id in self.results else None

    def hear(self, request: wire.WorkRequest) -> None:
        self.heard.append(request)
        self.credits += request.credits
        self.extended += request.extend
        self.is_leaving |= request.leaving
        for result in request.results:
            assert result.lease_id not in self.results, "answered for twice"
            self.results[result.lease_id] = result


class FakeSidecar(WorkerServiceServicer):
    def __init__(self) -> None:
        self.target = ""
        self.streams: list[Stream] = []
        self.lease_seconds = 10.0
        self.refusal: tuple[grpc.StatusCode, str, str] | None = None

    async def Work(  # type: ignore[override]  # noqa: N802 - the contract names it
        self, requests: AsyncIterator[wire.WorkRequest], context: Any
    ) -> None:
        first = await anext(requests)
        if self.refusal is not None:
            await abort(context, *self.refusal)
        stream = Stream(first.hello, context)
        welcome = wire.WorkerWelcome(protocol_version=1, instance_id="fake")
        set_duration(welcome.lease_time, self.lease_seconds)
        await context.write(wire.WorkResponse(welcome=welcome))
        self.streams.append(stream)

        async def read() -> None:
            async for request in requests:
                stream.hear(request)

        reading, ending = asyncio.create_task(read()), asyncio.create_task(stream.end.wait())
        await asyncio.wait({reading, ending}, return_when=asyncio.FIRST_COMPLETED)
        stream.is_over = reading.done()
        for task in (reading, ending):
            task.cancel()
        await asyncio.gather(reading, ending, return_exceptions=True)

    async def stream(self, number: int = 1) -> Stream:
        """The so manieth stream, when its credits have come."""
        await until(lambda: len(self.streams) >= number and self.streams[number - 1].heard)
        return self.streams[number - 1]


@pytest.fixture
async def sidecar(tmp_path: Path) -> AsyncIterator[FakeSidecar]:
    fake = FakeSidecar()
    server = grpc.aio.server()
    add_WorkerServiceServicer_to_server(fake, server)
    fake.target = f"unix:{tmp_path}/fake.sock"
    server.add_insecure_port(fake.target)
    await server.start()
    yield fake
    for stream in fake.streams:
        stream.end.set()
    await server.stop(0)


class Gate:
    """An operation that ends when the test says so; counts what becomes of it."""

    def __init__(self) -> None:
        self.begun = 0
        self.stopped = 0
        self.is_open = False

    async def __call__(self, arguments: Mapping[str, Value], state: pb.TransactionState) -> Mapping[str, Value]:
        self.begun += 1
        try:
            while not self.is_open:
                await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            self.stopped += 1
            raise
        return {"found": 1}


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.is_open = True


async def at_once(arguments: Mapping[str, Value], state: pb.TransactionState) -> Mapping[str, Value]:
    return {"found": b"it"}


async def blocks(arguments: Mapping[str, Value], state: pb.TransactionState) -> Mapping[str, Value]:
    time.sleep(0.8)  # noqa: ASYNC251 - that is the point
    return {}


@asynccontextmanager
async def working(sidecar: FakeSidecar, gate: Gate, concurrency: int = 3) -> AsyncIterator[Worker]:
    operations: dict[str, Handler | Operation] = {"gate": gate, "at_once": at_once, "blocks": blocks, "fails": _fails()}
    worker = Worker([sidecar.target], group="far", operations=operations, concurrency=concurrency, worker_id="w1")
    running = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def _fails() -> Operation:
    async def fails(arguments: Mapping[str, Value], state: pb.TransactionState) -> Mapping[str, Value]:
        raise OperationError("no_luck", "not today", retry_after_seconds=1.5)

    return Operation(fails)


async def test_it_says_who_it_is_and_how_much_it_will_take(sidecar: FakeSidecar, gate: Gate) -> None:
    async with working(sidecar, gate, concurrency=7):
        stream = await sidecar.stream()
        assert stream.hello == wire.WorkerHello(
            protocol_version=1, worker_id="w1", group="far", operations=["at_once", "blocks", "fails", "gate"]
        )
        assert stream.credits == 7


async def test_each_place_that_gets_free_is_a_credit_with_the_result(sidecar: FakeSidecar, gate: Gate) -> None:
    async with working(sidecar, gate) as worker:
        stream = await sidecar.stream()
        slow, quick = await stream.lease("gate", "at_once")
        await until(lambda: quick in stream.results)
        assert stream.results[quick].completed.values[0].value.text == b"it"
        assert (stream.credits, worker.in_hand, stream.outcome(slow)) == (2, 1, None)
        gate.is_open = True
        await until(lambda: stream.outcome(slow) == "completed")
        assert stream.credits == 3
        assert sum(request.credits for request in stream.heard) == 5


async def test_a_failure_says_why_and_when_to_try_again(sidecar: FakeSidecar, gate: Gate) -> None:
    async with working(sidecar, gate):
        stream = await sidecar.stream()
        (lease_id,) = await stream.lease("fails")
        await until(lambda: lease_id in stream.results)
        failed = stream.results[lease_id].failed
        assert (failed.error_code, failed.error) == ("no_luck", "not today")
        assert seconds_of(failed.retry_after) == pytest.approx(1.5)
        (unknown,) = await stream.lease("nobody_knows_it")
        await until(lambda: unknown in stream.results)
        assert stream.results[unknown].failed.error_code == "operation_unknown"
        assert not stream.results[unknown].failed.HasField("retry_after")


async def test_leases_are_extended_at_a_third_of_their_time(sidecar: FakeSidecar, gate: Gate) -> None:
    sidecar.lease_seconds = 0.3
    async with working(sidecar, gate):
        stream = await sidecar.stream()
        leased = await stream.lease("gate", "gate")
        await until(lambda: stream.extended.count(leased[0]) >= 3)
        assert stream.extended[: 3 * 2] == leased * 3
        gate.is_open = True
        await until(lambda: len(stream.results) == 2)


async def test_also_while_a_handler_blocks_its_thread(sidecar: FakeSidecar, gate: Gate) -> None:
    sidecar.lease_seconds = 0.3
    async with working(sidecar, gate):
        stream = await sidecar.stream()
        (lease_id,) = await stream.lease("blocks")
        await until(lambda: lease_id in stream.results)
        assert len(stream.extended) >= 3


@pytest.mark.parametrize("word", ["cancels", "stale"])
async def test_what_nobody_waits_for_is_stopped_and_not_answered_for(
    sidecar: FakeSidecar, gate: Gate, word: str
) -> None:
    async with working(sidecar, gate):
        stream = await sidecar.stream()
        leased = await stream.lease("gate", "gate")
        await until(lambda: gate.begun == 2)
        await stream.send(wire.WorkResponse(**{word: [leased[0]]}))  # type: ignore[arg-type]  # one of two fields
        await until(lambda: gate.stopped == 1)
        await until(lambda: stream.credits == 2)
        gate.is_open = True
        await until(lambda: stream.outcome(leased[1]) == "completed")
        assert leased[0] not in stream.results


async def test_a_lease_that_comes_with_its_cancel_takes_no_place(sidecar: FakeSidecar, gate: Gate) -> None:
    async with working(sidecar, gate) as worker:
        stream = await sidecar.stream()
        await stream.lease("gate", "gate", cancelled=True)
        await until(lambda: stream.credits == 3)
        assert worker.in_hand == 0
        assert stream.results == {}


async def test_a_drain_finishes_what_has_begun_and_gives_back_what_comes_later(
    sidecar: FakeSidecar, gate: Gate
) -> None:
    async with working(sidecar, gate) as worker:
        stream = await sidecar.stream()
        (begun,) = await stream.lease("gate")
        await until(lambda: gate.begun == 1)
        worker.drain()
        (late,) = await stream.lease("gate")
        await until(lambda: stream.is_leaving)
        await until(lambda: stream.outcome(late) == "released")
        await stream.send(wire.WorkResponse(go_away=True))
        gate.is_open = True
        await until(lambda: stream.outcome(begun) == "completed")
        await until(lambda: stream.is_over)
        assert gate.begun == 1
        assert sum(request.credits for request in stream.heard) == 3, "no place is offered any more"


async def test_a_drain_gives_back_what_waits_behind_a_handler_that_blocks(sidecar: FakeSidecar, gate: Gate) -> None:
    async with working(sidecar, gate) as worker:
        stream = await sidecar.stream()
        (blocking,) = await stream.lease("blocks")
        await asyncio.sleep(0.1)
        (waiting,) = await stream.lease("gate")
        await until(lambda: worker.in_hand == 2)
        worker.drain()
        await until(lambda: stream.outcome(waiting) == "released")
        assert blocking not in stream.results
        await until(lambda: stream.outcome(blocking) == "completed")
        assert gate.begun == 0


async def test_run_returns_after_a_drain(sidecar: FakeSidecar, monkeypatch: pytest.MonkeyPatch) -> None:
    # This sidecar does not confirm; it is not waited for for ever.
    monkeypatch.setattr(worker_module, "_FAREWELL_SECONDS", 0.2)
    worker = Worker([sidecar.target], group="far", operations={"at_once": at_once})
    running = asyncio.create_task(worker.run())
    await sidecar.stream()
    worker.drain()
    worker.drain()
    async with asyncio.timeout(5):
        await running
    assert sidecar.streams[0].is_leaving
    async with asyncio.timeout(5):
        await worker.run()


async def test_a_drain_while_no_sidecar_answers_ends_it(tmp_path: Path) -> None:
    worker = Worker([f"unix:{tmp_path}/nobody.sock"], group="far", operations={"at_once": at_once})
    running = asyncio.create_task(worker.run())
    await asyncio.sleep(0.1)
    worker.drain()
    async with asyncio.timeout(5):
        await running


async def test_what_it_had_in_hand_is_stopped_when_the_stream_ends(sidecar: FakeSidecar, gate: Gate) -> None:
    async with working(sidecar, gate):
        first = await sidecar.stream()
        await first.lease("gate", "gate")
        await until(lambda: gate.begun == 2)
        first.end.set()
        second = await sidecar.stream(2)
        await until(lambda: gate.stopped == 2)
        await until(lambda: second.credits == 3)
        gate.is_open = True
        (again,) = await second.lease("gate")
        await until(lambda: second.outcome(again) == "completed")
        assert second.results.keys() == {again}


async def test_a_sidecar_that_says_go_away_gets_its_answers_first(sidecar: FakeSidecar, gate: Gate) -> None:
    async with working(sidecar, gate):
        first = await sidecar.stream()
        (lease_id,) = await first.lease("gate")
        await until(lambda: gate.begun == 1)
        await first.send(wire.WorkResponse(go_away=True))
        gate.is_open = True
        await until(lambda: first.outcome(lease_id) == "completed")
        await until(lambda: first.is_over)
        assert (await sidecar.stream(2)).credits == 3


@pytest.mark.parametrize(("reason", "error"), [("GROUP_UNKNOWN", GroupUnknown), ("PROTOCOL", ProtocolError)])
async def test_a_sidecar_that_cannot_use_it_ends_it_at_first_and_is_asked_again_later(
    sidecar: FakeSidecar, gate: Gate, reason: str, error: type[Exception]
) -> None:
    sidecar.refusal = (grpc.StatusCode.FAILED_PRECONDITION, reason, "not you")
    with pytest.raises(error, match="not you"):
        await Worker([sidecar.target], group="far", operations={"at_once": at_once}).run()
    sidecar.refusal = None
    async with working(sidecar, gate):
        (await sidecar.stream()).end.set()
        sidecar.refusal = (grpc.StatusCode.FAILED_PRECONDITION, reason, "not you")
        await asyncio.sleep(0.3)
        sidecar.refusal = None
        await sidecar.stream(2)


async def test_a_handler_that_heeds_nothing_ends_the_worker(
    sidecar: FakeSidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "STUCK_SECONDS", 0.2)
    monkeypatch.setattr(worker_module, "_WATCH_SECONDS", 0.1)
    with never_ending() as never:
        worker = Worker([sidecar.target], group="far", operations={"never": never}, concurrency=1)
        running = asyncio.create_task(worker.run())
        stream = await sidecar.stream()
        leased = await stream.lease("never")
        await asyncio.sleep(0.8)
        assert not running.done(), "somebody waits for it: it may take its time"
        await stream.send(wire.WorkResponse(cancels=leased))
        with pytest.raises(
            WorkerStuck, match=r"operation never blocks for 0[.]2 s after nobody waited for it any more"
        ):
            async with asyncio.timeout(10):
                await running


@contextmanager
def never_ending() -> Iterator[Any]:
    is_over = False

    async def never(arguments: Mapping[str, Value], state: pb.TransactionState) -> Mapping[str, Value]:
        while not is_over:
            time.sleep(0.01)  # noqa: ASYNC251 - that is the point
        return {}

    try:
        yield never
    finally:
        is_over = True


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"targets": []}, "at least one sidecar"),
        ({"operations": {}}, "at least one operation"),
        ({"concurrency": 0}, "concurrency is 0, expected 1 to 10000"),
        ({"concurrency": 10_001}, "concurrency is 10001"),
        ({"worker_id": "no spaces"}, "'no spaces' is not a worker id"),
    ],
)
def test_what_makes_no_worker(changes: dict[str, Any], words: str) -> None:
    good: dict[str, Any] = {"targets": ["unix:x"], "group": "far", "operations": {"at_once": at_once}}
    with pytest.raises(ValueError, match=words):
        Worker(**{**good, **changes})


def test_a_worker_has_a_name_of_its_own() -> None:
    worker = Worker(["unix:x"], group="far", operations={"at_once": at_once})
    assert worker.worker_id.rpartition("-")[2].isdigit()
