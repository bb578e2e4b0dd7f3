"""The front end's table: what is sent again, what is delivered, what is remembered."""

from __future__ import annotations

import pytest

from sipnap.client.keys import SuspensionKey
from sipnap.client.outstanding import ANSWER_MEMORY_SECONDS, Outstanding, seconds_of, set_duration
from sipnap.v1 import suspension_pb2 as pb
from tests.support.clock import ManualClock


def key(number: int) -> SuspensionKey:
    return SuspensionKey("kamailio", 7, number, 1, 1)


def nap(number: int, delay_seconds: float, deadline_seconds: float | None = None) -> pb.Suspension:
    suspension = pb.Suspension(key=key(number).to_message(), resume_route="RESUME")
    set_duration(suspension.delay, delay_seconds)
    if deadline_seconds is not None:
        set_duration(suspension.deadline, deadline_seconds)
    return suspension


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def table(clock: ManualClock) -> Outstanding:
    return Outstanding(clock)


def test_a_reconnect_submits_again_what_is_left_of_the_time(table: Outstanding, clock: ManualClock) -> None:
    table.add(key(1), nap(1, 4.0, 10.0))
    table.add(key(2), nap(2, 1.0))
    clock.advance(3.0)
    first, second = table.to_send(table.undelivered())
    assert seconds_of(first.delay) == pytest.approx(1.0)
    assert seconds_of(first.deadline) == pytest.approx(7.0)
    assert 0 < seconds_of(second.delay) < 0.01, "overdue: at once, but never zero, which would be refused"
    assert not second.HasField("deadline"), "the sidecar's default, counted anew"


def test_a_continue_is_delivered_once(table: Outstanding) -> None:
    table.add(key(1), nap(1, 4.0))
    assert table.deliver(key(1))
    assert not table.deliver(key(1))
    assert table.undelivered() == [], "it was delivered: the sidecar is done with it"
    assert table.to_send([key(1)]) == []
    table.answer(key(1), pb.CONTINUE_OUTCOME_APPLIED)
    assert len(table) == 0
    assert table.remembered_answer(key(1)) == pb.CONTINUE_OUTCOME_APPLIED


def test_a_continue_of_an_earlier_shim_is_delivered_too_and_once(table: Outstanding) -> None:
    assert table.deliver(key(9))
    assert not table.deliver(key(9))
    table.answer(key(9), pb.CONTINUE_OUTCOME_GONE)
    assert table.remembered_answer(key(9)) == pb.CONTINUE_OUTCOME_GONE


def test_answers_are_forgotten_in_time(table: Outstanding, clock: ManualClock) -> None:
    table.answer(key(1), pb.CONTINUE_OUTCOME_APPLIED)
    clock.advance(ANSWER_MEMORY_SECONDS)
    table.sweep()
    assert table.remembered_answer(key(1)) == pb.CONTINUE_OUTCOME_APPLIED
    clock.advance(ANSWER_MEMORY_SECONDS)
    table.sweep()
    assert table.remembered_answer(key(1)) is None


def test_what_nobody_answered_for_is_lost_at_its_deadline(table: Outstanding, clock: ManualClock) -> None:
    table.add(key(1), nap(1, 1.0, 2.0))
    table.add(key(2), nap(2, 1.0, 20.0))
    table.add(key(3), nap(3, 1.0, 2.0))
    table.deliver(key(3))
    clock.advance(1.0)
    assert table.sweep() == []
    clock.advance(2.5)
    assert table.sweep() == [(key(1), "RESUME")], "a delivered one is in the front end's hands"
    assert len(table) == 1
    assert not table.drop(key(1))
    assert table.drop(key(2))
    clock.advance(60.0)
    assert table.sweep() == []


@pytest.mark.parametrize("is_delivered", [False, True])
def test_a_continue_after_the_deadline_is_a_repetition(
    table: Outstanding, clock: ManualClock, is_delivered: bool
) -> None:
    table.add(key(1), nap(1, 1.0, 2.0))
    if is_delivered:
        assert table.deliver(key(1))
    clock.advance(3.5)
    assert len(table.sweep()) == (not is_delivered)
    assert not table.deliver(key(1)), "the front end has it in its hands already, as a continue or as lost"
    table.answer(key(1), pb.CONTINUE_OUTCOME_APPLIED)
    assert table.remembered_answer(key(1)) == pb.CONTINUE_OUTCOME_APPLIED


def test_what_is_lost_at_one_time_is_lost_in_order(table: Outstanding, clock: ManualClock) -> None:
    for number in (5, 3, 9, 1, 7):
        table.add(key(number), nap(number, 1.0, 2.0))
    clock.advance(3.5)
    assert [lost.transaction_index for lost, _ in table.sweep()] == [5, 3, 9, 1, 7]


def test_nothing_stale_is_kept(table: Outstanding, clock: ManualClock) -> None:
    for number in range(1000):
        table.add(key(number), nap(number, 1.0))
        table.drop(key(number))
    assert not table._by_deadline


@pytest.mark.parametrize("seconds", [0.0, 1e-9, 0.1, 0.9999999999, 1.0, 4.2, 99.999999999])
def test_a_duration_never_gets_shorter(seconds: float) -> None:
    suspension = pb.Suspension()
    set_duration(suspension.delay, seconds)
    assert seconds <= seconds_of(suspension.delay) <= seconds + 2e-9
    assert (seconds_of(suspension.delay) == 0) == (seconds == 0), "zero stays zero: it is refused"
