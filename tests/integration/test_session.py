"""Front end sessions against real sidecar processes: deaths, reconnects, repetitions, drains."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest

from sipnap.client import FrontEndSession, SuspensionKey, aio, key_of
from sipnap.v1 import front_end_service_pb2 as wire
from sipnap.v1 import suspension_pb2 as pb
from sipnap.v1.front_end_service_pb2_grpc import (
    FrontEndServiceServicer,
    FrontEndServiceStub,
    add_FrontEndServiceServicer_to_server,
)
from tests.support.processes import Sidecar, free_port


class Driver:
    """A front end that naps, answers, and remembers when what came back."""

    def __init__(self, session: FrontEndSession, epoch: int) -> None:
        self.session = session
        self.epoch = epoch
        self.due: dict[int, float] = {}
        self.received: dict[int, list[tuple[float, pb.Continue]]] = {}

    def nap(self, number: int, seconds: float) -> SuspensionKey:
        key = SuspensionKey("driver", self.epoch, number, 5, 1)
        suspension = pb.Suspension(key=key.to_message(), resume_route="RESUME")
        suspension.delay.FromNanoseconds(int(seconds * 1e9))
        self.due[number] = time.monotonic() + int(seconds * 1e9) / 1e9
        self.session.suspend(suspension)
        return key

    async def receive_forever(self) -> None:
        async for batch in self.session.batches():
            now = time.monotonic()
            for received in batch:
                self.received.setdefault(received.key.transaction_index, []).append((now, received))
                self.session.answer(key_of(received.key), pb.CONTINUE_OUTCOME_APPLIED)

    async def wait_for(self, count: int, seconds: float = 10.0) -> None:
        await until(lambda: len(self.received) >= count, seconds)

    @property
    def early(self) -> int:
        return sum(came < self.due[number] for number, all_ in self.received.items() for came, _ in all_)

    @property
    def repeated(self) -> int:
        return sum(len(all_) > 1 for all_ in self.received.values())

    def statuses(self) -> set[str]:
        return {pb.ContinueStatus.Name(c.status) for all_ in self.received.values() for _, c in all_}


async def until(condition: object, seconds: float = 5.0) -> None:
    assert callable(condition)
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def driving(*targets: str, epoch: int = 1) -> AsyncIterator[Driver]:
    async with FrontEndSession(targets, front_end_id="driver", boot_epoch=epoch) as session:
        driver = Driver(session, epoch)
        task = asyncio.create_task(driver.receive_forever())
        try:
            yield driver
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_naps_come_back_each_once_none_early(sidecar: Sidecar) -> None:
    async with driving(sidecar.target) as driver, aio.Client(sidecar.target) as client:
        await driver.session.wait_connected(10)
        for number in range(3000):
            driver.nap(number, random.uniform(0.05, 0.8))
        await driver.wait_for(3000)
        assert (driver.early, driver.repeated, driver.statuses()) == (0, 0, {"CONTINUE_STATUS_OK"})
        assert driver.session.outstanding == 0
        async with asyncio.timeout(5):
            while (status := await client.status()).continuing:
                await asyncio.sleep(0.01)
        assert (status.counters.accepted, status.counters.applied, status.pending) == (3000, 3000, 0)


async def test_a_sidecar_that_is_killed_and_comes_back_costs_nothing_but_time(sidecar: Sidecar) -> None:
    gates: list[bool] = []
    async with driving(sidecar.target) as driver:
        driver.session.on_gate(gates.append)
        await driver.session.wait_connected(10)
        for number in range(500):
            driver.nap(number, random.uniform(0.1, 1.5))
        await driver.wait_for(100)
        sidecar.kill()
        await until(lambda: not driver.session.is_open)
        for number in range(500, 600):
            driver.nap(number, 0.5)
        with Sidecar(port=sidecar.port):
            await driver.wait_for(600)
            assert (driver.early, driver.repeated, driver.statuses()) == (0, 0, {"CONTINUE_STATUS_OK"})
            assert driver.session.is_open
        assert gates[:3] == [True, False, True]


async def test_a_front_end_that_is_away_gets_its_continues_when_it_is_back(sidecar: Sidecar) -> None:
    async with driving(sidecar.target) as first:
        await first.session.wait_connected(10)
        for number in range(50):
            first.nap(number, 0.3)
        async with aio.Client(sidecar.target) as client:
            async with asyncio.timeout(5):
                while (await client.status()).pending < 50:
                    await asyncio.sleep(0.005)
    async with aio.Client(sidecar.target) as client, asyncio.timeout(5):
        while (await client.status()).continuing < 50:
            await asyncio.sleep(0.005)
    async with driving(sidecar.target) as second:
        second.due = first.due
        await second.wait_for(50)
        assert (second.early, second.repeated) == (0, 0)


async def test_a_restarted_front_end_hears_nothing_of_its_earlier_life(sidecar: Sidecar) -> None:
    async with driving(sidecar.target, epoch=1) as first:
        await first.session.wait_connected(10)
        first.nap(1, 0.2)
        async with aio.Client(sidecar.target) as client:
            async with asyncio.timeout(5):
                while not (await client.status()).pending:
                    await asyncio.sleep(0.005)
            first.session.set_boot_epoch(2)
            first.epoch = 2
            async with asyncio.timeout(5):
                while not (await client.status()).counters.gone:
                    await asyncio.sleep(0.005)
        first.nap(2, 0.3)
        await until(lambda: 2 in first.received)
        assert 1 not in first.received


async def test_cancel_is_final_and_reaches_the_sidecar(sidecar: Sidecar) -> None:
    async with driving(sidecar.target) as driver, aio.Client(sidecar.target) as client:
        await driver.session.wait_connected(10)
        cancelled = driver.nap(1, 0.3)
        driver.nap(2, 0.4)
        async with asyncio.timeout(5):
            while (await client.status()).pending < 2:
                await asyncio.sleep(0.005)
        driver.session.cancel(cancelled)
        await driver.wait_for(1)
        assert set(driver.received) == {2}
        assert (await client.status()).counters.cancelled == 1


async def test_a_refused_suspension_comes_back_as_failed(sidecar: Sidecar) -> None:
    async with driving(sidecar.target) as driver:
        await driver.session.wait_connected(10)
        driver.nap(1, 101.0)
        driver.nap(2, 0.1)
        await driver.wait_for(2)
        failed, passed = driver.received[1][0][1], driver.received[2][0][1]
        assert (failed.status, failed.attempt) == (pb.CONTINUE_STATUS_FAILED, 0)
        assert failed.error.startswith("refused: delay_out_of_range: ")
        assert passed.status == pb.CONTINUE_STATUS_OK
        assert failed.resume_route == "RESUME"


async def test_the_gate_closes_at_the_bound_and_opens_below_it() -> None:
    with Sidecar("--max-pending", "3") as sidecar:
        async with driving(sidecar.target) as driver:
            await driver.session.wait_connected(10)
            await until(lambda: driver.session.is_open)
            for number in range(3):
                driver.nap(number, 0.3)
            assert not driver.session.is_open
            await driver.wait_for(3)
            await until(lambda: driver.session.is_open)


async def test_what_no_sidecar_ever_answers_is_lost_at_its_deadline() -> None:
    async with driving(f"127.0.0.1:{free_port()}") as driver:
        suspension = pb.Suspension(key=SuspensionKey("driver", 1, 1, 5, 1).to_message(), resume_route="RESUME")
        suspension.delay.FromMilliseconds(100)
        suspension.deadline.FromMilliseconds(600)
        driver.session.suspend(suspension)
        await driver.wait_for(1)
        _, received = driver.received[1][0]
        assert (received.status, received.resume_route) == (pb.CONTINUE_STATUS_LOST, "RESUME")
        assert driver.session.outstanding == 0


async def test_a_stopped_sidecar_closes_the_gate_and_is_left(sidecar: Sidecar) -> None:
    with Sidecar() as other:
        async with driving(sidecar.target, other.target) as driver:
            await driver.session.wait_connected(10)
            await until(lambda: driver.session.is_open)
            sidecar.signal(signal.SIGSTOP)
            try:
                await until(lambda: not driver.session.is_open, 5)
                driver.nap(1, 0.2)
                await driver.wait_for(1, 15)
                assert driver.session.is_open, "the second sidecar serves it"
            finally:
                sidecar.signal(signal.SIGCONT)


class SilentServicer(FrontEndServiceServicer):
    """Takes sessions and never says a word."""

    async def Session(self, requests: object, context: object) -> None:  # type: ignore[override]  # noqa: N802
        await asyncio.Event().wait()


async def test_a_sidecar_that_does_not_answer_the_hello_is_left(
    sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sipnap.client.session._HELLO_SECONDS", 0.3)
    silent = grpc.aio.server()
    add_FrontEndServiceServicer_to_server(SilentServicer(), silent)
    port = silent.add_insecure_port("127.0.0.1:0")
    await silent.start()
    try:
        async with driving(f"127.0.0.1:{port}", sidecar.target) as driver:
            driver.nap(1, 0.1)
            await driver.wait_for(1)
            assert driver.statuses() == {"CONTINUE_STATUS_OK"}
    finally:
        await silent.stop(None)


async def test_the_first_signal_drains_and_says_goodbye(sidecar: Sidecar) -> None:
    async with driving(sidecar.target) as driver:
        await driver.session.wait_connected(10)
        for number in range(20):
            driver.nap(number, 1.0)
        async with aio.Client(sidecar.target) as client:
            async with asyncio.timeout(5):
                while (await client.status()).pending < 20:
                    await asyncio.sleep(0.005)
            sidecar.signal(signal.SIGTERM)
            await until(lambda: not driver.session.is_open)
            driver.nap(99, 0.1)
            await until(lambda: 99 in driver.received)
            assert driver.received[99][0][1].error.startswith("refused: draining")
            driver.received.clear()
            await driver.wait_for(20)
            assert driver.early == 0
        assert await asyncio.to_thread(sidecar.wait, 10) == 0
        sidecar.wait_output("draining; .*held=20")


async def test_a_drain_moves_the_session_to_the_next_sidecar(sidecar: Sidecar) -> None:
    with Sidecar() as other:
        async with driving(sidecar.target, other.target) as driver:
            await driver.session.wait_connected(10)
            for number in range(20):
                driver.nap(number, 2.0)
            async with aio.Client(sidecar.target) as client, asyncio.timeout(5):
                while (await client.status()).pending < 20:
                    await asyncio.sleep(0.005)
            sidecar.signal(signal.SIGTERM)
            async with aio.Client(other.target) as client, asyncio.timeout(5):
                while (await client.status()).pending < 20:
                    await asyncio.sleep(0.005)
            await driver.wait_for(20)
            assert (driver.early, driver.repeated, driver.statuses()) == (0, 0, {"CONTINUE_STATUS_OK"})


async def test_the_second_signal_ends_at_once(sidecar: Sidecar) -> None:
    async with driving(sidecar.target) as driver:
        await driver.session.wait_connected(10)
        driver.nap(1, 60.0)
        async with aio.Client(sidecar.target) as client, asyncio.timeout(5):
            while not (await client.status()).pending:
                await asyncio.sleep(0.005)
        sidecar.signal(signal.SIGTERM)
        await asyncio.to_thread(sidecar.wait_output, "draining; .*held=1")
        sidecar.signal(signal.SIGTERM)
        assert await asyncio.to_thread(sidecar.wait, 3) == 1


# The protocol, spoken by hand


async def read(call: object) -> wire.SessionResponse:
    assert isinstance(call, grpc.aio.StreamStreamCall)
    response = await call.read()
    assert isinstance(response, wire.SessionResponse), "the stream ended"
    return response


def hello(front_end_id: str = "raw", version: int = 1, epoch: int = 9) -> wire.SessionRequest:
    return wire.SessionRequest(hello=wire.Hello(protocol_version=version, front_end_id=front_end_id, boot_epoch=epoch))


@pytest.mark.parametrize(
    ("first", "code"),
    [
        (wire.SessionRequest(), grpc.StatusCode.INVALID_ARGUMENT),
        (hello(version=2), grpc.StatusCode.FAILED_PRECONDITION),
        (hello(front_end_id=""), grpc.StatusCode.INVALID_ARGUMENT),
        (hello(front_end_id="a b"), grpc.StatusCode.INVALID_ARGUMENT),
        (hello(epoch=0), grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_a_bad_hello_is_told_why(sidecar: Sidecar, first: wire.SessionRequest, code: grpc.StatusCode) -> None:
    with grpc.insecure_channel(sidecar.target) as channel:
        call = FrontEndServiceStub(channel).Session(iter([first]), timeout=10)
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() is code
    assert len(caught.value.details() or "") > 20


async def test_a_second_session_of_a_front_end_ends_the_first(sidecar: Sidecar) -> None:
    async with grpc.aio.insecure_channel(sidecar.target) as channel:
        stub = FrontEndServiceStub(channel)
        first, second = stub.Session(), stub.Session()
        for call in (first, second):
            await call.write(hello())
            assert (await read(call)).HasField("welcome")
        assert (await read(first)).HasField("credits")
        with pytest.raises(grpc.aio.AioRpcError, match="took over") as caught:
            await first.read()
        assert caught.value.code() is grpc.StatusCode.ABORTED
        second.cancel()


async def test_a_bad_entry_is_refused_by_itself(sidecar: Sidecar) -> None:
    async with grpc.aio.insecure_channel(sidecar.target) as channel:
        call = FrontEndServiceStub(channel).Session()
        await call.write(hello())
        assert (await read(call)).HasField("welcome")
        frame = wire.SessionRequest(frame_number=1)
        for number, route in enumerate(["GOOD", "bad one", "GOOD"], start=1):
            suspension = frame.suspends.add(resume_route=route)
            suspension.key.transaction_index = number
            suspension.key.nap_number = 1
            suspension.delay.FromMilliseconds(50)
        frame.results.add(outcome=pb.CONTINUE_OUTCOME_UNSPECIFIED)
        frame.cancels.add(transaction_index=77)
        await call.write(frame)
        refused: list[int] = []
        cancelled: dict[int, int] = {}
        continued: dict[int, int] = {}
        async with asyncio.timeout(10):
            while len(continued) < 2:
                response = await read(call)
                for result in response.frame_results:
                    refused += [refusal.key.transaction_index for refusal in result.refusals]
                cancelled |= {result.key.transaction_index: result.outcome for result in response.cancel_results}
                continued |= {c.key.transaction_index: c.key.boot_epoch for c in response.continues}
                assert not response.due, "the Hello did not ask for it"
        assert refused == [2]
        assert cancelled == {77: pb.CANCEL_OUTCOME_GONE}
        assert continued == {1: 9, 3: 9}
        call.cancel()
