"""The timer heap against a model that is too simple to be wrong."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from sipnap.sidecar.core import timers
from sipnap.sidecar.core.timers import TimerHeap


@dataclass(slots=True, eq=False)
class Item:
    timer_sequence: int = 0


class HeapMachine(RuleBasedStateMachine):
    """Arms, re-arms, disarms and pops in any order; the model is a list sorted anew each time."""

    items = Bundle("items")

    def __init__(self) -> None:
        super().__init__()
        self.heap: TimerHeap[Item] = TimerHeap()
        self.model: list[tuple[float, int, Item]] = []
        self.order = 0
        self.now = 0.0

    def _forget(self, item: Item) -> None:
        self.model = [entry for entry in self.model if entry[2] is not item]

    @rule(target=items, delay=st.floats(0, 100))
    def arm_new(self, delay: float) -> Item:
        item = Item()
        self._arm(item, delay)
        return item

    @rule(item=items, delay=st.floats(0, 100))
    def arm_again(self, item: Item, delay: float) -> None:
        self._arm(item, delay)

    def _arm(self, item: Item, delay: float) -> None:
        self._forget(item)
        self.order += 1
        self.model.append((self.now + delay, self.order, item))
        self.heap.arm(item, self.now + delay)

    @rule(item=consumes(items))
    def disarm_for_ever(self, item: Item) -> None:
        self._forget(item)
        self.heap.disarm(item)

    @rule(item=items)
    def disarm(self, item: Item) -> None:
        self._forget(item)
        self.heap.disarm(item)

    @rule(seconds=st.floats(0, 50), most=st.integers(1, 5))
    def advance_and_pop(self, seconds: float, most: int) -> None:
        self.now += seconds
        expected = sorted(entry for entry in self.model if entry[0] <= self.now)[:most]
        popped = self.heap.pop_due(self.now, most)
        assert popped == [entry[2] for entry in expected], "never early, in order, cancelled ones never"
        for item in popped:
            assert item.timer_sequence == 0
            self._forget(item)

    @invariant()
    def agrees(self) -> None:
        assert len(self.heap) == len(self.model)
        assert self.heap.next_due_seconds() == (min(self.model)[0] if self.model else None)


HeapMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestHeap = HeapMachine.TestCase


def test_dead_entries_do_not_pile_up() -> None:
    heap: TimerHeap[Item] = TimerHeap()
    kept = [Item() for _ in range(500)]
    for item in kept:
        heap.arm(item, 1e9)
    for _ in range(20_000):
        item = Item()
        heap.arm(item, 5.0)
        heap.disarm(item)
    assert len(heap) == 500
    assert len(heap._entries) <= 500 + 2 * timers._LEAST_DEAD_TO_PRUNE + 1
    assert heap.pop_due(1e9, 1000) == kept, "pruning keeps the order"
