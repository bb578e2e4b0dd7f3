"""Commits and sessions.

Commits: one at a time, and nothing is accepted before its own is done, whoever asks how often. Sessions: what leaves
ahead of its time and what does not, and which number means which nap.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NoReturn

import pytest

from sipnap.client.frames import SessionFrame
from sipnap.sidecar.core.engine import Engine
from sipnap.sidecar.core.groups import JobPolicy, JobResult, WorkerGroup
from sipnap.sidecar.core.histogram import Histogram
from sipnap.sidecar.core.suspension import Held, Limits, NapKey, Outcome, Phase, Reason, Request
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
        self.due: dict[int, float] = {}
        """Numbers of what is over, each with the time when it was written."""

    def peer(self) -> str:
        return "test"

    async def write(self, response: wire.SessionResponse) -> None:
        self.written.append(response)
        now = asyncio.get_running_loop().time()
        self.due |= dict.fromkeys(response.due, now)
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
        group = WorkerGroup("default", 1, max_queued=3)
        self.engine = Engine(asyncio.get_running_loop().time, Limits(), [group], {"lookup": JobPolicy()})
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

    async def opened(self, ahead_seconds: float | None = None) -> FakeContext:
        """A session whose Hello has been answered."""
        session = self.say_hello(ahead_seconds)
        await until(lambda: session.written)
        return session

    async def accept(self, session: FakeContext, number: int, seconds: float) -> tuple[int, Held]:
        """A nap of that session, accepted: its number there, and itself."""
        results = len(session.frame_results)
        commits = len(self.journal.commits)
        session.say(frame_number=results + 1, suspends=[suspension(number, seconds)])
        (await self.commits(commits + 1)).set_result(None)
        await until(lambda: len(session.frame_results) > results)
        (told,) = session.frame_results[-1].numbers
        return told, self.held(number)

    def held(self, number: int, nap_number: int = 1) -> Held:
        """What is held under that transaction index."""
        return self.engine.front_ends["proxy"].held[NapKey(1, number, 0, nap_number).pack()]

    async def heard(self, session: FakeContext) -> None:
        """Return when the sidecar has read all that was said in the session so far."""
        session.say(heartbeat=wire.Heartbeat(nonce=5))
        await until(lambda: any(response.HasField("heartbeat") for response in session.written))

    def hold(self, number: int, seconds: float) -> Held:
        """A nap that is accepted, without a session."""
        front_end = self.engine.front_ends.get("proxy") or self.engine.attach("proxy", 1)
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


# What is over as it was asked for, ahead of its time


async def test_who_waits_itself_is_told_of_its_naps_by_number_ahead_of_their_time(bench: Bench) -> None:
    session = await bench.opened(ahead_seconds=0.8)
    number, held = await bench.accept(session, 1, 1.0)
    assert number == held.sequence
    await until(lambda: session.due)
    assert held.due_seconds - 0.8 <= session.due[number] < held.due_seconds, "else nothing of this is tested"
    assert held.phase is Phase.CONTINUING
    assert (held.attempt, session.continued) == (1, {})
    assert (sum(bench.dispatcher.lateness.counts), bench.dispatcher.lateness.sum_seconds) == (1, 0.0), "it is not late"


async def test_what_is_told_late_is_late(bench: Bench) -> None:
    session = await bench.opened(ahead_seconds=0.5)
    session.say(frame_number=1, suspends=[suspension(1, 0.001)])
    commit = await bench.commits(1)
    held, time = bench.held(1), asyncio.get_running_loop().time
    await until(lambda: time() > held.due_seconds + 0.02)
    commit.set_result(None)
    await until(lambda: session.due)
    assert 0.02 <= bench.dispatcher.lateness.sum_seconds < time() - held.due_seconds


def test_lateness_counts_what_is_not_late_as_such() -> None:
    lateness = Histogram()
    lateness.observe_all([-0.5, 0.0, 0.003, 100.0])
    lateness.observe(0.003, 2)
    assert (lateness.counts[0], lateness.counts[2], lateness.counts[-1], sum(lateness.counts)) == (2, 3, 1, 6)
    assert lateness.sum_seconds == pytest.approx(100.009)


async def test_numbers_are_told_before_they_are_due(bench: Bench) -> None:
    session = await bench.opened(ahead_seconds=0.5)
    session.say(frame_number=1, suspends=[suspension(1, 0.001)])
    (await bench.commits(1)).set_result(None)
    await until(lambda: session.due)
    known: set[int] = set()
    for response in session.written:
        known.update(number for result in response.frame_results for number in result.numbers)
        assert known.issuperset(response.due)


@pytest.mark.parametrize("ahead_seconds", [None, 0.0, -1.0])
async def test_who_does_not_gets_continues_at_their_time(bench: Bench, ahead_seconds: float | None) -> None:
    session = await bench.opened(ahead_seconds)
    session.say(frame_number=1, suspends=[suspension(1, 0.05)])
    (await bench.commits(1)).set_result(None)
    held = bench.held(1)
    await until(lambda: session.continued)
    (written_seconds, _) = session.continued[1]
    assert written_seconds >= held.due_seconds
    assert not session.due
    assert [list(result.numbers) for result in session.frame_results] == [[]]


async def test_a_second_ahead_is_the_most(bench: Bench) -> None:
    await bench.opened(ahead_seconds=5.0)
    stream = bench.engine.front_ends["proxy"].stream
    assert stream is not None
    assert stream.ahead_seconds == 1.0


@pytest.mark.parametrize("ahead_seconds", [None, 0.8])
@pytest.mark.parametrize("has_left", [True, False])
async def test_another_stream_gets_a_full_continue_at_its_time(
    bench: Bench, ahead_seconds: float | None, has_left: bool
) -> None:
    """The numbers of the one mean nothing in the other, whether or not the nap was told of there already."""
    first = await bench.opened(ahead_seconds=0.8)
    first.say(frame_number=1, suspends=[suspension(1, 1.0)])
    (await bench.commits(1)).set_result(None)
    held = bench.held(1)
    await until(lambda: first.due if has_left else held.phase is Phase.PENDING)
    second = await bench.opened(ahead_seconds)
    await until(lambda: second.continued)
    (written_seconds, order) = second.continued[1]
    assert written_seconds >= held.due_seconds
    assert order.attempt == 1 + has_left
    assert not second.due
    assert bool(first.due) == has_left


async def test_what_another_program_suspended_comes_in_full_at_its_time(bench: Bench) -> None:
    session = await bench.opened(ahead_seconds=0.8)
    held = bench.hold(1, 0.9)
    await until(lambda: session.continued)
    assert session.continued[1][0] >= held.due_seconds
    assert not session.due


async def test_a_task_comes_in_full_at_its_time(bench: Bench) -> None:
    session = await bench.opened(ahead_seconds=0.5)
    task = suspension(1, 0.1)
    task.key.nap_number, task.data = 0, b"data"
    session.say(frame_number=1, suspends=[task])
    (await bench.commits(1)).set_result(None)
    held = bench.held(1, nap_number=0)
    await until(lambda: session.continued)
    assert session.continued[1][0] >= held.due_seconds
    assert session.continued[1][1].data == b"data"
    assert not session.due
    session.say(applied=[held.sequence])
    await bench.heard(session)
    assert held.phase is Phase.CONTINUING, "a number names only what came by number"


async def test_what_has_operations_comes_in_full(bench: Bench) -> None:
    session = await bench.opened(ahead_seconds=0.5)
    wanted = suspension(1, 50.0)
    wanted.operations.add(name="lookup")
    session.say(frame_number=1, suspends=[wanted])
    (await bench.commits(1)).set_result(None)
    held = bench.held(1)
    await until(lambda: held.phase is Phase.PENDING)
    (job,) = held.jobs
    assert bench.dispatcher.take_job(job.group) is job
    bench.dispatcher.job_done(job, JobResult())
    await until(lambda: session.continued)
    assert not session.due
    assert session.continued[1][0] < held.due_seconds, "before its time, since its operations have ended"


async def test_what_has_operations_that_take_too_long_comes_in_full(bench: Bench) -> None:
    session = await bench.opened(ahead_seconds=0.5)
    wanted = suspension(1, 0.1)
    wanted.operations.add(name="lookup")
    session.say(frame_number=1, suspends=[wanted])
    (await bench.commits(1)).set_result(None)
    held = bench.held(1)
    await until(lambda: session.continued or session.due)
    assert not session.due
    (written_seconds, order) = session.continued[1]
    assert written_seconds >= held.due_seconds
    assert order.status == pb.CONTINUE_STATUS_TIMED_OUT


async def test_what_is_late_leaves_at_once(bench: Bench) -> None:
    held = bench.hold(1, 0.01)
    await until(lambda: held.phase is Phase.CONTINUING)
    session = await bench.opened(ahead_seconds=0.5)
    await until(lambda: session.continued)
    assert not session.due


# Numbers


async def test_who_has_no_number_is_told_zero(bench: Bench) -> None:
    session = await bench.opened(ahead_seconds=0.1)
    await bench.accept(session, 2, 50.0)
    bad = suspension(3)
    bad.resume_route = "a b"
    session.suspend_encoded(
        *[one.SerializeToString() for one in (suspension(1), suspension(2), bad)], b"\xff",
        suspension(1).SerializeToString(), suspension(4).SerializeToString(),
    )  # fmt: skip
    (await bench.commits(2)).set_result(None)
    await until(lambda: len(session.frame_results) == 2)
    result = session.frame_results[-1]
    first, fourth = bench.held(1).sequence, bench.held(4).sequence
    assert list(result.numbers) == [first, 0, 0, 0, 0, fourth]
    assert len(result.refusals) == 2


async def test_what_the_journal_did_not_take_has_no_number(bench: Bench) -> None:
    session = await bench.opened(ahead_seconds=0.1)
    session.say(frame_number=1, suspends=[suspension(1)])
    (await bench.commits(1)).set_exception(JournalError("the disk is full"))
    await until(lambda: session.frame_results)
    (result,) = session.frame_results
    assert not any(result.numbers)
    assert len(result.refusals) == 1


async def due_twice(bench: Bench) -> tuple[FakeContext, list[Held]]:
    session = await bench.opened(ahead_seconds=0.5)
    naps = [(await bench.accept(session, number, 0.01))[1] for number in (1, 2)]
    await until(lambda: len(session.due) == 2)
    return session, naps


async def test_an_answer_by_number_ends_what_it_names(bench: Bench) -> None:
    session, naps = await due_twice(bench)
    session.say(applied=[naps[1].sequence, naps[1].sequence, 77])
    await until(lambda: naps[1].phase is Phase.ENDED)
    await bench.heard(session)
    assert naps[0].phase is Phase.CONTINUING
    assert bench.engine.counters.outcomes[Outcome.APPLIED] == 1, "once, and what has no number is nobody's"
    assert set(bench.engine.front_ends["proxy"].continuing.values()) == {naps[0]}


async def test_an_answer_before_its_time_has_come_is_ignored(bench: Bench) -> None:
    session = await bench.opened(ahead_seconds=0.1)
    number, held = await bench.accept(session, 1, 50.0)
    session.say(applied=[number])
    await bench.heard(session)
    assert held.phase is Phase.PENDING


async def test_a_number_counts_in_its_own_stream_only(bench: Bench) -> None:
    _, naps = await due_twice(bench)
    again = await bench.opened(ahead_seconds=0.5)
    await until(lambda: len(again.continued) == 2)
    assert [order.attempt for _, order in again.continued.values()] == [2, 2]
    again.say(applied=[held.sequence for held in naps])
    await bench.heard(again)
    assert {held.phase for held in naps} == {Phase.CONTINUING}
    assert bench.engine.counters.outcomes[Outcome.APPLIED] == 0


async def test_an_answer_by_key_makes_the_number_mean_nothing(bench: Bench) -> None:
    session, naps = await due_twice(bench)
    key = pb.SuspensionKey(boot_epoch=1, transaction_index=1, nap_number=1)
    session.say(results=[wire.ContinueResult(key=key, outcome=pb.CONTINUE_OUTCOME_GONE)])
    session.say(applied=[naps[0].sequence])
    await bench.heard(session)
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


# What is left of a delay


async def test_what_is_left_counts_and_the_delay_is_kept(bench: Bench) -> None:
    session = await bench.opened(ahead_seconds=0.1)
    before = asyncio.get_running_loop().time()
    session.say(frame_number=1, suspends=[suspension(1, 50.0), suspension(2, 50.0)], left_us=[20_000_000, 30_000_001])
    (await bench.commits(1)).set_result(None)
    first, second = bench.held(1), bench.held(2)
    assert before + 20.0 <= first.due_seconds < before + 20.0 + 5.0
    assert second.due_seconds - first.due_seconds == pytest.approx(10.000001)
    assert pb.Suspension.FromString(first.payload).delay.seconds == 50


@pytest.mark.parametrize("left_us", [[1_000_000], [1_000_000] * 3])
async def test_not_as_many_lefts_as_suspends_refuses_each(bench: Bench, left_us: list[int]) -> None:
    session = await bench.opened(ahead_seconds=0.1)
    session.say(frame_number=1, suspends=[suspension(1), suspension(2)], left_us=left_us)
    (await bench.commits(1)).set_result(None)
    await until(lambda: session.frame_results)
    (result,) = session.frame_results
    assert [refusal.key.transaction_index for refusal in result.refusals] == [1, 2]
    assert {refusal.reason for refusal in result.refusals} == {pb.REFUSAL_REASON_INVALID}
    assert {refusal.message for refusal in result.refusals} == {f"left_us has {len(left_us)} entries for 2 suspends"}
    assert not any(result.numbers)
    assert bench.engine.held_count == 0
    assert bench.engine.counters.refused[Reason.INVALID] == 2


@pytest.mark.parametrize("left_us", [0, 2**64 - 1])
async def test_what_is_left_is_a_delay_like_any_other(bench: Bench, left_us: int) -> None:
    session = await bench.opened(ahead_seconds=0.1)
    session.say(frame_number=1, suspends=[suspension(1)], left_us=[left_us])
    (await bench.commits(1)).set_result(None)
    await until(lambda: session.frame_results)
    (result,) = session.frame_results
    assert [refusal.reason for refusal in result.refusals] == [pb.REFUSAL_REASON_DELAY_OUT_OF_RANGE]
