"""The front end's table: what is sent again, what is delivered, what is remembered."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from sipnap.client.keys import Key, SuspensionKey
from sipnap.client.outstanding import ANSWER_MEMORY_SECONDS, Outstanding, seconds_of, set_duration
from sipnap.v1 import suspension_pb2 as pb
from tests.support.clock import ManualClock


def key(number: int) -> SuspensionKey:
    return SuspensionKey("kamailio", 7, number, 1, 1)


def encoded_nap(number: int) -> bytes:
    return pb.Suspension(key=key(number).to_message(), resume_route="RESUME").SerializeToString()


def add(table: Outstanding, number: int, delay_seconds: float, deadline_seconds: float | None = None) -> bool:
    return table.add(key(number), encoded_nap(number), "RESUME", delay_seconds, deadline_seconds)


def to_send(table: Outstanding, keys: Sequence[Key]) -> list[pb.Suspension]:
    return [pb.Suspension.FromString(encoded) for encoded in table.to_send(keys)]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def table(clock: ManualClock) -> Outstanding:
    return Outstanding(clock)


def test_a_reconnect_submits_again_what_is_left_of_the_time(table: Outstanding, clock: ManualClock) -> None:
    add(table, 1, 4.0, 10.0)
    add(table, 2, 1.0)
    clock.advance(3.0)
    first, second = to_send(table, table.undelivered())
    assert [first.key, second.key] == [key(1).to_message(), key(2).to_message()], "in order of submission"
    assert first.resume_route == "RESUME", "and the rest of it is as it was"
    assert seconds_of(first.delay) == pytest.approx(1.0)
    assert seconds_of(first.deadline) == pytest.approx(7.0)
    assert 0 < seconds_of(second.delay) < 0.01, "overdue: at once, but never zero, which would be refused"
    assert not second.HasField("deadline"), "the sidecar's default, counted anew"


def test_a_continue_is_delivered_once(table: Outstanding) -> None:
    add(table, 1, 4.0)
    assert table.deliver(key(1))
    assert not table.deliver(key(1))
    assert table.undelivered() == [], "it was delivered: the sidecar is done with it"
    assert table.to_send([key(1)]) == []
    table.answer(key(1), pb.CONTINUE_OUTCOME_APPLIED)
    assert len(table) == 0
    assert table.remembered_answer(key(1)) == pb.CONTINUE_OUTCOME_APPLIED


def test_a_key_that_is_outstanding_is_not_taken_in_again(table: Outstanding, clock: ManualClock) -> None:
    assert add(table, 1, 4.0)
    clock.advance(1.0)
    assert not add(table, 1, 60.0)
    (sent,) = to_send(table, [key(1)])
    assert seconds_of(sent.delay) == pytest.approx(3.0), "the first one counts"
    assert table.encoded_of(key(1)) == encoded_nap(1)
    assert table.route_of(key(1)) == "RESUME"


def test_each_sending_has_its_own_times(table: Outstanding) -> None:
    """They are written with one message for all."""
    add(table, 1, 4.0, 10.0)
    add(table, 2, 1.0)
    add(table, 3, 2.5, 3.5)
    sent = to_send(table, [key(1), key(2), key(3)])
    assert [seconds_of(suspension.delay) for suspension in sent] == pytest.approx([4.0, 1.0, 2.5])
    assert [suspension.HasField("deadline") for suspension in sent] == [True, False, True]


def test_an_answer_gives_the_number_of_its_continue(table: Outstanding) -> None:
    add(table, 1, 4.0)
    assert table.deliver(key(1), 17)
    assert table.answer(key(1), pb.CONTINUE_OUTCOME_APPLIED) == 17
    assert table.answer(key(1), pb.CONTINUE_OUTCOME_APPLIED) == 0, "it is over: there is nothing to say in short"


def test_a_repetition_has_a_number_of_its_own(table: Outstanding) -> None:
    add(table, 1, 4.0)
    assert table.deliver(key(1), 17)
    assert not table.deliver(key(1), 18)
    assert table.answer(key(1), pb.CONTINUE_OUTCOME_APPLIED) == 18


def test_in_a_new_stream_the_numbers_of_the_old_one_mean_nothing(table: Outstanding) -> None:
    for number in (1, 2):
        add(table, number, 4.0)
        assert table.deliver(key(number), 16 + number)
    table.forget_numbers()
    assert not table.deliver(key(2), 1), "the new stream repeats it, with a number that another one had"
    assert table.answer(key(1), pb.CONTINUE_OUTCOME_APPLIED) == 0
    assert table.answer(key(2), pb.CONTINUE_OUTCOME_APPLIED) == 1


def test_what_was_not_delivered_by_a_stream_has_no_number(table: Outstanding) -> None:
    add(table, 1, 4.0)
    assert table.deliver(key(1)), "refused, or lost: of the session's own making"
    assert table.answer(key(1), pb.CONTINUE_OUTCOME_APPLIED) == 0
    assert table.deliver(key(9), 5), "of an earlier shim"
    assert table.answer(key(9), pb.CONTINUE_OUTCOME_APPLIED) == 0, "it is answered for by its key"


def test_a_continue_of_an_earlier_shim_is_delivered_too_and_once(table: Outstanding) -> None:
    assert table.deliver(key(9))
    assert not table.deliver(key(9))
    table.answer(key(9), pb.CONTINUE_OUTCOME_GONE)
    assert table.remembered_answer(key(9)) == pb.CONTINUE_OUTCOME_GONE


def test_answers_are_forgotten_in_time(table: Outstanding, clock: ManualClock) -> None:
    table.answer(key(1), pb.CONTINUE_OUTCOME_APPLIED)
    clock.advance(ANSWER_MEMORY_SECONDS)
    table.sweep(has_sidecar=True)
    assert table.remembered_answer(key(1)) == pb.CONTINUE_OUTCOME_APPLIED
    clock.advance(ANSWER_MEMORY_SECONDS)
    table.sweep(has_sidecar=True)
    assert table.remembered_answer(key(1)) is None


def test_answers_are_kept_for_as_long_as_there_is_no_sidecar(table: Outstanding, clock: ManualClock) -> None:
    """When it is back it asks again for what it has not heard."""
    table.answer(key(1), pb.CONTINUE_OUTCOME_APPLIED)
    for _ in range(5):
        clock.advance(ANSWER_MEMORY_SECONDS)
        table.sweep(has_sidecar=False)
    assert table.remembered_answer(key(1)) == pb.CONTINUE_OUTCOME_APPLIED
    clock.advance(ANSWER_MEMORY_SECONDS - 1)
    table.sweep(has_sidecar=True)
    assert table.remembered_answer(key(1)) == pb.CONTINUE_OUTCOME_APPLIED, "and from then on as long as ever"
    for _ in range(2):
        clock.advance(ANSWER_MEMORY_SECONDS)
        table.sweep(has_sidecar=True)
    assert table.remembered_answer(key(1)) is None


def test_what_nobody_answered_for_is_lost_at_its_deadline(table: Outstanding, clock: ManualClock) -> None:
    add(table, 1, 1.0, 2.0)
    add(table, 2, 1.0, 20.0)
    add(table, 3, 1.0, 2.0)
    table.deliver(key(3))
    clock.advance(1.0)
    assert table.sweep(has_sidecar=True) == []
    clock.advance(2.5)
    assert table.sweep(has_sidecar=True) == [(key(1), "RESUME")], "a delivered one is in the front end's hands"
    assert len(table) == 1
    assert not table.drop(key(1))
    assert table.drop(key(2))
    clock.advance(60.0)
    assert table.sweep(has_sidecar=True) == []


@pytest.mark.parametrize("is_delivered", [False, True])
def test_a_continue_after_the_deadline_is_a_repetition(
    table: Outstanding, clock: ManualClock, is_delivered: bool
) -> None:
    add(table, 1, 1.0, 2.0)
    if is_delivered:
        assert table.deliver(key(1))
    clock.advance(3.5)
    assert len(table.sweep(has_sidecar=True)) == (not is_delivered)
    assert not table.deliver(key(1)), "the front end has it in its hands already, as a continue or as lost"
    table.answer(key(1), pb.CONTINUE_OUTCOME_APPLIED)
    assert table.remembered_answer(key(1)) == pb.CONTINUE_OUTCOME_APPLIED


def test_what_is_lost_at_one_time_is_lost_in_order(table: Outstanding, clock: ManualClock) -> None:
    for number in (5, 3, 9, 1, 7):
        add(table, number, 1.0, 2.0)
    clock.advance(3.5)
    assert [lost[2] for lost, _ in table.sweep(has_sidecar=True)] == [5, 3, 9, 1, 7]


def test_nothing_stale_is_kept(table: Outstanding, clock: ManualClock) -> None:
    for number in range(1000):
        add(table, number, 1.0)
        table.drop(key(number))
    assert not table._by_deadline


@pytest.mark.parametrize("seconds", [0.0, 1e-9, 0.1, 0.9999999999, 1.0, 4.2, 99.999999999])
def test_a_duration_never_gets_shorter(seconds: float) -> None:
    suspension = pb.Suspension()
    set_duration(suspension.delay, seconds)
    assert seconds <= seconds_of(suspension.delay) <= seconds + 2e-9
    assert (seconds_of(suspension.delay) == 0) == (seconds == 0), "zero stays zero: it is refused"
