"""The front end's table: what is sent again, what is delivered, what is remembered."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipnap.client.answers import ANSWER_MEMORY_SECONDS
from sipnap.client.keys import SuspensionKey
from sipnap.client.outstanding import Outstanding, Suspended, seconds_of, set_duration
from sipnap.v1 import suspension_pb2 as pb
from tests.support.clock import ManualClock


def key(number: int) -> SuspensionKey:
    return SuspensionKey("kamailio", 7, number, 1, 1)


def nap(number: int, delay_seconds: float = 4.0, deadline_seconds: float | None = None) -> Suspended:
    message = pb.Suspension(key=key(number).to_message(), resume_route="RESUME")
    set_duration(message.delay, delay_seconds)
    return Suspended(key(number), message.SerializeToString(), "RESUME", delay_seconds, deadline_seconds)


def add(
    table: Outstanding, number: int, delay_seconds: float = 4.0, deadline_seconds: float | None = None
) -> Suspended:
    suspended = nap(number, delay_seconds, deadline_seconds)
    assert table.add(suspended)
    return suspended


def to_send(table: Outstanding, batch: Iterable[Suspended]) -> list[tuple[pb.Suspension, float]]:
    """Those that are sent, each with what is left of its delay."""
    batch = list(batch)
    sent, encoded, left_us = table.to_send(batch)
    assert len(sent) == len(encoded) == len(left_us)
    assert [suspended for suspended in batch if suspended in sent] == sent, "in their order"
    return [(pb.Suspension.FromString(each), us * 1e-6) for each, us in zip(encoded, left_us, strict=True)]


def deliver(table: Outstanding, suspended: Suspended, number: int) -> None:
    """The sidecar gives it a number, and says by it that it is over."""
    table.set_numbers([suspended], [number])
    assert table.deliver_due([number]) == ([suspended], [])


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
    (first, first_left_seconds), (second, second_left_seconds) = to_send(table, table.undelivered())
    assert [first.key, second.key] == [key(1).to_message(), key(2).to_message()], "in order of submission"
    assert first.resume_route == "RESUME", "and the rest of it is as it was"
    assert seconds_of(first.delay) == pytest.approx(4.0), "what was asked for"
    assert first_left_seconds == pytest.approx(1.0, abs=2e-6)
    assert seconds_of(first.deadline) == pytest.approx(7.0)
    assert 0 < second_left_seconds < 0.01, "overdue: at once, but never zero, which would be refused"
    assert not second.HasField("deadline"), "the sidecar's default, counted anew"


@given(
    now_seconds=st.floats(0, 1e7),
    delays=st.lists(st.floats(1e-9, 1e6), min_size=1, max_size=5),
    passed=st.floats(0, 1e6),
)
def test_what_is_left_never_gets_shorter(now_seconds: float, delays: list[float], passed: float) -> None:
    clock = ManualClock(now_seconds)
    table = Outstanding(clock)
    batch = [add(table, number, delay_seconds) for number, delay_seconds in enumerate(delays)]
    clock.advance(passed)
    _, _, left_us = table.to_send(batch)
    for suspended, each_us in zip(batch, left_us, strict=True):
        least_us = (suspended.due_seconds - clock()) * 1e6
        assert max(least_us, 1000) <= each_us + 0.01, "but for the last bits of a float"
        assert each_us <= max(least_us, 999) + 1.01


def test_a_continue_is_delivered_once(table: Outstanding) -> None:
    suspended = add(table, 1)
    assert table.deliver(key(1))
    assert not table.deliver(key(1))
    assert table.undelivered() == [], "it was delivered: the sidecar is done with it"
    assert to_send(table, [suspended]) == []
    table.answer(key(1), pb.CONTINUE_OUTCOME_APPLIED)
    assert len(table) == 0
    assert table.find(key(1)) is None
    assert table.remembered_answer(key(1)) == pb.CONTINUE_OUTCOME_APPLIED


def test_a_key_that_is_outstanding_is_not_taken_in_again(table: Outstanding, clock: ManualClock) -> None:
    first = add(table, 1, 4.0)
    clock.advance(1.0)
    assert not table.add(nap(1, 60.0))
    assert table.find(key(1)) is first
    assert key(1) in table
    ((_, left_seconds),) = to_send(table, table.undelivered())
    assert left_seconds == pytest.approx(3.0, abs=2e-6), "the first one counts"
    table.answer(key(1), pb.CONTINUE_OUTCOME_GONE)
    assert not table._by_deadline, "and the other one has left nothing"


def test_each_sending_has_its_own_times(table: Outstanding) -> None:
    batch = [add(table, 1, 4.0, 10.0), add(table, 2, 1.0), add(table, 3, 2.5, 3.5)]
    sent = to_send(table, batch)
    assert [left_seconds for _, left_seconds in sent] == pytest.approx([4.0, 1.0, 2.5], abs=2e-6)
    assert [seconds_of(suspension.delay) for suspension, _ in sent] == pytest.approx([4.0, 1.0, 2.5])
    assert [suspension.HasField("deadline") for suspension, _ in sent] == [True, False, True]


# Numbers


def test_what_is_over_as_asked_is_said_by_its_number_and_answered_by_it(table: Outstanding) -> None:
    first, second, third = batch = [add(table, number) for number in (1, 2, 3)]
    table.set_numbers(batch, [11, 12, 13])
    assert table.deliver_due([13, 11]) == ([third, first], []), "in the order in which it is said"
    assert [suspended.is_delivered for suspended in batch] == [True, False, True]
    assert table.undelivered() == [second]
    assert [suspended for suspended, _ in zip(*table.to_send(batch)[:2], strict=True)] == [second]
    assert table.applied([first, third]) == ([11, 13], [])
    assert [suspended.outcome for suspended in batch] == [
        pb.CONTINUE_OUTCOME_APPLIED,
        None,
        pb.CONTINUE_OUTCOME_APPLIED,
    ]
    assert (len(table), table.find(key(1)), table.find(key(2))) == (1, None, second)
    assert table.remembered_answer(key(1)) == table.remembered_answer(key(3)) == pb.CONTINUE_OUTCOME_APPLIED


def test_each_of_them_is_delivered_once(table: Outstanding) -> None:
    suspended = add(table, 1)
    table.set_numbers([suspended], [11])
    assert table.deliver_due([11, 11]) == ([suspended], [])
    assert table.deliver_due([11]) == ([], [])
    assert not table.deliver(key(1)), "nor in full"
    assert table.applied([suspended]) == ([11], [])
    assert table.deliver_due([11]) == ([], [])


def test_what_came_in_full_is_not_delivered_by_its_number(table: Outstanding) -> None:
    suspended = add(table, 1)
    table.set_numbers([suspended], [11])
    assert table.deliver(key(1))
    assert table.deliver_due([11]) == ([], [])
    assert table.applied([suspended]) == ([], [key(1)]), "and it is answered for by its key"
    assert not table._by_number


def test_one_answer_of_its_own_by_number(table: Outstanding) -> None:
    for number, outcome in ((1, pb.CONTINUE_OUTCOME_APPLIED), (2, pb.CONTINUE_OUTCOME_GONE)):
        deliver(table, add(table, number), 10 + number)
        assert table.answer(key(number), outcome) == 10 + number
        assert table.answer(key(number), outcome) == 0, "it is over: there is nothing to say in short"


def test_a_number_that_names_nothing_is_no_trouble(table: Outstanding) -> None:
    add(table, 1)
    table.set_numbers([add(table, 2), add(table, 3)], [0, 0])
    assert table.deliver_due([0, 1, 99]) == ([], [])


def test_what_has_no_number_has_none(table: Outstanding) -> None:
    batch = [add(table, number) for number in (1, 2, 3, 4)]
    for number in (3, 4):
        assert table.deliver(key(number)), "in full, before the frame was answered for"
    table.set_numbers(batch, [0, 12, 0, 14])
    assert [suspended.number for suspended in batch] == [0, 12, 0, 0]
    assert list(table._by_number) == [12]
    assert table.deliver(key(1)), "it comes in full"
    assert table.applied(batch[:1]) == ([], [key(1)])
    assert table.applied(batch[2:]) == ([], [key(3), key(4)])


def test_numbers_are_for_each_of_them(table: Outstanding) -> None:
    with pytest.raises(ValueError, match="zip"):
        table.set_numbers([add(table, 1), add(table, 2)], [11])


def test_in_a_new_stream_the_numbers_of_the_old_one_mean_nothing(table: Outstanding) -> None:
    first, second, third = (add(table, number) for number in (1, 2, 3))
    table.set_numbers([first, second, third], [11, 12, 13])
    assert table.deliver_due([11, 12]) == ([first, second], [])
    table.answer(key(2), pb.CONTINUE_OUTCOME_GONE)
    table.forget_numbers()
    assert table.deliver_due([11, 12, 13]) == ([], [])
    assert table.undelivered() == [third]
    assert table.applied([first, second]) == ([], [key(1), key(2)]), "said by their keys: it may be another sidecar"
    deliver(table, third, 11)
    assert table.applied([third]) == ([11], [])


def test_what_was_cancelled_before_its_time_is_answered_for_when_the_sidecar_says_that_it_is_over(
    table: Outstanding,
) -> None:
    first, second = add(table, 1), add(table, 2)
    table.set_numbers([first], [11])
    for number in (1, 2):
        assert table.answer(key(number), pb.CONTINUE_OUTCOME_GONE) == 0, "no continue was there to be answered"
    table.set_numbers([second], [12])  # its frame was on its way
    assert table.deliver_due([12, 11]) == ([], [second, first])
    assert table.deliver_due([12, 11]) == ([], [])


def test_numbers_of_what_was_cancelled_are_forgotten_in_time(table: Outstanding, clock: ManualClock) -> None:
    first, second, third = (add(table, number) for number in (1, 2, 3))
    table.set_numbers([first, third], [11, 13])
    for number in (1, 2):
        table.answer(key(number), pb.CONTINUE_OUTCOME_GONE)
    table.set_numbers([second], [12])
    clock.advance(11.0)
    table.sweep(has_sidecar=True)
    assert sorted(table._by_number) == [11, 12, 13]
    clock.advance(11.0)
    table.sweep(has_sidecar=True)
    assert sorted(table._by_number) == [13]


def test_a_number_that_was_given_anew_is_not_forgotten_with_the_old_one(table: Outstanding, clock: ManualClock) -> None:
    first, second = add(table, 1, 1.0, 100.0), add(table, 2, 1.0, 100.0)
    table.set_numbers([first], [11])
    table.answer(key(1), pb.CONTINUE_OUTCOME_GONE)
    table.set_numbers([second], [11])
    for _ in range(3):
        clock.advance(11.0)
        table.sweep(has_sidecar=True)
    assert table.deliver_due([11]) == ([second], [])


def test_applied_before_the_sidecar_has_said_anything(table: Outstanding) -> None:
    """The proxy's own timer resumed it, or it naps again."""
    suspended = add(table, 1)
    table.set_numbers([suspended], [11])
    assert table.applied([suspended]) == ([], [key(1)])
    assert table.deliver_due([11]) == ([], [suspended]), "it is told again"
    assert suspended.outcome == pb.CONTINUE_OUTCOME_APPLIED


def test_applied_of_what_was_cancelled_meanwhile(table: Outstanding) -> None:
    suspended = add(table, 1)
    deliver(table, suspended, 11)
    assert table.answer(key(1), pb.CONTINUE_OUTCOME_GONE) == 11
    assert table.applied([suspended]) == ([], [key(1)])
    assert table.remembered_answer(key(1)) == pb.CONTINUE_OUTCOME_APPLIED, "the last one counts"


def test_applied_of_what_the_table_never_had(table: Outstanding) -> None:
    assert table.deliver(key(1)), "of an earlier shim"
    stranger = nap(1)
    assert table.applied([stranger]) == ([], [key(1)])
    assert stranger.outcome == table.remembered_answer(key(1)) == pb.CONTINUE_OUTCOME_APPLIED


def test_applied_of_another_object_of_that_key(table: Outstanding) -> None:
    mine, other = add(table, 1), nap(1)
    assert table.deliver(key(1))
    assert table.applied([other]) == ([], [key(1)])
    assert (len(table), mine.outcome, other.outcome) == (0, *2 * [pb.CONTINUE_OUTCOME_APPLIED])
    assert not table._by_deadline


def test_nothing_of_an_old_life_is_said_by_its_number(table: Outstanding) -> None:
    suspended = add(table, 1)
    deliver(table, suspended, 11)
    table.clear()
    assert (len(table), table.find(key(1))) == (0, None)
    assert table.applied([suspended]) == ([], [key(1)])


# Keys


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
    clock.advance(60.0)
    assert table.sweep(has_sidecar=True) == [(key(2), "RESUME")]
    clock.advance(60.0)
    assert table.sweep(has_sidecar=True) == []


def test_what_is_past_its_deadline_is_found_until_it_is_answered_for(table: Outstanding, clock: ManualClock) -> None:
    lost, late = add(table, 1, 1.0, 2.0), add(table, 2, 1.0, 2.0)
    deliver(table, late, 12)
    table.set_numbers([lost], [11])
    clock.advance(3.5)
    assert table.sweep(has_sidecar=True) == [(key(1), "RESUME")]
    assert (table.find(key(1)), table.find(key(2)), len(table)) == (lost, late, 0)
    assert table.deliver_due([11]) == ([], []), "it was handed on as lost"
    assert to_send(table, [lost]) == []
    assert table.answer(key(1), pb.CONTINUE_OUTCOME_GONE) == 0
    assert table.applied([late]) == ([], [key(2)])
    assert (table.find(key(1)), table.find(key(2))) == (None, None)
    assert (lost.outcome, late.outcome) == (pb.CONTINUE_OUTCOME_GONE, pb.CONTINUE_OUTCOME_APPLIED)


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


@pytest.mark.parametrize("way", ["cancelled", "due", "in full", "numbered late"])
def test_nothing_stale_is_kept(table: Outstanding, clock: ManualClock, way: str) -> None:
    for number in range(1000):
        suspended = add(table, number, 1.0)
        if way == "numbered late":
            table.answer(key(number), pb.CONTINUE_OUTCOME_GONE)
        table.set_numbers([suspended], [number + 1])
        if way == "cancelled":
            table.answer(key(number), pb.CONTINUE_OUTCOME_GONE)
        elif way == "due":
            table.deliver_due([number + 1])
            table.applied([suspended])
        elif way == "in full":
            table.deliver(key(number))
            table.applied([suspended])
    for _ in range(3):
        clock.advance(11.0)
        assert table.sweep(has_sidecar=True) == []
    left = table._suspended, table._by_deadline, table._by_number, table._ended, table._ended_before
    assert not any(left)
    assert not table._unknown_delivered


@pytest.mark.parametrize("seconds", [0.0, 1e-9, 0.1, 0.9999999999, 1.0, 4.2, 99.999999999])
def test_a_duration_never_gets_shorter(seconds: float) -> None:
    suspension = pb.Suspension()
    set_duration(suspension.delay, seconds)
    assert seconds <= seconds_of(suspension.delay) <= seconds + 2e-9
    assert (seconds_of(suspension.delay) == 0) == (seconds == 0), "zero stays zero: it is refused"
