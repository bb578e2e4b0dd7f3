"""Commits and sessions.

Commits: one at a time, and nothing is accepted before its own is done, whoever asks how often. Sessions: what leaves
ahead of its time and what does not, and which answer means which continue.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NoReturn

import pytest

from sipnap.client.frames import SessionFrame
from sipnap.sidecar.core.engine import Engine
from sipnap.sidecar.core.suspension import Held, Limits, NapKey, Outcome, Phase, Request
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
        self.requests: asyncio.Queue[SessionFrame] = asyncio.Queue()
        self.written: list[wire.SessionResponse] = []
        self.continued: dict[int, tuple[float, pb.Continue]] = {}
        """Continues by transaction, each with the time when it was written."""

    def peer(self) -> str:
        return "test"

    async def write(self, response: wire.SessionResponse) -> None:
        self.written.append(response)
        now = asyncio.get_running_loop().time()
        self.continued |= {order.key.transaction_index: (now, order) for order in response.continues}

    async def abort_with_status(self, status: Any) -> NoReturn:
        raise Refusal(status.details)

    def __aiter__(self) -> FakeContext:
        return self

    async def __anext__(self) -> SessionFrame:
        return await self.requests.get()

    def say(self, **fields: Any) -> None:
        self.requests.put_nowait(SessionFrame.FromString(wire.SessionRequest(**fields).SerializeToString()))

    def suspend_encoded(self, *suspends: bytes) -> None:
        frame = SessionFrame(frame_number=1)
        frame.suspends.extend(suspends)
        self.requests.put_nowait(frame)

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
        context = self.say_hello()
        context.say(frame_number=1, suspends=[suspension()])
        return context

    def say_hello(self, ahead_seconds: float | None = None) -> FakeContext:
        context: Any = FakeContext()
        self.tasks.append(asyncio.create_task(self.sessions.Session(context, context)))
        hello = wire.Hello(protocol_version=1, front_end_id="proxy", boot_epoch=1)
        if ahead_seconds is not None:
            hello.ahead.FromNanoseconds(int(ahead_seconds * 1e9))
        context.say(hello=hello)
        assert isinstance(context, FakeContext)
        return context

    def hold(self, number: int, seconds: float) -> Held:
        """A nap that is accepted, without a session."""
        front_end = self.engine.attach("proxy", 1)
        held, _ = self.engine.reserve(front_end, Request(NapKey(1, number, 1, 1), "R", seconds, None, b""))
        self.engine.activate([held])
        self.dispatcher.start()
        return held

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


def suspension(number: int = 1, seconds: float = 50.0) -> pb.Suspension:
    key = pb.SuspensionKey(boot_epoch=1, transaction_index=number, nap_number=1)
    message = pb.Suspension(key=key, resume_route="R")
    message.delay.FromNanoseconds(int(seconds * 1e9))
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


# Continues ahead of their time


async def test_who_waits_itself_gets_continues_ahead_of_their_time_and_is_told(bench: Bench) -> None:
    session = bench.say_hello(ahead_seconds=0.8)
    await until(lambda: session.written)
    held = bench.hold(1, 1.0)
    await until(lambda: session.continued)
    (written_seconds, order) = session.continued[1]
    assert written_seconds >= held.due_seconds - 0.8
    assert order.wait_us > 0, "else nothing of this is tested"
    assert held.due_seconds <= written_seconds + order.wait_us * 1e-6 <= held.due_seconds + 0.05
    assert (sum(bench.dispatcher.lateness.counts), bench.dispatcher.lateness.sum_seconds) == (1, 0.0), "it is not late"


@pytest.mark.parametrize("ahead_seconds", [None, 0.0, -1.0])
async def test_who_does_not_gets_them_at_their_time(bench: Bench, ahead_seconds: float | None) -> None:
    session = bench.say_hello(ahead_seconds)
    await until(lambda: session.written)
    held = bench.hold(1, 0.05)
    await until(lambda: session.continued)
    (written_seconds, order) = session.continued[1]
    assert written_seconds >= held.due_seconds
    assert order.wait_us == 0


async def test_a_second_ahead_is_the_most(bench: Bench) -> None:
    session = bench.say_hello(ahead_seconds=5.0)
    await until(lambda: session.written)
    assert bench.engine.front_ends["proxy"].ahead_seconds == 1.0


async def test_a_session_that_does_not_wait_takes_over_from_one_that_does(bench: Bench) -> None:
    """What was to leave ahead of its time for the one leaves at its time for the other."""
    first = bench.say_hello(ahead_seconds=0.8)
    await until(lambda: first.written)
    held = bench.hold(1, 1.0)
    second = bench.say_hello()
    await until(lambda: second.continued)
    (written_seconds, order) = second.continued[1]
    assert written_seconds >= held.due_seconds
    assert order.wait_us == 0
    assert not first.continued


async def test_what_has_left_ahead_leaves_again_at_its_time_for_one_that_does_not_wait(bench: Bench) -> None:
    first = bench.say_hello(ahead_seconds=0.8)
    await until(lambda: first.written)
    held = bench.hold(1, 1.0)
    await until(lambda: first.continued)
    second = bench.say_hello()
    await until(lambda: second.continued)
    (written_seconds, order) = second.continued[1]
    assert written_seconds >= held.due_seconds
    assert order.wait_us == 0


async def test_what_is_late_leaves_at_once(bench: Bench) -> None:
    held = bench.hold(1, 0.01)
    await until(lambda: held.phase is Phase.CONTINUING)
    session = bench.say_hello(ahead_seconds=0.5)
    await until(lambda: session.continued)
    assert session.continued[1][1].wait_us == 0


# Answers by number


async def continued_twice(bench: Bench) -> tuple[FakeContext, list[Held]]:
    session = bench.say_hello()
    naps = [bench.hold(number, 0.01) for number in (1, 2)]
    await until(lambda: len(session.continued) == 2)
    assert {order.continue_number for _, order in session.continued.values()} == {1, 2}
    return session, naps


async def test_an_answer_by_number_ends_what_it_names(bench: Bench) -> None:
    session, naps = await continued_twice(bench)
    (_, second) = session.continued[2]
    session.say(applied=[second.continue_number, second.continue_number, 77])
    await until(lambda: naps[1].phase is Phase.ENDED)
    session.say(heartbeat=wire.Heartbeat(nonce=5))
    await until(lambda: any(response.HasField("heartbeat") for response in session.written))
    assert naps[0].phase is Phase.CONTINUING
    assert bench.engine.counters.outcomes[Outcome.APPLIED] == 1, "once, and what was never sent is nobody's"
    assert set(bench.engine.front_ends["proxy"].continuing.values()) == {naps[0]}


async def test_a_number_counts_in_its_own_stream_only(bench: Bench) -> None:
    await continued_twice(bench)
    again = bench.say_hello()
    await until(lambda: len(again.continued) == 2)
    assert {order.continue_number for _, order in again.continued.values()} == {1, 2}, "each stream counts anew"
    assert [order.attempt for _, order in again.continued.values()] == [2, 2]
    third = bench.say_hello()
    third.say(applied=[1, 2])  # read before anything is sent in this stream
    await until(lambda: len(third.continued) == 2)
    assert bench.engine.counters.outcomes[Outcome.APPLIED] == 0


async def test_an_answer_by_key_makes_the_number_mean_nothing(bench: Bench) -> None:
    session, naps = await continued_twice(bench)
    (_, order) = session.continued[1]
    session.say(results=[wire.ContinueResult(key=order.key, outcome=pb.CONTINUE_OUTCOME_GONE)])
    session.say(applied=[order.continue_number])
    session.say(cancels=[pb.SuspensionKey(boot_epoch=1, transaction_index=77, transaction_label=8, nap_number=1)])
    await until(lambda: any(response.cancel_results for response in session.written))
    assert naps[0].phase is Phase.ENDED
    outcomes = bench.engine.counters.outcomes
    assert (outcomes[Outcome.GONE], outcomes[Outcome.APPLIED]) == (1, 0)


# What a frame may hold


async def test_cancels_are_answered_by_key(bench: Bench) -> None:
    session = bench.say_hello()
    held = bench.hold(1, 50.0)
    keys = [pb.SuspensionKey(boot_epoch=1, transaction_index=n, transaction_label=1, nap_number=1) for n in (1, 2)]
    session.say(cancels=keys)
    await until(lambda: any(response.cancel_results for response in session.written))
    results = [result for response in session.written for result in response.cancel_results]
    assert [result.key for result in results] == keys
    assert [result.outcome for result in results] == [pb.CANCEL_OUTCOME_CANCELLED, pb.CANCEL_OUTCOME_GONE]
    assert held.phase is Phase.ENDED


async def test_what_cannot_be_decoded_is_refused_by_itself(bench: Bench) -> None:
    session = bench.say_hello()
    session.suspend_encoded(b"\xff", suspension(1).SerializeToString())
    (await bench.commits(1)).set_result(None)
    await until(lambda: session.frame_results)
    (result,) = session.frame_results
    assert [refusal.reason for refusal in result.refusals] == [pb.REFUSAL_REASON_INVALID]
    assert [held.key.transaction_index for held in bench.journal.added] == [1]


async def test_what_is_held_is_kept_as_it_came(bench: Bench) -> None:
    """Neither decoded and encoded again, nor without what this version does not know."""
    session = bench.say_hello()
    encoded = suspension(1).SerializeToString() + b"\xfa\x3e\x03new"  # a field of a later version
    session.suspend_encoded(encoded)
    (await bench.commits(1)).set_result(None)
    await until(lambda: session.frame_results)
    assert [held.payload for held in bench.journal.added] == [encoded]
