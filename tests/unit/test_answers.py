"""What was answered is remembered for long enough, and let go in small parts."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sipnap.client.answers import ANSWER_MEMORY_SECONDS, Answers
from sipnap.client.keys import Key
from sipnap.v1 import suspension_pb2 as pb

APPLIED, GONE, REJECTED = pb.CONTINUE_OUTCOME_APPLIED, pb.CONTINUE_OUTCOME_GONE, pb.CONTINUE_OUTCOME_REJECTED


def key(number: int) -> Key:
    return ("proxy", 1, number, 5, 1)


@pytest.fixture
def answers() -> Answers:
    return Answers(100.0)


def test_each_is_remembered_as_it_was_given(answers: Answers) -> None:
    answers.add_applied([key(1), key(2)])
    answers.add(key(3), GONE)
    answers.add(key(4), APPLIED)
    answers.add(key(5), REJECTED)
    expected = [APPLIED, APPLIED, GONE, APPLIED, REJECTED, None]
    for _ in range(2):
        assert [answers.outcome_of(key(number)) for number in range(1, 7)] == expected
    answers.rotate(105.0, has_sidecar=True)
    assert [answers.outcome_of(key(number)) for number in range(1, 7)] == expected


@pytest.mark.parametrize("is_asked_between", [False, True])
@pytest.mark.parametrize("is_rotated_between", [False, True])
@pytest.mark.parametrize(("first", "second"), [(APPLIED, GONE), (GONE, APPLIED), (GONE, REJECTED)])
def test_the_last_one_counts(
    answers: Answers,
    first: pb.ContinueOutcome,
    second: pb.ContinueOutcome,
    is_rotated_between: bool,
    is_asked_between: bool,
) -> None:
    answers.add(key(1), first)
    if is_asked_between:
        assert answers.outcome_of(key(1)) == first
    if is_rotated_between:
        answers.rotate(105.0, has_sidecar=True)
    answers.add(key(1), second)
    assert answers.outcome_of(key(1)) == second


@given(
    pauses_before=st.lists(st.floats(0.1, 5.0), max_size=5),
    steps=st.lists(st.tuples(st.floats(0.1, 5.0), st.booleans() | st.just(True)), max_size=60),
)
@example(pauses_before=[1.0], steps=[(5.0, True), (5.0, True), (5.0, True), (4.0, True), (5.0, False), (5.0, True)])
def test_only_time_in_which_a_sidecar_is_heard_makes_it_forget(
    pauses_before: list[float], steps: list[tuple[float, bool]]
) -> None:
    now = 100.0
    answers = Answers(now)
    for pause_seconds in pauses_before:
        now += pause_seconds
        answers.rotate(now, has_sidecar=True)
    answers.add_applied([key(1)])
    heard_seconds = 0.0
    for pause_seconds, has_sidecar in steps:
        now += pause_seconds
        answers.rotate(now, has_sidecar=has_sidecar)
        # Without one, it is kept from then on as if it had been answered just now.
        heard_seconds = heard_seconds + pause_seconds if has_sidecar else 0.0
        if heard_seconds >= ANSWER_MEMORY_SECONDS:
            break
        assert answers.outcome_of(key(1)) == APPLIED
    for _ in range(2 + int(ANSWER_MEMORY_SECONDS)):
        now += 1.0
        answers.rotate(now, has_sidecar=True)
    assert answers.outcome_of(key(1)) is None, "and is not kept for much longer"


def test_little_is_let_go_at_a_time(answers: Answers) -> None:
    now = 100.0
    for second in range(60):
        answers.add_applied([key(second * 10 + each) for each in range(10)])
        now += 1.0
        before = len(answers._older)
        answers.rotate(now, has_sidecar=True)
        assert before <= len(answers._older) <= before + 1, "what is added and what is let go are of one second each"
    assert [len(each.applied) for each in answers._older] == [10] * int(ANSWER_MEMORY_SECONDS)
