"""The engine's rules, under a clock that only the tests move."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sipnap.sidecar.core.engine import Engine
from sipnap.sidecar.core.groups import Job, JobPolicy, JobResult, WorkerGroup
from sipnap.sidecar.core.streams import Stream
from sipnap.sidecar.core.suspension import (
    CancelOutcome,
    Held,
    Limits,
    NapKey,
    OperationRequest,
    Outcome,
    Phase,
    Reason,
    Refused,
    Request,
    Status,
)
from tests.support.clock import ManualClock

EPOCH = 7


def nap(
    number: int,
    delay_seconds: float = 1.0,
    *,
    epoch: int = EPOCH,
    deadline_seconds: float | None = None,
    operations: Sequence[str | OperationRequest] = (),
    route: str = "RESUME",
) -> Request:
    wanted = tuple(OperationRequest(given) if isinstance(given, str) else given for given in operations)
    return Request(NapKey(epoch, number, number + 1, 1), route, delay_seconds, deadline_seconds, b"payload", wanted)


class Bench:
    """An engine with one connected front end."""

    def __init__(self, limits: Limits | None = None, workers: int = 2) -> None:
        self.clock = ManualClock()
        self.group = WorkerGroup("default", workers, max_queued=3)
        self.engine = Engine(self.clock, limits or Limits(), [self.group], {"lookup": JobPolicy()})
        self.front_end = self.engine.attach("kamailio", EPOCH)

    def accept(self, request: Request) -> Held:
        held, _ = self.engine.reserve(self.front_end, request)
        self.engine.activate([held])
        return held

    def number(self, number: int, delay_seconds: float = 1.0) -> Held:
        """A nap that has a number in the present stream, not accepted yet."""
        request = nap(number, delay_seconds, epoch=self.front_end.boot_epoch)
        held, is_new = self.engine.take_in(
            self.front_end, request.key.pack(), "RESUME", delay_seconds, None, b"payload", (), self.clock(),
            self.front_end.stream,
        )  # fmt: skip
        assert is_new
        return held

    def told(self, most: int = 1000) -> list[Held]:
        return [held for told in self.engine.pop_due(most).told for held in told.naps.values()]

    def take(self) -> Job | None:
        return self.engine.jobs.take(self.group)

    def due(self) -> list[Held]:
        return self.engine.pop_due(1000).continues

    def refused(self, request: Request) -> Reason:
        with pytest.raises(Refused) as caught:
            self.engine.reserve(self.front_end, request)
        assert self.engine.counters.refused[caught.value.reason] > 0
        return caught.value.reason


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_nap_is_continued_at_its_time_and_not_before(bench: Bench) -> None:
    held = bench.accept(nap(1, 4.0))
    bench.clock.advance(3.999)
    assert bench.due() == []
    bench.clock.advance(0.001)
    assert bench.due() == [held]
    assert held.phase is Phase.CONTINUING


def test_what_the_journal_does_not_have_never_fires(bench: Bench) -> None:
    held, is_new = bench.engine.reserve(bench.front_end, nap(1, 1.0))
    assert is_new
    bench.clock.advance(5.0)
    assert bench.due() == []
    assert bench.engine.find("kamailio", held.key) is None
    bench.engine.activate([held])
    assert bench.due() == [held], "its time ran during the commit"


def test_what_the_journal_refused_was_never_there(bench: Bench) -> None:
    held, _ = bench.engine.reserve(bench.front_end, nap(1))
    bench.engine.abandon([held])
    bench.clock.advance(5.0)
    assert bench.due() == []
    assert bench.engine.held_count == 0
    assert bench.engine.counters.accepted == 0
    assert bench.engine.counters.refused[Reason.JOURNAL_UNAVAILABLE] == 1


def test_the_same_key_again_changes_nothing(bench: Bench) -> None:
    held = bench.accept(nap(1, 4.0))
    again, is_new = bench.engine.reserve(bench.front_end, nap(1, 1.0))
    assert again is held
    assert not is_new
    bench.clock.advance(2.0)
    assert bench.due() == []


def test_an_answer_ends_it_once(bench: Bench) -> None:
    held = bench.accept(nap(1))
    bench.clock.advance(1.0)
    bench.due()
    assert bench.engine.settle(bench.front_end, held.key, Outcome.APPLIED) is held
    assert bench.engine.settle(bench.front_end, held.key, Outcome.APPLIED) is None
    assert bench.engine.counters.outcomes[Outcome.APPLIED] == 1
    assert bench.engine.take_ended() == [held]
    assert bench.engine.take_ended() == []


def test_an_answer_to_what_is_not_due_is_ignored(bench: Bench) -> None:
    held = bench.accept(nap(1))
    assert bench.engine.settle(bench.front_end, held.key, Outcome.APPLIED) is None
    assert held.phase is Phase.PENDING


def test_unanswered_continues_are_there_for_the_next_session(bench: Bench) -> None:
    first, second = bench.accept(nap(1, 2.0)), bench.accept(nap(2, 1.0))
    bench.engine.detach(bench.front_end)
    bench.clock.advance(2.0)
    assert bench.due() == [second, first]
    front_end = bench.engine.attach("kamailio", EPOCH)
    assert list(front_end.continuing.values()) == [second, first]
    assert [bench.engine.mark_sent(first), bench.engine.mark_sent(first)] == [1, 2]


def test_nobody_answers_until_the_deadline(bench: Bench) -> None:
    held = bench.accept(nap(1, 1.0, deadline_seconds=3.0))
    bench.clock.advance(1.0)
    assert bench.due() == [held]
    bench.clock.advance(2.0)
    assert bench.due() == []
    assert held.phase is Phase.ENDED
    assert bench.engine.counters.lost == 1
    assert bench.engine.held_count == 0


def test_a_short_deadline_does_not_hide_a_long_one(bench: Bench) -> None:
    naps = [bench.accept(nap(number, deadline_seconds=seconds)) for number, seconds in enumerate([None, 2.5, 1.5])]
    bench.clock.advance(1.0)
    assert bench.due() == naps
    for seconds, lost in ((0.499, 0), (0.001, 1), (0.5, 1), (0.499, 1), (0.001, 2), (58.499, 2), (0.001, 3)):
        bench.clock.advance(seconds)
        assert bench.due() == []
        assert bench.engine.counters.lost == lost


def test_a_restart_of_the_front_end_ends_its_earlier_life(bench: Bench) -> None:
    held = bench.accept(nap(1))
    committing, _ = bench.engine.reserve(bench.front_end, nap(2))
    front_end = bench.engine.attach("kamailio", EPOCH + 1)
    assert held.phase is Phase.ENDED
    bench.engine.activate([committing])
    assert committing.phase is Phase.ENDED, "also what was being committed meanwhile"
    assert not front_end.held
    assert bench.engine.counters.outcomes[Outcome.GONE] == 2
    assert bench.engine.counters.accepted == 2, "whatever has ended was accepted once"
    assert bench.refused(nap(3)) is Reason.STALE_EPOCH
    assert bench.accept(nap(3, epoch=EPOCH + 1)).phase is Phase.PENDING


def test_cancel_is_definite(bench: Bench) -> None:
    engine = bench.engine
    held = bench.accept(nap(1))
    assert engine.cancel("kamailio", held.key) is CancelOutcome.CANCELLED
    assert engine.cancel("kamailio", held.key) is CancelOutcome.GONE
    assert engine.cancel("nobody", held.key) is CancelOutcome.GONE
    due = bench.accept(nap(2))
    bench.clock.advance(1.0)
    assert bench.due() == [due], "the cancelled one does not fire"
    assert engine.cancel("kamailio", due.key) is CancelOutcome.CONTINUING


def test_a_cancel_during_the_commit_is_final(bench: Bench) -> None:
    held, _ = bench.engine.reserve(bench.front_end, nap(1))
    assert bench.engine.cancel("kamailio", held.key) is CancelOutcome.CANCELLED
    bench.engine.activate([held])
    bench.clock.advance(5.0)
    assert bench.due() == []
    assert bench.engine.take_ended() == [held], "the journal has it by now and must forget it"
    counters = bench.engine.counters
    assert (counters.accepted, counters.cancelled) == (1, 1), "whatever has ended was accepted once"


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (nap(1, 0.0), Reason.DELAY_OUT_OF_RANGE),
        (nap(1, -1.0), Reason.DELAY_OUT_OF_RANGE),
        (nap(1, float("nan")), Reason.DELAY_OUT_OF_RANGE),
        (nap(1, 100.001), Reason.DELAY_OUT_OF_RANGE),
        (nap(1, 5.0, deadline_seconds=5.0), Reason.DELAY_OUT_OF_RANGE),
        (nap(1, epoch=EPOCH - 1), Reason.STALE_EPOCH),
        (nap(1, route=""), Reason.INVALID),
        (nap(1, route="A B"), Reason.INVALID),
        (nap(1, route="R\n"), Reason.INVALID),
        (nap(1, route="R" * 65), Reason.INVALID),
        (Request(NapKey(EPOCH, 1, 1, 1), "R", 1.0, None, b"x" * 65_537), Reason.TOO_LARGE),
        (nap(1, operations=("nothing",)), Reason.OPERATION_UNKNOWN),
        (nap(1, operations=(OperationRequest("lookup", "nowhere"),)), Reason.OPERATION_UNKNOWN),
    ],
)
def test_refusals(bench: Bench, request_: Request, reason: Reason) -> None:
    assert bench.refused(request_) is reason
    assert bench.engine.held_count == 0


def test_the_limits_are_inclusive(bench: Bench) -> None:
    assert bench.accept(nap(1, 100.0)).phase is Phase.PENDING


def test_full_and_draining_refuse_at_the_door() -> None:
    bench = Bench(Limits(max_pending=2))
    bench.accept(nap(1))
    bench.accept(nap(2))
    assert bench.refused(nap(3)) is Reason.FULL
    bench.engine.draining = True
    assert bench.refused(nap(4)) is Reason.DRAINING
    bench.clock.advance(1.0)
    assert len(bench.due()) == 2, "what is held is still continued"


def test_too_many_front_ends_push_out_only_idle_ones() -> None:
    bench = Bench(Limits(max_front_ends=2))
    idle = bench.engine.attach("idle", 1)
    with pytest.raises(Refused):
        bench.engine.attach("third", 1)
    bench.engine.detach(idle)
    bench.engine.attach("third", 1)
    assert set(bench.engine.front_ends) == {"kamailio", "third"}


def test_a_front_end_that_left_is_known_for_a_while(bench: Bench) -> None:
    bench.engine.detach(bench.front_end)
    bench.clock.advance(59.0)
    assert bench.engine.front_ends.reachable("kamailio") is bench.front_end
    bench.clock.advance(2.0)
    with pytest.raises(Refused) as caught:
        bench.engine.front_ends.reachable("kamailio")
    assert caught.value.reason is Reason.FRONT_END_UNKNOWN


def test_sleepers_wake_at_their_time_and_may_leave(bench: Bench) -> None:
    stays, leaves = bench.engine.sleep(1.0, "a"), bench.engine.sleep(1.0, "b")
    bench.engine.wake(leaves)
    bench.engine.wake(leaves)
    assert bench.engine.sleepers == 1
    bench.clock.advance(0.999)
    assert bench.engine.pop_due(10).sleepers == []
    bench.clock.advance(0.001)
    assert bench.engine.pop_due(10).sleepers == [stays]
    assert bench.engine.sleepers == 0
    with pytest.raises(Refused):
        bench.engine.sleep(101.0, "c")


def test_listing_goes_page_by_page_in_order_of_acceptance(bench: Bench) -> None:
    other = bench.engine.attach("other", 1)
    expected = []
    for number in range(10):
        front_end, epoch = (bench.front_end, EPOCH) if number % 3 else (other, 1)
        held, _ = bench.engine.reserve(front_end, nap(number, epoch=epoch))
        bench.engine.activate([held])
        expected.append(held)
    seen: list[Held] = []
    while page := bench.engine.list("", seen[-1].sequence if seen else 0, 3):
        seen += page
    assert seen == expected
    assert bench.engine.list("other", 0, 100) == [held for held in expected if held.front_end is other]
    assert bench.engine.list("nobody", 0, 100) == []


# Streams that number their naps


def numbering(ahead_seconds: float = 0.5) -> Bench:
    """A bench whose stream is told of its naps so long before their time."""
    bench = Bench()
    bench.engine.attach("kamailio", EPOCH, ahead_seconds)
    return bench


def test_a_stream_is_told_of_its_naps_between_once_and_half_of_ahead_before_their_time() -> None:
    bench = numbering(0.5)
    naps = [bench.number(n, 4.0 + n / 100) for n in range(100)]
    bench.engine.activate(naps)
    told: list[Held] = []
    looks = 0
    for _ in range(6000):
        bench.clock.advance(0.001)
        if now_told := bench.told():
            looks += 1
            told += now_told
            assert all(0.249 < held.due_seconds - bench.clock.now_seconds <= 0.5 for held in now_told)
    assert sorted(held.sequence for held in told) == [held.sequence for held in naps]
    assert looks <= 1.0 / 0.25 + 1, "in rounds: that is what they are for"
    assert {(held.phase, held.attempt) for held in naps} == {(Phase.CONTINUING, 1)}
    assert list(bench.front_end.continuing) == [held.sequence for held in told]


def test_a_number_answers_once_and_for_its_own_stream_only() -> None:
    bench = numbering()
    engine, front_end = bench.engine, bench.front_end
    naps = [bench.number(number) for number in range(3)]
    other, _ = engine.reserve(front_end, nap(9))
    engine.activate([*naps, other])
    stream = front_end.stream
    engine.settle_applied(front_end, stream, [held.sequence for held in naps])
    assert {held.phase for held in naps} == {Phase.PENDING}, "nobody was told yet"
    bench.clock.advance(1.0)
    due = engine.pop_due(1000)
    assert [set(told.naps) for told in due.told] == [{held.sequence for held in naps}]
    assert due.continues == [other], "it has no number"
    engine.settle_applied(front_end, stream, [naps[0].sequence, naps[0].sequence, other.sequence, 12345])
    engine.attach("kamailio", EPOCH, 0.5)
    engine.settle_applied(front_end, front_end.stream, [held.sequence for held in naps])
    engine.settle_applied(front_end, None, [held.sequence for held in naps])
    assert [held.phase for held in [*naps, other]] == [Phase.ENDED] + [Phase.CONTINUING] * 3
    assert engine.counters.outcomes[Outcome.APPLIED] == 1
    assert engine.take_ended() == naps[:1]
    assert list(front_end.held.values()) == [*naps[1:], other]


@pytest.mark.parametrize("ahead_seconds", [0.0, 0.5, 1.0])
def test_what_another_stream_numbered_is_continued_in_full_at_its_time(ahead_seconds: float) -> None:
    bench = numbering(1.0)
    held = bench.number(1, 4.0)
    bench.engine.activate([held])
    stream = bench.front_end.stream
    bench.engine.attach("kamailio", EPOCH, ahead_seconds)
    bench.clock.advance(3.999)
    due = bench.engine.pop_due(1000)
    assert (due.told, due.continues) == ([], [])
    bench.clock.advance(0.001)
    due = bench.engine.pop_due(1000)
    assert (due.told, due.continues) == ([], [held])
    bench.engine.settle_applied(bench.front_end, stream, [held.sequence])
    assert held.phase is Phase.CONTINUING, "that stream was never told of it"


def test_what_was_numbered_during_a_reconnect_is_continued_in_full() -> None:
    """Its frame came in one stream, its commit ended in the next."""
    bench = numbering(1.0)
    held = bench.number(1, 4.0)
    stream = bench.front_end.stream
    bench.engine.attach("kamailio", EPOCH, 1.0)
    bench.engine.activate([held])
    bench.clock.advance(3.999)
    assert bench.told() == []
    bench.clock.advance(0.001)
    assert bench.due() == [held]
    bench.engine.settle_applied(bench.front_end, stream, [held.sequence])
    assert held.phase is Phase.CONTINUING, "that stream was never told of it"


def test_what_was_numbered_before_a_restart_is_over() -> None:
    bench = numbering(1.0)
    held = bench.number(1, 4.0)
    bench.engine.attach("kamailio", EPOCH + 1, 1.0)
    bench.engine.activate([held])
    assert held.phase is Phase.ENDED
    assert bench.engine.counters.outcomes[Outcome.GONE] == 1
    assert len(bench.engine.timers) == 0


def test_a_cancelled_nap_is_not_told_of_and_leaves_no_timer() -> None:
    bench = numbering()
    naps = [bench.number(number) for number in range(3)]
    bench.engine.activate(naps)
    for held in naps[:2]:
        assert bench.engine.cancel("kamailio", held.key) is CancelOutcome.CANCELLED
    assert len(bench.engine.timers) == 1
    bench.clock.advance(1.0)
    assert bench.told() == naps[2:]
    again = bench.number(4)
    bench.engine.activate([again])
    bench.engine.cancel("kamailio", again.key)
    assert len(bench.engine.timers) == 1, "the watch over the deadline of the one that was told of"


def test_what_is_disowned_is_told_to_nobody() -> None:
    bench = numbering()
    bench.engine.activate([bench.number(1)])
    bench.engine.disown(bench.front_end)
    bench.clock.advance(1.0)
    assert bench.told() == []
    assert len(bench.engine.timers) == 0


def test_a_large_round_takes_several_looks() -> None:
    bench = numbering()
    naps = [bench.number(number) for number in range(10)]
    bench.engine.activate(naps)
    bench.clock.advance(0.999)
    assert [bench.told(4), bench.told(4), bench.told(4), bench.told(4)] == [naps[:4], naps[4:8], naps[8:], []]


def test_several_rounds_share_a_look() -> None:
    bench = numbering()
    naps = [bench.number(number, 1.0 + number // 3) for number in range(9)]
    bench.engine.activate(naps)
    bench.clock.advance(5.0)
    due = bench.engine.pop_due(4)
    assert [len(told.naps) for told in due.told] == [3, 1]
    assert [len(bench.told(4)), len(bench.told(4)), len(bench.told(4))] == [4, 1, 0]


def test_what_is_answered_for_late_leaves_no_timer() -> None:
    bench = numbering()
    held = bench.number(1)
    bench.engine.activate([held])
    bench.clock.advance(1.0)
    bench.told()
    bench.clock.advance(1.0)
    bench.told()  # a look who has not answered
    assert held.timer_sequence, "else nothing of this is tested"
    bench.engine.settle_applied(bench.front_end, bench.front_end.stream, [held.sequence])
    assert len(bench.engine.timers) == 0


def test_what_nobody_is_there_to_be_told_has_had_no_attempt() -> None:
    bench = numbering()
    held = bench.number(1)
    bench.engine.activate([held])
    bench.engine.detach(bench.front_end)
    bench.clock.advance(1.0)
    assert bench.told() == [held]
    assert bench.engine.mark_sent(held) == 1


def test_nobody_answers_for_a_number_until_the_deadline() -> None:
    bench = numbering()
    held = bench.number(1, 1.0)
    bench.engine.activate([held])
    bench.clock.advance(1.0)
    assert bench.told() == [held]
    for seconds, lost in ((58.0, 0), (1.999, 0), (0.001, 1)):
        bench.clock.advance(seconds)
        bench.due()
        assert bench.engine.counters.lost == lost
    assert held.phase is Phase.ENDED


# Operations


def test_an_operation_continues_as_soon_as_it_has_ended(bench: Bench) -> None:
    held = bench.accept(nap(1, 5.0, operations=("lookup",)))
    job = bench.take()
    assert job is not None
    assert bench.engine.jobs.finish(job, JobResult(values=(b"found",))) is held
    assert (held.phase, held.status, held.values) == (Phase.CONTINUING, Status.OK, (b"found",))
    assert not bench.group.running


def test_an_operation_that_takes_too_long_times_out(bench: Bench) -> None:
    held = bench.accept(nap(1, 5.0, operations=("lookup",)))
    job = bench.take()
    assert job is not None
    bench.clock.advance(5.0)
    assert bench.due() == [held]
    assert held.status is Status.TIMED_OUT
    assert bench.engine.jobs.take_stopped() == [job]
    assert bench.engine.jobs.finish(job, JobResult()) is None, "too late to be heard"
    assert held.status is Status.TIMED_OUT


def test_a_cancel_stops_the_operation_and_skips_the_queued(bench: Bench) -> None:
    running, queued = (bench.accept(nap(n, 5.0, operations=(OperationRequest("lookup", "default"),))) for n in (1, 2))
    job = bench.take()
    assert job is not None
    for held in (running, queued):
        assert bench.engine.cancel("kamailio", held.key) is CancelOutcome.CANCELLED
    assert bench.engine.jobs.take_stopped() == [job]
    assert bench.group.queued == 0
    assert bench.take() is None


def test_a_full_group_refuses(bench: Bench) -> None:
    for number in range(5):
        bench.accept(nap(number, 5.0, operations=("lookup",)))
        bench.take()
    assert (len(bench.group.running), bench.group.queued) == (2, 3)
    assert bench.refused(nap(9, operations=("lookup",))) is Reason.FULL
    bench.group.workers = 3
    assert bench.take() is not None, "growing takes effect at once"
    assert bench.accept(nap(9, operations=("lookup",))).phase is Phase.PENDING


class EngineMachine(RuleBasedStateMachine):
    """Everything in any order; after each step the promises hold."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(Limits(max_pending=20))
        self.engine = self.bench.engine
        self.number = 0
        self.committing: list[Held] = []
        self.accepted: dict[NapKey, Held] = {}
        self.cancelled: set[NapKey] = set()
        self.fired: dict[NapKey, Held] = {}
        self.told: set[NapKey] = set()
        self.ended: list[NapKey] = []
        self.epoch = EPOCH
        self.streams: list[Stream | None] = [None]

    @rule(ahead=st.sampled_from([0.0, 0.02, 1.0]))
    def open_a_stream(self, ahead: float) -> None:
        self.streams.append(self.engine.attach("kamailio", self.epoch, ahead).stream)

    @precondition(lambda self: len(self.bench.front_end.held) < 20)
    @rule(delay=st.floats(0.001, 100))
    def reserve_numbered(self, delay: float) -> None:
        self.number += 1
        self.committing.append(self.bench.number(self.number, delay))

    @rule(data=st.data())
    def settle_numbers(self, data: st.DataObject) -> None:
        stream = data.draw(st.sampled_from(self.streams))
        held = {one.sequence: one for one in self.bench.front_end.held.values()}
        numbers = data.draw(st.lists(st.sampled_from([*held, 10**9])))
        self.engine.settle_applied(self.bench.front_end, stream, numbers)
        for number in {*numbers} & {*held}:
            is_known = held[number].key in self.told and stream is not None and held[number].stream is stream
            assert (held[number].phase is Phase.ENDED) == is_known

    @rule(delay=st.floats(0.001, 100))
    def reserve(self, delay: float) -> None:
        self.number += 1
        request = nap(self.number, delay, epoch=self.epoch)
        if len(self.bench.front_end.held) == 20:
            assert self.bench.refused(request) is Reason.FULL
        else:
            self.committing.append(self.engine.reserve(self.bench.front_end, request)[0])

    @rule()
    def commit(self) -> None:
        self.engine.activate(self.committing)
        self.accepted |= {held.key: held for held in self.committing}
        self.committing = []

    @rule(seconds=st.floats(0, 200))
    def advance(self, seconds: float) -> None:
        self.bench.clock.advance(seconds)
        order: list[float] = []
        due = self.engine.pop_due(1000)
        for told in due.told:
            assert told.front_end is self.bench.front_end
            for number, held in told.naps.items():
                assert number == held.sequence
                assert held.stream is not None
                assert held.stream is self.bench.front_end.stream, "else nobody knows the number"
                assert held.due_seconds - held.stream.ahead_seconds <= self.bench.clock.now_seconds, "not too early"
                assert told.earliest_seconds <= held.due_seconds
                assert held.key in self.accepted, "accepted before it is told of"
                assert held.key not in self.cancelled, "cancel is final"
                assert held.key not in self.fired, "told of once"
                self.fired[held.key] = held
                self.told.add(held.key)
        for held in due.continues:
            assert held.due_seconds <= self.bench.clock.now_seconds, "never early"
            assert held.key in self.accepted, "accepted before it fires"
            assert held.key not in self.cancelled, "cancel is final"
            assert held.key not in self.fired, "fires once"
            self.fired[held.key] = held
            order.append(held.due_seconds)
        assert order == sorted(order), "in order"

    @precondition(lambda self: self.bench.front_end.held)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from([held.key for held in self.bench.front_end.held.values()]))
        phase = self.bench.front_end.held[key.pack()].phase
        outcome = self.engine.cancel("kamailio", key)
        if phase is Phase.CONTINUING:
            assert outcome is CancelOutcome.CONTINUING
        else:
            assert outcome is CancelOutcome.CANCELLED
            self.cancelled.add(key)

    @precondition(lambda self: self.bench.front_end.continuing)
    @rule(data=st.data(), outcome=st.sampled_from(list(Outcome)))
    def settle(self, data: st.DataObject, outcome: Outcome) -> None:
        key = data.draw(st.sampled_from([held.key for held in self.bench.front_end.continuing.values()]))
        assert self.engine.settle(self.bench.front_end, key, outcome) is self.fired[key]

    @rule()
    def restart_the_front_end(self) -> None:
        self.epoch += 1
        self.engine.attach("kamailio", self.epoch)

    @invariant()
    def nothing_is_left_over(self) -> None:
        self.ended += [held.key for held in self.engine.take_ended()]
        assert len(set(self.ended)) == len(self.ended), "ends once"
        held = {one.key: one for one in self.bench.front_end.held.values()}
        assert not set(held) & set(self.ended)
        assert set(self.accepted) <= set(held) | set(self.ended), "accepted means kept until it ends"
        live = [entry for entry in held.values() if entry.phase is not Phase.COMMITTING]
        timed = [entry for entry in live if entry.timer_sequence] + [
            entry for entry in (self.engine._deadlines,) if entry.timer_sequence
        ]
        rounds = [one for stream in self.streams if stream is not None for one in stream._rounds.values()]
        assert all(one.timer_sequence and one for one in rounds), "a round without naps has no timer"
        assert len(self.engine.timers) == len(timed) + len(rounds)
        waiting = {number for one in rounds for number in one}
        assert waiting <= {entry.sequence for entry in live}
        watched = self.bench.front_end.continuing if self.engine._deadlines.timer_sequence else {}
        assert all(
            bool(entry.timer_sequence) + (entry.sequence in waiting) == 1 or entry.sequence in watched for entry in live
        ), "somebody looks after each"
        assert self.bench.front_end.committing == len(held) - len(live)
        assert self.engine.pending_count + self.engine.continuing_count == len(live)


EngineMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestEngine = EngineMachine.TestCase
