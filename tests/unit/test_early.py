"""Naps that wait for their time, on a clock that the test sets."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipnap.client import early as early_module
from sipnap.client.early import TURN_SECONDS, EarlyContinues, next_turn
from sipnap.client.keys import SuspensionKey
from sipnap.client.outstanding import Suspended
from sipnap.v1 import suspension_pb2 as pb


@dataclass(eq=False)
class Alarm:
    due_seconds: float
    ring: Callable[[], None]
    is_cancelled: bool = False

    def cancel(self) -> None:
        self.is_cancelled = True


class Bench:
    """The naps, and everything that was done with them, with the time when it was."""

    def __init__(self) -> None:
        self.now = 100.0
        self.alarms: list[Alarm] = []
        self.turns: list[tuple[float, list[int]]] = []
        self.ended: list[tuple[float, list[int]]] = []
        self.early = EarlyContinues(
            lambda: self.now,
            self._call_at,
            on_due=self._note,
            on_ended=lambda batch: self.ended.append((self.now, _numbers(batch))),
        )

    def _call_at(self, due_seconds: float, ring: Callable[[], None]) -> Alarm:
        self.alarms.append(Alarm(due_seconds, ring))
        return self.alarms[-1]

    def _note(self, due: Sequence[Suspended]) -> None:
        self.turns.append((self.now, _numbers(due)))

    @property
    def waiting_alarms(self) -> list[Alarm]:
        return [alarm for alarm in self.alarms if not alarm.is_cancelled]

    @property
    def handed_on(self) -> list[int]:
        return [number for _, numbers in self.turns for number in numbers]

    def add(self, *waits: tuple[int, float]) -> list[Suspended]:
        """Naps that came together: number of each, and how long it has to wait."""
        batch = []
        for number, wait_seconds in waits:
            suspended = Suspended(SuspensionKey("proxy", 1, number, 5, 1), b"", "RESUME", 1.0)
            suspended.due_seconds = self.now + wait_seconds
            batch.append(suspended)
        self.early.add(batch)
        return batch

    def run(self, late_seconds: float = 0.0) -> None:
        """Until no alarm is set; each rings so much late."""
        while self.waiting_alarms:
            (alarm,) = self.waiting_alarms  # never more than one
            self.alarms.remove(alarm)
            self.now = max(self.now, alarm.due_seconds) + late_seconds
            alarm.ring()


def _numbers(batch: Sequence[Suspended]) -> list[int]:
    return [suspended.key[2] for suspended in batch]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_it_goes_at_its_time_and_not_before(bench: Bench) -> None:
    bench.add((1, 0.03))
    bench.early.release()
    assert [alarm.due_seconds for alarm in bench.waiting_alarms] == [100.03]
    bench.now = 100.029
    bench.early.release()
    assert (bench.turns, len(bench.early)) == ([], 1)
    bench.run()
    assert (bench.turns, len(bench.early)) == ([(100.03, [1])], 0)


def test_who_comes_late_waits_for_the_next_turn(bench: Bench) -> None:
    bench.add((1, 0.0), (2, 0.0001))
    bench.early.release()
    bench.now = 100.001
    bench.add((3, -0.01))
    bench.early.release()
    assert bench.turns == [(100.0, [1])]
    bench.run()
    assert bench.turns[1:] == [(next_turn(100.0), [3, 2])]


@given(seconds=st.floats(0, 1e7))
def test_turns_are_at_whole_multiples(seconds: float) -> None:
    turn = next_turn(seconds)
    assert seconds < turn <= seconds + 1.01 * TURN_SECONDS
    assert turn == round(turn / TURN_SECONDS) / round(1 / TURN_SECONDS), "all keep the same time"
    assert next_turn(turn) > turn


def test_what_comes_later_may_be_due_sooner(bench: Bench) -> None:
    bench.add((1, 0.03))
    bench.early.release()
    bench.add((2, 0.01))
    bench.early.release()
    assert [alarm.due_seconds for alarm in bench.waiting_alarms] == [100.01]
    bench.run()
    assert bench.handed_on == [2, 1]


@pytest.mark.parametrize("together", [True, False])
def test_what_is_due_at_the_same_time_keeps_its_order(bench: Bench, together: bool) -> None:
    waits = [(number, 0.01) for number in (3, 1, 2)]
    if together:
        bench.add(*waits)
    else:
        for wait in waits:
            bench.add(wait)
    bench.early.release()
    bench.run()
    assert bench.turns == [(100.01, [3, 1, 2])]


def test_what_is_due_at_one_time_goes_in_order_of_time_whatever_it_came_with(bench: Bench) -> None:
    bench.add((1, 0.0104), (2, 0.0102), (9, 0.05))
    bench.add((3, 0.0103), (4, 0.0101), (8, 0.04))
    bench.early.release()
    bench.run(late_seconds=0.001)
    assert bench.handed_on == [4, 2, 3, 1, 8, 9]


def test_what_was_cancelled_is_answered_for_and_not_handed_on(bench: Bench) -> None:
    first, _ = bench.add((1, 0.01), (2, 0.01))
    bench.early.release()
    first.outcome = pb.CONTINUE_OUTCOME_GONE
    assert bench.ended == [], "its time has not come"
    bench.run()
    assert bench.handed_on == [2]
    assert bench.ended == [(100.01, [1])]


def test_nobody_is_called_for_nothing(bench: Bench) -> None:
    (only,) = bench.add((1, 0.01))
    only.outcome = pb.CONTINUE_OUTCOME_GONE
    bench.early.release()
    bench.run()
    assert (len(bench.ended), bench.turns) == (1, [])
    bench.add((2, 0.01))
    bench.early.release()
    bench.run()
    assert (len(bench.ended), bench.handed_on) == (1, [2])


def test_nothing_is_left_when_all_is_forgotten(bench: Bench) -> None:
    bench.add((1, 0.01))
    bench.early.release()
    bench.early.clear()
    assert (len(bench.early), bench.waiting_alarms) == (0, [])
    bench.add((2, 0.02))
    bench.early.release()
    bench.run()
    assert bench.handed_on == [2]


def test_what_it_hands_on_may_bring_more(bench: Bench) -> None:
    """`on_due` comes last: whoever adds and releases in it finds everything in order."""

    def add_another(due: Sequence[Suspended]) -> None:
        bench._note(due)
        if len(bench.turns) == 1:
            bench.add((9, 0.0))
            bench.early.release()

    bench.early._on_due = add_another
    bench.add((1, 0.01))
    bench.add((2, 0.02))
    bench.early.release()
    bench.run()
    assert bench.handed_on == [1, 9, 2]


def test_what_comes_one_by_one_does_not_make_each_turn_longer(bench: Bench) -> None:
    for number in range(1000):
        bench.add((number, 0.5 - number * 1e-5))
        bench.early.release()
    assert len(bench.early) == 1000
    assert len(bench.early._batches) <= early_module._MOST_BATCHES
    bench.run()
    assert bench.handed_on == list(reversed(range(1000)))


@given(
    waits_us=st.lists(st.lists(st.integers(0, 9000), min_size=1, max_size=20), min_size=1, max_size=50),
    late_seconds=st.sampled_from([0.0, 0.0001, 0.01]),
)
def test_never_early_in_order_and_in_few_turns(waits_us: list[list[int]], late_seconds: float) -> None:
    bench = Bench()
    numbers = itertools.count()
    for batch in waits_us:
        bench.add(*[(next(numbers), wait_us * 1e-6) for wait_us in batch])
    bench.early.release()
    bench.run(late_seconds)

    due = [100.0 + wait_us * 1e-6 for batch in waits_us for wait_us in batch]
    assert sorted(bench.handed_on) == list(range(len(due))), "each once"
    assert [due[number] for number in bench.handed_on] == sorted(due), "in order"
    for now, numbers_then in bench.turns:
        assert all(due[number] <= now <= due[number] + TURN_SECONDS + late_seconds + 1e-9 for number in numbers_then)
    for (earlier, _), (later, _) in itertools.pairwise(bench.turns):
        assert later >= next_turn(earlier) - 1e-9, "turns of the loop cost more than waiting does"
