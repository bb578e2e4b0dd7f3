"""Rules of the product, each broken on purpose: what the simulator must find, or it proves nothing.

Each is a context manager that breaks one rule while it is entered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any
from unittest import mock

from sipnap.client.early import EarlyContinues
from sipnap.client.outstanding import Outstanding, Suspended
from sipnap.client.session import FrontEndSession
from sipnap.shim.kamailio.bridge import Bridge
from sipnap.shim.kamailio.inbox import Inbox
from sipnap.sidecar.core.deadlines import DeadlineWatch
from sipnap.sidecar.core.due import Due
from sipnap.sidecar.core.engine import Engine
from sipnap.sidecar.core.front_ends import FrontEnd
from sipnap.sidecar.core.groups import Job, JobResult, WorkerGroup
from sipnap.sidecar.core.jobs import JobBook
from sipnap.sidecar.core.streams import Round, Stream
from sipnap.sidecar.core.suspension import CancelOutcome, Held, NapKey, Outcome
from sipnap.sidecar.core.timers import TimerHeap
from sipnap.sidecar.dispatcher import Dispatcher
from sipnap.sidecar.services.front_end import _Session
from sipnap.sidecar.services.translate import nap_key
from sipnap.v1 import suspension_pb2 as pb
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
    take_in = Engine.take_in

    def take_in_anew(self: Engine, front_end: FrontEnd, packed_key: bytes, *arguments: Any) -> tuple[Held, bool]:
        front_end.held.pop(packed_key, None)
        return take_in(self, front_end, packed_key, *arguments)

    return mock.patch.object(Engine, "take_in", take_in_anew)


@_mutation
def count_a_nap_from_before_its_datagram_came() -> AbstractContextManager[Any]:
    take = Inbox.take

    def take_older(self: Inbox, most: int) -> list[tuple[bytes, float]]:
        return [(datagram, lain_seconds + 0.01) for datagram, lain_seconds in take(self, most)]

    return mock.patch.object(Inbox, "take", take_older)


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

    next_due_seconds = TimerHeap.next_due_seconds

    def next_early(self: TimerHeap[Any]) -> float | None:
        seconds = next_due_seconds(self)
        return None if seconds is None else seconds - 0.01

    return _all(
        mock.patch.object(Engine, "pop_due", pop_early),
        mock.patch.object(TimerHeap, "next_due_seconds", next_early),
        # The servicer looks for itself, for the sake of what an earlier stream was about to be told of.
        _never_postponed(lambda held: held.stream is None),
    )


@_mutation
def fire_early_after_recovery() -> AbstractContextManager[Any]:
    restore = Engine.restore

    def restore_due(self: Engine, *arguments: Any, due_seconds: float, **named: Any) -> None:
        restore(self, *arguments, due_seconds=due_seconds - 0.05, **named)

    return mock.patch.object(Engine, "restore", restore_due)


@_mutation
def send_a_continue_once_only() -> AbstractContextManager[Any]:
    attach = Engine.attach

    def attach_and_forget(self: Engine, *arguments: Any) -> FrontEnd:
        front_end = attach(self, *arguments)
        front_end.continuing.clear()
        return front_end

    return mock.patch.object(Engine, "attach", attach_and_forget)


@_mutation
def forget_what_an_earlier_stream_was_to_be_told_of() -> AbstractContextManager[Any]:
    begin_round = Engine._begin_round

    def begin_present_round(self: Engine, round_: Round, *arguments: Any) -> int:
        stream = round_.stream
        return begin_round(self, round_, *arguments) if stream.front_end.stream is stream else 0

    return mock.patch.object(Engine, "_begin_round", begin_present_round)


@_mutation
def forget_in_the_journal_when_fired() -> AbstractContextManager[Any]:
    pop_due = Engine.pop_due

    def pop_and_forget(self: Engine, most: int) -> Due:
        due = pop_due(self, most)
        self._ended += due.continues
        return due

    return mock.patch.object(Engine, "pop_due", pop_and_forget)


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

    def attach_to_all(self: Engine, front_end_id: str, boot_epoch: int, *ahead: float) -> FrontEnd:
        front_end = self.front_ends.get(front_end_id)
        if front_end is not None:
            front_end.boot_epoch = boot_epoch
        return attach(self, front_end_id, boot_epoch, *ahead)

    return mock.patch.object(Engine, "attach", attach_to_all)


@_mutation
def settle_without_ending() -> AbstractContextManager[Any]:
    def settle(self: Engine, front_end: FrontEnd, key: NapKey, outcome: Outcome) -> Held | None:
        held = front_end.held.get(key.pack())
        return front_end.continuing.pop(held.sequence, None) if held is not None else None

    return mock.patch.object(Engine, "settle", settle)


@_mutation
def settle_without_ending_by_number() -> AbstractContextManager[Any]:
    def settle_applied(self: Engine, front_end: FrontEnd, stream: Stream | None, sequences: Iterable[int]) -> None:
        for sequence in sequences:
            front_end.continuing.pop(sequence, None)

    return mock.patch.object(Engine, "settle_applied", settle_applied)


@_mutation
def settle_the_one_that_has_waited_longest() -> AbstractContextManager[Any]:
    settle = Engine.settle_applied

    def settle_others(self: Engine, front_end: FrontEnd, stream: Stream | None, sequences: Iterable[int]) -> None:
        own = [held.sequence for held in front_end.continuing.values() if held.stream is stream]
        settle(self, front_end, stream, own[: len(list(sequences))])

    return mock.patch.object(Engine, "settle_applied", settle_others)


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
def continue_in_full_ahead_of_time() -> AbstractContextManager[Any]:
    return _never_postponed(lambda held: True)


@_mutation
def name_naps_with_operations_by_their_numbers() -> AbstractContextManager[Any]:
    take_in: Any = Engine.take_in

    def take_in_numbered(self: Engine, front_end: FrontEnd, *arguments: Any) -> Any:
        return take_in(self, front_end, *arguments[:-1], front_end.stream)

    return mock.patch.object(Engine, "take_in", take_in_numbered)


@_mutation
def name_naps_by_numbers_of_an_earlier_stream() -> AbstractContextManager[Any]:
    begin_round = Engine._begin_round

    def begin_all(self: Engine, round_: Round, *arguments: Any) -> int:
        with mock.patch.object(round_.stream.front_end, "stream", round_.stream):
            return begin_round(self, round_, *arguments)

    return mock.patch.object(Engine, "_begin_round", begin_all)


@_mutation
def number_what_was_held_already() -> AbstractContextManager[Any]:
    take_in = _Session._take_in

    def take_in_and_number(self: _Session, suspends: Sequence[bytes], *arguments: Any) -> None:
        take_in(self, suspends, *arguments)
        numbers: list[int] = arguments[-1]
        for index, encoded in enumerate(suspends):
            key = pb.Suspension.FromString(encoded).key
            held = self._front_end.held.get(nap_key(key).pack())
            numbers[index] = held.sequence if held is not None else 0

    return mock.patch.object(_Session, "_take_in", take_in_and_number)


@_mutation
def number_a_frame_in_reverse() -> AbstractContextManager[Any]:
    take_in = _Session._take_in

    def take_in_and_mix_up(self: _Session, *arguments: Any) -> None:
        take_in(self, *arguments)
        arguments[-1].reverse()

    return mock.patch.object(_Session, "_take_in", take_in_and_mix_up)


@_mutation
def say_what_is_due_before_its_frame_is_acknowledged() -> AbstractContextManager[Any]:
    add_continues = _Session._add_continues

    def add_and_hold_back(self: _Session, response: Any) -> None:
        add_continues(self, response)
        if response.due:
            self._response.frame_results.extend(response.frame_results)
            response.ClearField("frame_results")

    return mock.patch.object(_Session, "_add_continues", add_and_hold_back)


@_mutation
def count_the_whole_delay_from_each_submission() -> AbstractContextManager[Any]:
    return _with_lefts(lambda lefts_us: [])


@_mutation
def take_what_is_left_for_that_of_another() -> AbstractContextManager[Any]:
    return _with_lefts(lambda lefts_us: lefts_us[::-1])


@_mutation
def hand_out_further_ahead_of_time_than_is_taken() -> AbstractContextManager[Any]:
    open_session = Dispatcher._open

    def open_far_ahead(self: Dispatcher, front_end_id: str, boot_epoch: int, connection: Any, ahead: float) -> Any:
        return open_session(self, front_end_id, boot_epoch, connection, ahead + 0.1)

    return mock.patch.object(Dispatcher, "_open", open_far_ahead)


@_mutation
def never_give_up_what_nobody_answers_for() -> AbstractContextManager[Any]:
    return mock.patch.object(DeadlineWatch, "look", return_value=[])


# The session


@_mutation
def do_not_wait_for_the_time_of_what_comes_ahead() -> AbstractContextManager[Any]:
    def hand_on(self: EarlyContinues, batch: Sequence[Suspended]) -> None:
        self._on_due(batch)

    return mock.patch.object(EarlyContinues, "add", hand_on)


@_mutation
def wait_a_little_too_short_for_the_time_of_what_comes_ahead() -> AbstractContextManager[Any]:
    add = EarlyContinues.add

    def add_early(self: EarlyContinues, batch: Sequence[Suspended]) -> None:
        for suspended in batch:
            suspended.due_seconds -= 0.0001
        add(self, batch)

    return mock.patch.object(EarlyContinues, "add", add_early)


@_mutation
def hand_on_what_was_cancelled_while_it_waited() -> AbstractContextManager[Any]:
    def hand_on(self: FrontEndSession, ended: Sequence[Suspended]) -> None:
        self._hand_on(ended)

    return mock.patch.object(FrontEndSession, "_tell_again", hand_on)


@_mutation
def leave_what_was_cancelled_while_it_waited_unanswered() -> AbstractContextManager[Any]:
    return mock.patch.object(FrontEndSession, "_tell_again", return_value=None)


@_mutation
def keep_the_numbers_of_an_earlier_stream() -> AbstractContextManager[Any]:
    return mock.patch.object(Outstanding, "forget_numbers", return_value=None)


@_mutation
def hear_what_is_due_before_its_number() -> AbstractContextManager[Any]:
    receive = FrontEndSession._receive

    def receive_due_first(self: FrontEndSession, response: Any) -> None:
        due = type(response)(due=response.due)
        response.ClearField("due")
        receive(self, due)
        receive(self, response)

    return mock.patch.object(FrontEndSession, "_receive", receive_due_first)


@_mutation
def take_the_numbers_of_a_frame_in_reverse() -> AbstractContextManager[Any]:
    set_numbers = Outstanding.set_numbers

    def mix_up(self: Outstanding, batch: Sequence[Suspended], numbers: Sequence[int]) -> None:
        set_numbers(self, batch, numbers[::-1])

    return mock.patch.object(Outstanding, "set_numbers", mix_up)


@_mutation
def hand_on_what_is_due_twice() -> AbstractContextManager[Any]:
    deliver_due = Outstanding.deliver_due

    def deliver_silently(self: Outstanding, numbers: Iterable[int]) -> tuple[list[Suspended], list[Suspended]]:
        due, ended = deliver_due(self, numbers)
        for suspended in due:
            suspended.is_delivered = False
        return due, ended

    return mock.patch.object(Outstanding, "deliver_due", deliver_silently)


@_mutation
def say_of_what_was_gone_that_it_was_resumed() -> AbstractContextManager[Any]:
    answer = FrontEndSession.answer

    def answer_applied(self: FrontEndSession, key: Any, outcome: Any) -> None:
        answer(self, key, pb.CONTINUE_OUTCOME_APPLIED)

    return mock.patch.object(FrontEndSession, "answer", answer_applied)


@_mutation
def submit_with_the_whole_delay_again() -> AbstractContextManager[Any]:
    to_send = Outstanding.to_send

    def to_send_whole(self: Outstanding, batch: Any) -> tuple[list[Suspended], list[bytes], list[int]]:
        wanted, encoded, _ = to_send(self, batch)
        return wanted, encoded, [int(suspended.delay_seconds * 1e6) + 1 for suspended in wanted]

    return mock.patch.object(Outstanding, "to_send", to_send_whole)


@_mutation
def hand_on_repeated_continues() -> AbstractContextManager[Any]:
    return mock.patch.object(Outstanding, "deliver", return_value=True)


@_mutation
def forget_answers() -> AbstractContextManager[Any]:
    return mock.patch.object(Outstanding, "remembered_answer", return_value=None)


@_mutation
def forget_answers_within_a_second() -> AbstractContextManager[Any]:
    return mock.patch("sipnap.client.answers.ANSWER_MEMORY_SECONDS", 0.0)


@_mutation
def submit_delivered_ones_again() -> AbstractContextManager[Any]:
    def everything(self: Outstanding) -> list[Suspended]:
        return list(self._suspended.values())

    to_send = Outstanding.to_send

    def to_send_all(self: Outstanding, batch: Any) -> tuple[list[Suspended], list[bytes], list[int]]:
        delivered = [suspended for suspended in batch if suspended.is_delivered and suspended.outcome is None]
        for suspended in delivered:
            suspended.is_delivered = False
        sent = to_send(self, batch)
        for suspended in delivered:
            suspended.is_delivered = True
        return sent

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


@_mutation
def end_more_at_one_request_than_the_proxy_takes() -> AbstractContextManager[Any]:
    send_plain = Bridge._send_plain

    def send_all(self: Bridge, naps: Any) -> None:
        self._most_in_batch = 32
        send_plain(self, naps)

    return mock.patch.object(Bridge, "_send_plain", send_all)


@_mutation
def go_on_asking_for_what_was_answered() -> AbstractContextManager[Any]:
    resumed = Bridge._resumed

    def resumed_and_waited_for(self: Bridge, naps: Any) -> None:
        resumed(self, naps)
        for nap in naps:
            nap.sendings = 1

    return mock.patch.object(Bridge, "_resumed", resumed_and_waited_for)


@_mutation
def read_the_results_of_a_batch_in_reverse() -> AbstractContextManager[Any]:
    answered = Bridge._batch_answered

    def answered_in_reverse(self: Bridge, answers: Any) -> None:
        answered(self, answers._replace(results=answers.results[::-1]))

    return mock.patch.object(Bridge, "_batch_answered", answered_in_reverse)


@_mutation
def take_every_nap_of_a_batch_for_resumed() -> AbstractContextManager[Any]:
    answered = Bridge._batch_answered

    def answered_well(self: Bridge, answers: Any) -> None:
        answered(self, answers._replace(results=[200] * len(answers.results)))

    return mock.patch.object(Bridge, "_batch_answered", answered_well)


def _all(*patches: AbstractContextManager[Any]) -> AbstractContextManager[Any]:
    stack = ExitStack()
    for patch in patches:
        stack.enter_context(patch)
    return stack


def _never_postponed(is_meant: Callable[[Held], bool]) -> AbstractContextManager[Any]:
    """Without the servicer's own second look at what comes too early, or at some of it."""
    send = _Session.send_continues

    def send_continues(self: _Session, batch: Sequence[Held]) -> None:
        for held in batch:
            if is_meant(held):
                self._continues.append(held)
                self._gatherer.hurry()
            else:
                send(self, [held])

    return mock.patch.object(_Session, "send_continues", send_continues)


def _with_lefts(change: Callable[[list[int]], list[int]]) -> AbstractContextManager[Any]:
    """With other numbers than those of `SessionRequest.left_us`."""
    take_in = _Session._take_in

    def take_in_changed(self: _Session, suspends: Sequence[bytes], lefts_us: Sequence[int], *arguments: Any) -> None:
        take_in(self, suspends, change(list(lefts_us)), *arguments)

    return mock.patch.object(_Session, "_take_in", take_in_changed)
