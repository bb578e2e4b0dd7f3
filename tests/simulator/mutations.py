"""Rules of the product, each broken on purpose: what the simulator must find, or it proves nothing.

Each is a context manager that breaks one rule while it is entered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest import mock

from sipnap.client.outstanding import Outstanding
from sipnap.client.session import FrontEndSession
from sipnap.shim.kamailio.bridge import Bridge
from sipnap.sidecar.core.engine import Engine
from sipnap.sidecar.core.groups import Job, JobResult, WorkerGroup
from sipnap.sidecar.core.suspension import CancelOutcome, Held, NapKey, Outcome
from sipnap.sidecar.core.timers import TimerHeap
from sipnap.sidecar.dispatcher import Dispatcher
from tests.simulator.journal import SharedJournal

Mutation = Callable[[], AbstractContextManager[None]]
MUTATIONS: dict[str, Mutation] = {}
"""By name."""


def _mutation(make: Callable[[], AbstractContextManager[Any]]) -> Callable[[], AbstractContextManager[Any]]:
    @contextmanager
    def broken() -> Iterator[None]:
        with make():
            yield

    MUTATIONS[make.__name__] = broken
    return make


# The sidecar


@_mutation
def acknowledge_before_commit() -> AbstractContextManager[Any]:
    submit = Dispatcher.submit

    def submit_and_say_so(self: Dispatcher, batch: list[Held], done: Callable[[Any], None]) -> None:
        submit(self, batch, lambda _error: None)
        done(None)

    return mock.patch.object(Dispatcher, "submit", submit_and_say_so)


@_mutation
def fire_before_commit() -> AbstractContextManager[Any]:
    submit = Dispatcher.submit

    def submit_and_activate(self: Dispatcher, batch: list[Held], done: Callable[[Any], None]) -> None:
        submit(self, batch, done)
        self.engine.activate(batch)
        self.start()

    return mock.patch.object(Dispatcher, "submit", submit_and_activate)


@_mutation
def forget_that_a_suspension_is_held() -> AbstractContextManager[Any]:
    reserve = Engine.reserve

    def reserve_anew(self: Engine, front_end: Any, request: Any) -> tuple[Held, bool]:
        front_end.held.pop(request.key, None)
        return reserve(self, front_end, request)

    return mock.patch.object(Engine, "reserve", reserve_anew)


@_mutation
def fire_early() -> AbstractContextManager[Any]:
    pop_due = TimerHeap.pop_due

    def pop_early(self: TimerHeap[Any], now_seconds: float, most: int) -> list[Any]:
        return pop_due(self, now_seconds + 0.01, most)

    return mock.patch.object(TimerHeap, "pop_due", pop_early)


@_mutation
def fire_early_after_recovery() -> AbstractContextManager[Any]:
    restore = Engine.restore

    def restore_due(self: Engine, *arguments: Any, due_seconds: float, **named: Any) -> None:
        restore(self, *arguments, due_seconds=due_seconds - 0.05, **named)

    return mock.patch.object(Engine, "restore", restore_due)


@_mutation
def send_a_continue_once_only() -> AbstractContextManager[Any]:
    attach = Engine.attach

    def attach_and_forget(self: Engine, front_end_id: str, boot_epoch: int) -> Any:
        front_end = attach(self, front_end_id, boot_epoch)
        front_end.continuing.clear()
        return front_end

    return mock.patch.object(Engine, "attach", attach_and_forget)


@_mutation
def forget_in_the_journal_when_fired() -> AbstractContextManager[Any]:
    begin = Engine._begin_continuing

    def begin_and_forget(self: Engine, held: Held) -> None:
        begin(self, held)
        self._ended.append(held)

    return mock.patch.object(Engine, "_begin_continuing", begin_and_forget)


@_mutation
def never_forget_in_the_journal() -> AbstractContextManager[Any]:
    take = Engine.take_ended

    def take_all_but_one(self: Engine) -> list[Held]:
        return take(self)[1:]

    return mock.patch.object(Engine, "take_ended", take_all_but_one)


@_mutation
def recover_nothing() -> AbstractContextManager[Any]:
    return mock.patch.object(Engine, "restore", return_value=None)


@_mutation
def say_cancelled_and_fire() -> AbstractContextManager[Any]:
    return mock.patch.object(Engine, "cancel", return_value=CancelOutcome.CANCELLED)


@_mutation
def keep_what_an_old_life_left() -> AbstractContextManager[Any]:
    attach = Engine.attach

    def attach_to_all(self: Engine, front_end_id: str, boot_epoch: int) -> Any:
        front_end = self.front_ends.get(front_end_id)
        if front_end is not None:
            front_end.boot_epoch = boot_epoch
        return attach(self, front_end_id, boot_epoch)

    return mock.patch.object(Engine, "attach", attach_to_all)


@_mutation
def settle_without_ending() -> AbstractContextManager[Any]:
    def settle(self: Engine, front_end: Any, key: NapKey, outcome: Outcome) -> Held | None:
        held: Held | None = front_end.continuing.pop(key, None)
        return held

    return mock.patch.object(Engine, "settle", settle)


@_mutation
def accept_while_the_journal_fails() -> AbstractContextManager[Any]:
    return mock.patch.object(Engine, "abandon", Engine.activate)


@_mutation
def drop_the_fencing_check() -> AbstractContextManager[Any]:
    return mock.patch.object(SharedJournal, "is_owner", return_value=True)


@_mutation
def drop_the_fencing_check_of_writes() -> AbstractContextManager[Any]:
    write = SharedJournal._write

    def write_all(self: SharedJournal, added: Any, ended: Any) -> None:
        with mock.patch.object(SharedJournal, "is_owner", return_value=True):
            write(self, added, ended)

    return mock.patch.object(SharedJournal, "_write", write_all)


# Operations


@_mutation
def recover_naps_without_their_operations() -> AbstractContextManager[Any]:
    return mock.patch("sipnap.sidecar.recovery.operations_of", return_value=())


@_mutation
def queue_the_first_operation_only() -> AbstractContextManager[Any]:
    queue = Engine._queue_jobs
    return mock.patch.object(Engine, "_queue_jobs", lambda self, jobs: queue(self, list(jobs)[:1]))


@_mutation
def continue_when_the_first_operation_has_ended() -> AbstractContextManager[Any]:
    end_job = Engine._end_job

    def end_all(self: Engine, job: Any, result: Any) -> Held | None:
        for other in list(job.held.jobs):
            if other is not job:
                end_job(self, other, JobResult())
        return end_job(self, job, result)

    return mock.patch.object(Engine, "_end_job", end_all)


@_mutation
def hear_attempts_that_were_given_up() -> AbstractContextManager[Any]:
    finish = Engine.finish_job

    def finish_anyway(self: Engine, job: Any, result: Any) -> Held | None:
        job.abandoned = False
        return finish(self, job, result)

    return mock.patch.object(Engine, "finish_job", finish_anyway)


@_mutation
def keep_the_places_of_what_was_cancelled() -> AbstractContextManager[Any]:
    withdraw = WorkerGroup.withdraw

    def withdraw_and_count(self: WorkerGroup, job: Any) -> None:
        withdraw(self, job)
        self._reserved += 1

    return mock.patch.object(WorkerGroup, "withdraw", withdraw_and_count)


@_mutation
def try_again_for_ever() -> AbstractContextManager[Any]:
    next_attempt = Job.next_attempt

    def first_attempt_again(self: Job) -> Job:
        again = next_attempt(self)
        again.attempt = 1
        return again

    return mock.patch.object(Job, "next_attempt", first_attempt_again)


@_mutation
def start_nothing_after_a_resize() -> AbstractContextManager[Any]:
    def shrink_to_nothing(self: Engine, group: Any, workers: int) -> None:
        group.workers = 0

    return mock.patch.object(Engine, "resize", shrink_to_nothing)


# The session


@_mutation
def hand_on_repeated_continues() -> AbstractContextManager[Any]:
    return mock.patch.object(Outstanding, "deliver", return_value=True)


@_mutation
def forget_answers() -> AbstractContextManager[Any]:
    return mock.patch.object(Outstanding, "remembered_answer", return_value=None)


@_mutation
def submit_delivered_ones_again() -> AbstractContextManager[Any]:
    def everything(self: Outstanding) -> list[Any]:
        return list(self._entries)

    def to_send(self: Outstanding, keys: Sequence[Any]) -> list[Any]:
        return [self._entries[key].suspension for key in keys if key in self._entries]

    return mock.patch.multiple(Outstanding, undelivered=everything, to_send=to_send)


@_mutation
def submit_nothing_again() -> AbstractContextManager[Any]:
    return mock.patch.object(Outstanding, "undelivered", return_value=[])


@_mutation
def cancel_only_at_the_sidecar() -> AbstractContextManager[Any]:
    def cancel(self: FrontEndSession, key: Any) -> None:
        self._cancels.append(key)
        self._gatherer.wake()

    return mock.patch.object(FrontEndSession, "cancel", cancel)


@_mutation
def never_notice_silence() -> AbstractContextManager[Any]:
    return mock.patch("sipnap.client.session.DEAD_SECONDS", 1e9)


# The shim


@_mutation
def ask_the_proxy_once() -> AbstractContextManager[Any]:
    return mock.patch.object(Bridge, "_resend", return_value=None)
