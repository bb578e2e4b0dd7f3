"""What the core does when a front end comes from another sidecar, or goes to one."""

from __future__ import annotations

import pytest

from sipnap.sidecar.core.engine import Engine
from sipnap.sidecar.core.groups import JobResult
from sipnap.sidecar.core.suspension import Limits, NapKey, Outcome, Phase, Reason, Refused
from tests.unit.test_engine import EPOCH, Bench, nap


@pytest.fixture
def bench() -> Bench:
    return Bench()


def restore(engine: Engine, number: int, epoch: int = EPOCH) -> None:
    engine.restore(
        "opensips", NapKey(epoch, number, number + 1, 1), "RESUME", b"payload",
        sequence=None, accepted_seconds=0.0, due_seconds=1.0, deadline_seconds=60.0,
    )  # fmt: skip


def test_what_is_disowned_neither_fires_nor_counts(bench: Bench) -> None:
    engine = bench.engine
    pending, continuing = bench.accept(nap(1, 5.0)), bench.accept(nap(2, 1.0))
    committing, _ = engine.reserve(bench.front_end, nap(3))
    other = engine.attach("opensips", EPOCH)
    others, _ = engine.reserve(other, nap(1, 5.0))
    engine.activate([others])
    bench.clock.advance(1.0)
    assert bench.due() == [continuing]
    engine.disown(bench.front_end)
    assert {held.phase for held in (pending, continuing, committing)} == {Phase.ENDED}
    assert not engine.has_ended, "the journal has nothing to forget: it is another's"
    engine.activate([committing])
    engine.abandon([committing])
    assert engine.settle(bench.front_end, continuing.key, Outcome.APPLIED) is None
    bench.clock.advance(1000.0)
    assert bench.due() == [others]
    counters = engine.counters
    assert (counters.accepted, counters.lost, sum(counters.outcomes.values())) == (3, 0, 0)
    assert list(engine.front_ends) == ["opensips"]


def test_operations_of_what_is_disowned_are_stopped(bench: Bench) -> None:
    running = bench.accept(nap(1, 5.0, operations=("lookup",)))
    waiting = bench.accept(nap(2, 5.0, operations=("lookup",)))
    job = bench.take()
    assert job is not None
    assert (running.jobs, len(waiting.jobs)) == ([job], 1)
    bench.engine.disown(bench.front_end)
    assert bench.engine.jobs.take_stopped() == [job]
    assert bench.group.queued == 0
    assert bench.engine.jobs.finish(job, JobResult()) is None
    assert bench.take() is None
    assert not bench.group.running


def test_a_front_end_that_was_taken_over_goes_on_where_it_was(bench: Bench) -> None:
    engine = bench.engine
    before = bench.accept(nap(9)).sequence
    adopted = engine.adopt("opensips")
    restore(engine, 1)
    restore(engine, 2)
    restore(engine, 3, epoch=EPOCH - 1)
    with pytest.raises(Refused) as caught:
        engine.front_ends.reachable("opensips")
    assert caught.value.reason is Reason.FRONT_END_UNKNOWN, "until its Hello is answered"
    assert engine.attach("opensips", EPOCH) is adopted
    assert engine.counters.outcomes[Outcome.GONE] == 1
    assert [held.sequence for held in engine.list("opensips", 0, 10)] == [before + 1, before + 2]
    bench.clock.advance(1.0)
    assert len(bench.due()) == 3


def test_there_is_an_end_to_adopting() -> None:
    bench = Bench(Limits(max_front_ends=1))
    bench.accept(nap(1))
    with pytest.raises(Refused) as caught:
        bench.engine.adopt("opensips")
    assert caught.value.reason is Reason.FULL
