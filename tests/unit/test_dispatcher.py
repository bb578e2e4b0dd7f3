"""Commits: one at a time, and nothing is accepted before its own is done, whoever asks how often."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NoReturn

import pytest

from sipnap.sidecar.core.engine import Engine
from sipnap.sidecar.core.suspension import Held, Limits, NapKey, Request
from sipnap.sidecar.dispatcher import Dispatcher
from sipnap.sidecar.journal.base import Durability, Entry, Journal, JournalError
from sipnap.sidecar.services.front_end import FrontEndServicer
from sipnap.sidecar.services.nap import NapServicer
from sipnap.v1 import front_end_service_pb2 as wire
from sipnap.v1 import nap_service_pb2 as nap
from sipnap.v1 import suspension_pb2 as pb


class SlowJournal(Journal):
    """Its commits end when the test says so."""

    kind = "slow"
    durability = Durability.DISK

    def __init__(self) -> None:
        self.commits: list[asyncio.Future[None]] = []
        self.added: list[Held] = []

    async def recover(self) -> AsyncIterator[Sequence[Entry]]:
        nothing: tuple[Sequence[Entry], ...] = ()
        for batch in nothing:
            yield batch

    async def commit(self, added: Sequence[Held], ended: Sequence[Held]) -> None:
        commit = asyncio.get_running_loop().create_future()
        self.commits.append(commit)
        await commit
        self.added += added

    async def close(self) -> None:
        pass


class Refusal(Exception):
    """What a servicer ended its RPC with."""


class FakeContext:
    """One stream or call: requests to be read, responses written."""

    def __init__(self) -> None:
        self.requests: asyncio.Queue[wire.SessionRequest] = asyncio.Queue()
        self.written: list[wire.SessionResponse] = []

    def peer(self) -> str:
        return "test"

    async def write(self, response: wire.SessionResponse) -> None:
        self.written.append(response)

    async def abort_with_status(self, status: Any) -> NoReturn:
        raise Refusal(status.details)

    def __aiter__(self) -> FakeContext:
        return self

    async def __anext__(self) -> wire.SessionRequest:
        return await self.requests.get()

    def say(self, **fields: Any) -> None:
        self.requests.put_nowait(wire.SessionRequest(**fields))

    @property
    def frame_results(self) -> list[wire.FrameResult]:
        return [result for response in self.written for result in response.frame_results]


class Bench:
    """A dispatcher with its servicers, and a front end that sends the same nap over and over."""

    def __init__(self) -> None:
        self.journal = SlowJournal()
        self.engine = Engine(asyncio.get_running_loop().time, Limits())
        self.dispatcher = Dispatcher(self.engine, self.journal)
        self.sessions = FrontEndServicer(self.dispatcher, "instance")
        self.naps = NapServicer(self.dispatcher)
        self.tasks = [asyncio.create_task(self.dispatcher.commit_forever())]

    def open_session(self) -> FakeContext:
        context: Any = FakeContext()
        self.tasks.append(asyncio.create_task(self.sessions.Session(context, context)))
        context.say(hello=wire.Hello(protocol_version=1, front_end_id="proxy", boot_epoch=1))
        context.say(frame_number=1, suspends=[suspension()])
        assert isinstance(context, FakeContext)
        return context

    def suspend_route(self) -> asyncio.Task[nap.SuspendRouteResponse]:
        request = nap.SuspendRouteRequest(suspension=suspension())
        request.suspension.key.front_end_id = "proxy"
        context: Any = FakeContext()
        task = asyncio.create_task(self.naps.SuspendRoute(request, context))
        self.tasks.append(task)  # type: ignore[arg-type]  # of another result, which nobody asks for there
        return task

    async def commits(self, count: int) -> asyncio.Future[None]:
        """The latest commit, when there are so many."""
        await until(lambda: len(self.journal.commits) == count)
        return self.journal.commits[-1]


def suspension() -> pb.Suspension:
    message = pb.Suspension(key=pb.SuspensionKey(boot_epoch=1, transaction_index=1, nap_number=1), resume_route="R")
    message.delay.FromSeconds(50)
    return message


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    for task in bench.tasks:
        task.cancel()
    await asyncio.gather(*bench.tasks, return_exceptions=True)


async def test_a_commit_waits_for_the_one_before_it(bench: Bench) -> None:
    front_end = bench.engine.attach("proxy", 1)
    done: list[JournalError | None] = []
    for number in (1, 2):
        held, _ = bench.engine.reserve(front_end, Request(NapKey(1, number, 1, 1), "R", 50.0, None, b""))
        bench.dispatcher.submit([held], done.append)
        first = await bench.commits(1)
    last = asyncio.create_task(bench.dispatcher.commit_once())  # as at the end of a drain
    bench.tasks.append(last)
    await asyncio.sleep(0)
    assert (len(bench.journal.commits), len(done)) == (1, 0)
    first.set_result(None)
    (await bench.commits(2)).set_result(None)
    await until(lambda: len(done) == 2)


@pytest.mark.parametrize("error", [None, JournalError("the disk is full")])
async def test_a_nap_that_is_sent_again_during_its_commit_shares_its_fate(
    bench: Bench, error: JournalError | None
) -> None:
    first = bench.open_session()
    commit = await bench.commits(1)
    second = bench.open_session()  # the stream was reset: everything unanswered comes again
    await until(second.requests.empty)
    assert not second.frame_results, "not accepted before the journal has it"
    if error is None:
        commit.set_result(None)
    else:
        commit.set_exception(error)
    (await bench.commits(2)).set_result(None)  # that of the second frame, which had nothing new
    await until(lambda: second.frame_results)
    refused = [refusal.key.transaction_index for result in second.frame_results for refusal in result.refusals]
    assert refused == ([] if error is None else [1])
    assert bench.engine.held_count == len(bench.journal.added) == (error is None)
    assert not first.frame_results, "its stream has ended"


@pytest.mark.parametrize("error", [None, JournalError("the disk is full")])
async def test_a_route_that_is_suspended_again_during_its_commit_shares_its_fate(
    bench: Bench, error: JournalError | None
) -> None:
    bench.engine.attach("proxy", 1)
    first = bench.suspend_route()
    commit = await bench.commits(1)
    again = bench.suspend_route()  # its caller lost patience
    await asyncio.sleep(0.01)
    assert not again.done(), "not accepted before the journal has it"
    if error is None:
        commit.set_result(None)
    else:
        commit.set_exception(error)
    (await bench.commits(2)).set_result(None)
    if error is None:
        assert not (await first).already_held
        assert (await again).already_held
    else:
        for call in (first, again):
            with pytest.raises(Refusal, match=r"journal|disk"):
                await call
        assert bench.engine.held_count == 0
