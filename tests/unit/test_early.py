"""Continues that wait for their time, on a clock that the test sets."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipnap.client.early import RELEASE_SECONDS, EarlyContinues
from sipnap.client.keys import Key, SuspensionKey
from sipnap.v1 import suspension_pb2 as pb


def key_of(number: int) -> Key:
    return SuspensionKey("proxy", 1, number, 5, 1)


@dataclass(eq=False)
class Alarm:
    due_seconds: float
    ring: Callable[[], None]
    is_cancelled: bool = False

    def cancel(self) -> None:
        self.is_cancelled = True


class Bench:
    """The continues, and everything that they have done, with the time when they did."""

    def __init__(self) -> None:
        self.now = 100.0
        self.alarms: list[Alarm] = []
        self.turns: list[tuple[float, list[int]]] = []
        self.answered: list[tuple[Key, pb.ContinueOutcome]] = []
        self.answers: dict[Key, pb.ContinueOutcome] = {}
        self.early = EarlyContinues(
            lambda: self.now,
            self._call_at,
            answer_of=self.answers.get,
            on_due=self._note,
            on_answered=lambda key, outcome: self.answered.append((key, outcome)),
        )

    def _call_at(self, due_seconds: float, ring: Callable[[], None]) -> Alarm:
        self.alarms.append(Alarm(due_seconds, ring))
        return self.alarms[-1]

    def _note(self, due: Sequence[tuple[Key, pb.Continue]]) -> None:
        self.turns.append((self.now, [key[2] for key, _ in due]))

    @property
    def waiting_alarms(self) -> list[Alarm]:
        return [alarm for alarm in self.alarms if not alarm.is_cancelled]

    @property
    def handed_on(self) -> list[int]:
        return [number for _, numbers in self.turns for number in numbers]

    def add(self, number: int, wait_seconds: float) -> None:
        self.early.add(self.now + wait_seconds, key_of(number), pb.Continue())

    def run(self, late_seconds: float = 0.0) -> None:
        """Until no alarm is set; each rings so much late."""
        while self.waiting_alarms:
            (alarm,) = self.waiting_alarms  # never more than one
            self.alarms.remove(alarm)
            self.now = max(self.now, alarm.due_seconds) + late_seconds
            alarm.ring()


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_it_goes_at_its_time_and_not_before(bench: Bench) -> None:
    bench.add(1, 0.03)
    bench.early.release()
    assert [alarm.due_seconds for alarm in bench.waiting_alarms] == [100.03]
    bench.now = 100.029
    bench.early.release()
    assert (bench.turns, len(bench.early)) == ([], 1)
    bench.run()
    assert (bench.turns, len(bench.early)) == ([(100.03, [1])], 0)


def test_what_comes_later_may_be_due_sooner(bench: Bench) -> None:
    bench.add(1, 0.03)
    bench.early.release()
    bench.add(2, 0.01)
    bench.early.release()
    assert [alarm.due_seconds for alarm in bench.waiting_alarms] == [100.01]
    bench.run()
    assert bench.handed_on == [2, 1]


def test_what_is_due_at_the_same_time_keeps_its_order(bench: Bench) -> None:
    for number in (3, 1, 2):
        bench.add(number, 0.01)
    bench.early.release()
    bench.run()
    assert bench.turns == [(100.01, [3, 1, 2])]


def test_what_was_cancelled_is_answered_for_and_not_handed_on(bench: Bench) -> None:
    for number in (1, 2):
        bench.add(number, 0.01)
    bench.early.release()
    bench.answers[key_of(1)] = pb.CONTINUE_OUTCOME_GONE
    assert bench.answered == [], "its time has not come"
    bench.run()
    assert bench.handed_on == [2]
    assert bench.answered == [(key_of(1), pb.CONTINUE_OUTCOME_GONE)]


def test_nobody_is_called_for_nothing(bench: Bench) -> None:
    bench.add(1, 0.01)
    bench.answers[key_of(1)] = pb.CONTINUE_OUTCOME_GONE
    bench.early.release()
    bench.run()
    assert (len(bench.answered), bench.turns) == (1, [])


def test_nothing_is_left_when_all_is_forgotten(bench: Bench) -> None:
    bench.add(1, 0.01)
    bench.early.release()
    bench.early.clear()
    assert (len(bench.early), bench.waiting_alarms) == (0, [])
    bench.add(2, 0.02)
    bench.early.release()
    bench.run()
    assert bench.handed_on == [2]


def test_what_it_hands_on_may_bring_more(bench: Bench) -> None:
    """`on_due` comes last: whoever adds and releases in it finds everything in order."""

    def add_another(due: Sequence[tuple[Key, pb.Continue]]) -> None:
        bench._note(due)
        if len(bench.turns) == 1:
            bench.add(9, 0.0)
            bench.early.release()

    bench.early._on_due = add_another
    bench.add(1, 0.01)
    bench.add(2, 0.02)
    bench.early.release()
    bench.run()
    assert bench.handed_on == [1, 9, 2]


@given(
    waits_us=st.lists(st.integers(0, 5000), min_size=1, max_size=50),
    late_seconds=st.sampled_from([0.0, 0.0001, 0.01]),
)
def test_never_early_in_order_and_in_few_turns(waits_us: list[int], late_seconds: float) -> None:
    bench = Bench()
    for number, wait_us in enumerate(waits_us):
        bench.add(number, wait_us * 1e-6)
    bench.early.release()
    bench.run(late_seconds)

    due = [100.0 + wait_us * 1e-6 for wait_us in waits_us]
    assert bench.handed_on == sorted(range(len(due)), key=lambda number: (due[number], number)), "each once, in order"
    for now, numbers in bench.turns:
        assert all(due[number] <= now <= due[number] + RELEASE_SECONDS + late_seconds + 1e-9 for number in numbers)
    times = [now for now, _ in bench.turns]
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert all(pause >= RELEASE_SECONDS - 1e-9 for pause in pauses), "turns of the loop cost more than waiting does"
