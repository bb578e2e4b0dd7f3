"""Rules of the product, each broken on purpose: what the simulator must find, or it proves nothing.

Each is a context manager that breaks one rule while it is entered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any
from unittest import mock

from sipnap.client.early import EarlyContinues
from sipnap.client.outstanding import Outstanding
from sipnap.client.session import FrontEndSession
from sipnap.shim.kamailio.bridge import Bridge
from sipnap.sidecar.core.deadlines import DeadlineWatch
from sipnap.sidecar.core.engine import Due, Engine
from sipnap.sidecar.core.groups import Job, JobResult, WorkerGroup
from sipnap.sidecar.core.jobs import JobBook
from sipnap.sidecar.core.suspension import CancelOutcome, Held, NapKey, Outcome
from sipnap.sidecar.dispatcher import Dispatcher
from sipnap.sidecar.services.front_end import _Session
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
        front_end.held.pop(request.key.pack(), None)
        return reserve(self, front_end, request)

    return mock.patch.object(Engine, "reserve", reserve_anew)


@_mutation
def fire_early() -> AbstractContextManager[Any]:
    pop_due = Engine.pop_due

    def pop_early(self: Engine, most: int) -> Due:
        clock = self._clock
        self._clock = lambda: clock() + 0.01
        try:
            return pop_due(self, most)
        finally:
            self._clock = clock

    return _both(mock.patch.object(Engine, "pop_due", pop_early), _never_postponed())


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
        held: Held | None = front_end.continuing.pop(key.pack(), None)
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
    queue = JobBook.queue
    return mock.patch.object(JobBook, "queue", lambda self, jobs: queue(self, list(jobs)[:1]))


@_mutation
def continue_when_the_first_operation_has_ended() -> AbstractContextManager[Any]:
    end_job = JobBook._end

    def end_all(self: JobBook, job: Any, result: Any) -> Held | None:
        for other in list(job.held.jobs):
            if other is not job:
                end_job(self, other, JobResult())
        return end_job(self, job, result)

    return mock.patch.object(JobBook, "_end", end_all)


@_mutation
def hear_attempts_that_were_given_up() -> AbstractContextManager[Any]:
    finish = JobBook.finish

    def finish_anyway(self: JobBook, job: Any, result: Any) -> Held | None:
        job.abandoned = False
        return finish(self, job, result)

    return mock.patch.object(JobBook, "finish", finish_anyway)


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
    def shrink_to_nothing(self: JobBook, group: Any, workers: int) -> None:
        group.workers = 0

    return mock.patch.object(JobBook, "resize", shrink_to_nothing)


@_mutation
def hand_out_ahead_of_time_and_keep_silent() -> AbstractContextManager[Any]:
    add_continues = _Session._add_continues

    def add_without_time(self: _Session, response: Any) -> None:
        add_continues(self, response)
        for order in response.continues:
            order.ClearField("wait_us")

    return mock.patch.object(_Session, "_add_continues", add_without_time)


@_mutation
def hand_out_further_ahead_of_time_than_is_taken() -> AbstractContextManager[Any]:
    open_session = Dispatcher._open

    def open_far_ahead(self: Dispatcher, front_end_id: str, boot_epoch: int, connection: Any, ahead: float) -> Any:
        return open_session(self, front_end_id, boot_epoch, connection, ahead + 0.1)

    return _both(mock.patch.object(Dispatcher, "_open", open_far_ahead), _never_postponed())


@_mutation
def never_give_up_what_nobody_answers_for() -> AbstractContextManager[Any]:
    return mock.patch.object(DeadlineWatch, "look", return_value=[])


# The session


@_mutation
def do_not_wait_for_the_time_of_what_comes_ahead() -> AbstractContextManager[Any]:
    receive = FrontEndSession._receive

    def receive_now(self: FrontEndSession, response: Any) -> None:
        for order in response.continues:
            order.ClearField("wait_us")
        receive(self, response)

    return mock.patch.object(FrontEndSession, "_receive", receive_now)


@_mutation
def hand_on_what_was_cancelled_while_it_waited() -> AbstractContextManager[Any]:
    release = EarlyContinues.release

    def release_all(self: EarlyContinues) -> None:
        with mock.patch.object(self, "_answer_of", return_value=None):
            release(self)

    return mock.patch.object(EarlyContinues, "release", release_all)


@_mutation
def leave_what_was_cancelled_while_it_waited_unanswered() -> AbstractContextManager[Any]:
    release = EarlyContinues.release

    def release_silently(self: EarlyContinues) -> None:
        with mock.patch.object(self, "_on_answered"):
            release(self)

    return mock.patch.object(EarlyContinues, "release", release_silently)


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

    to_send = Outstanding.to_send

    def to_send_all(self: Outstanding, keys: Sequence[Any]) -> list[bytes]:
        delivered = [entry for entry in self._entries.values() if entry.is_delivered]
        for entry in delivered:
            entry.is_delivered = False
        encoded = to_send(self, keys)
        for entry in delivered:
            entry.is_delivered = True
        return encoded

    return mock.patch.multiple(Outstanding, undelivered=everything, to_send=to_send_all)


@_mutation
def submit_nothing_again() -> AbstractContextManager[Any]:
    return mock.patch.object(Outstanding, "undelivered", return_value=[])


@_mutation
def cancel_only_at_the_sidecar() -> AbstractContextManager[Any]:
    def cancel(self: FrontEndSession, key: Any) -> None:
        self._outbox.cancels.append(key)
        self._gatherer.wake()

    return mock.patch.object(FrontEndSession, "cancel", cancel)


@_mutation
def never_notice_silence() -> AbstractContextManager[Any]:
    return mock.patch("sipnap.client.session.DEAD_SECONDS", 1e9)


# The shim


@_mutation
def ask_the_proxy_once() -> AbstractContextManager[Any]:
    return mock.patch.object(Bridge, "_resend", return_value=None)


def _both(*patches: AbstractContextManager[Any]) -> AbstractContextManager[Any]:
    stack = ExitStack()
    for patch in patches:
        stack.enter_context(patch)
    return stack


def _never_postponed() -> AbstractContextManager[Any]:
    """Without the servicer's own second look at what comes too early."""

    def send_continue(self: _Session, held: Held) -> None:
        self._continues.append(held)
        self._gatherer.hurry()

    return mock.patch.object(_Session, "send_continue", send_continue)
