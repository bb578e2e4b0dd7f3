"""The engine: every rule about suspensions, in one place.

The edges feed it requests, answers and the passing of time, and carry out what it returns. The order of a suspension's
life is `reserve`, (the journal commits), `activate`, `pop_due`, (the continue travels), `settle`. The rules about its
operations are those of `sipnap.sidecar.core.jobs`: they begin with `activate`, and may continue it before its time.
Most come by the thousand, in a stream that numbers them: for those it is `take_in`, and `settle_applied` in the end.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping

from sipnap.sidecar.core.counters import Counters
from sipnap.sidecar.core.deadlines import DeadlineWatch
from sipnap.sidecar.core.door import Door
from sipnap.sidecar.core.due import Due, Told
from sipnap.sidecar.core.front_ends import FrontEnd, FrontEnds
from sipnap.sidecar.core.groups import Job, Policy, WorkerGroup
from sipnap.sidecar.core.jobs import JobBook
from sipnap.sidecar.core.streams import Round, Stream
from sipnap.sidecar.core.suspension import (
    LATE,
    CancelOutcome,
    Held,
    LatePolicy,
    Limits,
    NapKey,
    OperationRequest,
    Outcome,
    Phase,
    Reason,
    Request,
    Sleeper,
    Status,
    Work,
)
from sipnap.sidecar.core.timers import TimerHeap

_COMMITTING, _PENDING, _CONTINUING, _ENDED = Phase  # names that are looked up fast
_NO_EPOCH = 0  # no front end has it: in the contract it stands for the present one


class Engine:
    """All suspensions and sleepers of one sidecar. Not thread-safe: it belongs to one event loop."""

    def __init__(
        self,
        clock: Callable[[], float],
        limits: Limits,
        groups: Iterable[WorkerGroup] = (),
        operations: Mapping[str, Policy] | None = None,
    ) -> None:
        """Begin empty.

        Args:
            clock: Monotonic seconds.
            limits: What to refuse.
            groups: The worker groups; a "default" one of no workers is added if there is none.
            operations: The operations that the workers know, by name; remote workers may know others.
        """
        self.limits = limits
        self.counters = Counters()
        self.front_ends = FrontEnds(clock, limits, self.counters.refusal)
        self.draining = False
        self.journal_error = ""
        """Why the journal takes nothing at present; empty: it does."""
        self.timers: TimerHeap[Held | Round | Sleeper | Job | DeadlineWatch] = TimerHeap()
        self.jobs = JobBook(
            clock,
            self.timers,
            self.counters,
            self._begin_continuing_early,
            groups=groups,
            operations=operations or {},
            max_result_bytes=limits.max_entry_bytes,
        )
        """The operations of what is held, and the worker groups."""
        self.sleepers = 0
        self._refusal = self.counters.refusal
        self._clock = clock
        self._last_sequence = 0
        self._door = Door(limits, self._refusal)
        self._deadlines = DeadlineWatch(self.front_ends, self.timers)
        self._ended: list[Held] = []

    # Front ends

    def attach(self, front_end_id: str, boot_epoch: int, ahead_seconds: float = 0.0) -> FrontEnd:
        """A front end has said Hello. What it held in an earlier life is gone (its transactions died with it).

        The caller sends again what is in `FrontEnd.continuing`, in full, marked by `mark_sent`. With `ahead_seconds`
        the stream that begins numbers its naps, and takes those numbers so long before their time.

        Raises:
            Refused: There are too many front ends.
        """
        front_end = self.front_ends.get(front_end_id)
        if front_end is None:
            front_end = self.front_ends.make(front_end_id, boot_epoch)
        elif front_end.boot_epoch != boot_epoch:
            front_end.begin_life(boot_epoch)
            for held in list(front_end.held.values()):
                if held.packed_key[:8] != front_end.packed_epoch and held.phase is not Phase.COMMITTING:
                    self.counters.outcomes[Outcome.GONE] += 1
                    self._end(held)
        front_end.connected = True
        front_end.stream = Stream(front_end, ahead_seconds, self.timers) if ahead_seconds > 0 else None
        return front_end

    def detach(self, front_end: FrontEnd) -> None:
        """Its session has ended; its suspensions stay."""
        front_end.connected = False
        front_end.gone_since_seconds = self._clock()

    def adopt(self, front_end_id: str) -> FrontEnd:
        """Make room for a front end that another sidecar held, to be restored and attached.

        Raises:
            Refused: There are too many front ends.
        """
        front_end = self.front_ends.make(front_end_id, _NO_EPOCH)
        front_end.gone_since_seconds = float("-inf")
        return front_end

    def disown(self, front_end: FrontEnd) -> None:
        """Another sidecar holds it now: forget everything of it. Nothing fires, nothing counts as ended."""
        for held in front_end.held.values():
            held.phase = Phase.ENDED
            self._unarm(held)
            if held.work is not None:
                self.jobs.abandon(held.work)
        front_end.committing = 0
        front_end.held.clear()
        front_end.continuing.clear()
        front_end.connected = False
        if self.front_ends.get(front_end.front_end_id) is front_end:
            del self.front_ends[front_end.front_end_id]

    def restore(
        self,
        front_end_id: str,
        key: NapKey,
        route: str,
        payload: bytes,
        *,
        sequence: int | None,
        accepted_seconds: float,
        due_seconds: float,
        deadline_seconds: float,
        operations: tuple[OperationRequest, ...] = (),
        late_policy: Callable[[], LatePolicy] = lambda: LatePolicy.FIRE,
    ) -> None:
        """Take back what a journal kept. Nothing is refused: it was accepted. Times are on the engine's clock.

        `late_policy` is asked for what fell due meanwhile. Without a sequence it comes after everything that is here.
        What fell due meanwhile is due now, and its front end gets a full linger time from now to come back for it.
        """
        front_end = self.front_ends.get(front_end_id)
        if front_end is None:
            # Of no known life until its Hello; only then is it known which of these are over.
            front_end = self.front_ends[front_end_id] = FrontEnd(front_end_id, _NO_EPOCH)
            front_end.gone_since_seconds = float("-inf")
        if sequence is None:
            sequence = self._next_sequence()
        elif sequence > self._last_sequence:
            self._last_sequence = sequence
        now = self._clock()
        linger_seconds = max(deadline_seconds, now + self.limits.linger_seconds) - due_seconds
        held = Held(front_end, key.pack(), route, payload, sequence, due_seconds, linger_seconds)
        held.phase = Phase.PENDING
        late_seconds = now - due_seconds
        policy = late_policy() if late_seconds > 0 else LatePolicy.FIRE
        if policy is LatePolicy.DROP:
            self.counters.dropped += 1
            held.phase = Phase.ENDED
            self._ended.append(held)
            return
        if policy is LatePolicy.FAIL:
            held.work = Work()
            held.work.status, held.work.error_code = Status.FAILED, LATE
            held.work.error = f"late by {late_seconds:.1f} s: no sidecar was there"
        elif operations:
            self.jobs.give_back(held, operations, due_seconds - accepted_seconds)  # what is late times out at once
            if late_seconds <= 0:
                self.jobs.queue(held.jobs)
        front_end.held[held.packed_key] = held
        self.timers.arm(held, due_seconds, sequence)

    # Suspensions

    def reserve(self, front_end: FrontEnd, request: Request) -> tuple[Held, bool]:
        """Judge a request and take it in, not yet acknowledged: it cannot fire before `activate`.

        Returns:
            The suspension, and whether it is new; a key that is held already changes nothing.

        Raises:
            Refused: It is not accepted.
        """
        key, route, delay_seconds, deadline_seconds, payload, operations = request
        return self.take_in(
            front_end, key.pack(), route, delay_seconds, deadline_seconds, payload, operations, self._clock()
        )

    def take_in(
        self,
        front_end: FrontEnd,
        packed_key: bytes,
        route: str,
        delay_seconds: float,
        deadline_seconds: float | None,
        payload: bytes,
        operations: tuple[OperationRequest, ...],
        now_seconds: float,
        stream: Stream | None = None,
    ) -> tuple[Held, bool]:
        """`reserve` for thousands a second: what a request has, when it came, and in which stream it has a number."""
        held = front_end.held.get(packed_key)
        if held is not None:
            return held, False
        if self.draining:
            raise self._refusal(Reason.DRAINING, "the sidecar is shutting down")
        if self.journal_error:
            raise self._refusal(Reason.JOURNAL_UNAVAILABLE, self.journal_error)
        route = self._door.judge(front_end, packed_key, route, delay_seconds, deadline_seconds, len(payload))
        work = self.jobs.judge(operations) if operations else None
        linger_seconds = self.limits.linger_seconds if deadline_seconds is None else deadline_seconds - delay_seconds
        self._last_sequence = sequence = self._last_sequence + 1
        due_seconds = now_seconds + delay_seconds
        held = Held(front_end, packed_key, route, payload, sequence, due_seconds, linger_seconds, stream)
        if work is not None:
            self.jobs.give(held, work, delay_seconds)
        front_end.held[packed_key] = held
        front_end.committing += 1
        return held, True

    def activate(self, batch: Iterable[Held]) -> None:
        """The journal has them: they are accepted, their time runs, their operations are queued."""
        accepted = 0
        arm = self.timers.arm
        for held in batch:
            if held.phase is not _COMMITTING:  # cancelled during the commit
                continue
            front_end = held.front_end
            front_end.committing -= 1
            accepted += 1
            held.phase = _PENDING
            stream = held.stream
            if stream is not None and stream is front_end.stream:
                stream.add(held)
            elif held.packed_key.startswith(front_end.packed_epoch):
                held.stream = None  # if it had one, that is over
                arm(held, held.due_seconds, held.sequence)
            else:  # the front end was restarted during the commit
                self.counters.outcomes[Outcome.GONE] += 1
                self._end(held)
                continue
            if held.work is not None:
                self.jobs.queue(held.work.jobs)
        self.counters.accepted += accepted

    def abandon(self, batch: Iterable[Held]) -> None:
        """The journal could not take them: they were never accepted."""
        for held in batch:
            if held.phase is Phase.COMMITTING:
                held.front_end.committing -= 1
                self.counters.refused[Reason.JOURNAL_UNAVAILABLE] += 1
                held.phase = Phase.ENDED
                if held.work is not None:
                    self.jobs.abandon(held.work)
                del held.front_end.held[held.packed_key]

    def cancel(self, front_end_id: str, key: NapKey) -> CancelOutcome:
        """End a suspension before its time. After CANCELLED it never fires."""
        front_end = self.front_ends.get(front_end_id)
        held = front_end.held.get(key.pack()) if front_end is not None else None
        if held is None:
            return CancelOutcome.GONE
        if held.phase is Phase.CONTINUING:
            return CancelOutcome.CONTINUING
        if held.phase is Phase.COMMITTING:
            self.counters.accepted += 1  # so that the counters add up: `activate` passes over it
        self.counters.cancelled += 1
        self._end(held)
        return CancelOutcome.CANCELLED

    def settle(self, front_end: FrontEnd, key: NapKey, outcome: Outcome) -> Held | None:
        """The front end has answered for a continue. None: nobody asked, a repetition."""
        held = front_end.held.get(key.pack())
        if held is None or held.phase is not Phase.CONTINUING:
            return None
        self.counters.outcomes[outcome] += 1
        self._end(held)
        return held

    def settle_applied(self, front_end: FrontEnd, stream: Stream | None, sequences: Iterable[int]) -> None:
        """What a stream has applied, by its numbers: unknown ones, and those that are over, change nothing."""
        if stream is None:
            return
        continuing, by_key, ended = front_end.continuing, front_end.held, self._ended
        before = len(ended)
        for sequence in sequences:
            held = continuing.get(sequence)
            if held is not None and held.stream is stream:  # so it is a plain nap
                del continuing[sequence]
                del by_key[held.packed_key]
                held.phase = _ENDED
                if held.timer_sequence:
                    self.timers.disarm(held)
                ended.append(held)
        self.counters.outcomes[Outcome.APPLIED] += len(ended) - before

    def mark_sent(self, held: Held) -> int:
        """Its continue is about to be sent; returns which attempt it is, from 1."""
        held.attempt += 1
        return held.attempt

    @property
    def has_ended(self) -> bool:
        """Whether `take_ended` has something to give."""
        return bool(self._ended)

    def take_ended(self) -> list[Held]:
        """Suspensions that have ended since the last call: the journal may forget them."""
        ended, self._ended = self._ended, []
        return ended

    # Sleepers

    def sleep(self, seconds: float, waiter: object) -> Sleeper:
        """Begin a sleep; its time runs from now.

        Raises:
            Refused: It is not accepted.
        """
        if self.draining:
            raise self._refusal(Reason.DRAINING, "the sidecar is shutting down")
        if self.sleepers >= self.limits.max_pending:
            raise self._refusal(Reason.FULL, f"{self.limits.max_pending} callers sleep already (--max-pending)")
        self._door.judge_delay(seconds)
        now = self._clock()
        sleeper = Sleeper(waiter, now, now + seconds)
        self.sleepers += 1
        self.timers.arm(sleeper, sleeper.due_seconds)
        return sleeper

    def wake(self, sleeper: Sleeper) -> None:
        """The sleeper's caller has gone away."""
        if sleeper.timer_sequence:
            self.timers.disarm(sleeper)
            self.sleepers -= 1

    # Time

    def pop_due(self, most: int) -> Due:
        """Carry on to the present, for at most so many timers.

        Never early: a timer counts when its time has passed; only a stream that numbers its naps, and waits itself, is
        told of them ahead of their time.
        """
        now = self._clock()
        due = Due([], [], [], [])
        continues = due.continues
        for item in self.timers.pop_due(now, most):
            if isinstance(item, Round):
                most -= self._begin_round(item, max(most, 0), due)
            elif isinstance(item, Held):
                if item.phase is _CONTINUING and item.deadline_seconds <= now:
                    self._lose(item)
                elif item.phase is _PENDING:  # else it has ended in this very turn, or been continued before its time
                    if item.work is not None and item.work.jobs:
                        self.jobs.time_out(item.work)
                    item.phase = _CONTINUING
                    item.front_end.continuing[item.sequence] = item
                    continues.append(item)
            elif isinstance(item, Sleeper):
                self.sleepers -= 1
                self.counters.slept += 1
                due.sleepers.append(item)
            elif isinstance(item, DeadlineWatch):
                for held in item.look(now):
                    self._lose(held)
            else:
                answered = self.jobs.expire(item, now)
                if answered is not None:
                    due.answered.append(answered)
        if continues:
            self._deadlines.add(continues, now)
        for told in due.told:
            self._deadlines.add(told.naps.values(), now)
        return due

    # Looking

    def find(self, front_end_id: str, key: NapKey) -> Held | None:
        """An accepted suspension."""
        front_end = self.front_ends.get(front_end_id)
        held = front_end.held.get(key.pack()) if front_end is not None else None
        return held if held is not None and held.phase is not Phase.COMMITTING else None

    def list(self, front_end_id: str, after_sequence: int, most: int) -> list[Held]:
        """Accepted suspensions in order of acceptance, at most so many, after that sequence number."""
        chosen: Iterator[FrontEnd] | list[FrontEnd]
        if front_end_id:
            chosen = [front_end] if (front_end := self.front_ends.get(front_end_id)) else []
        else:
            chosen = iter(self.front_ends.values())
        page: list[Held] = []
        for front_end in chosen:
            later = (
                held
                for held in front_end.held.values()
                if held.sequence > after_sequence and held.phase is not Phase.COMMITTING
            )
            page.extend(itertools.islice(later, most))
        page.sort(key=lambda held: held.sequence)
        return page[:most]

    @property
    def held_count(self) -> int:
        """Suspensions held, in any phase."""
        return sum(len(front_end.held) for front_end in self.front_ends.values())

    @property
    def pending_count(self) -> int:
        """Suspensions that are accepted and whose time has not come."""
        return sum(front_end.pending for front_end in self.front_ends.values())

    @property
    def continuing_count(self) -> int:
        """Suspensions whose continue is not answered for yet."""
        return sum(len(front_end.continuing) for front_end in self.front_ends.values())

    # Within

    def _begin_round(self, round_: Round, most: int, due: Due) -> int:
        """It is time to tell a stream of its naps; if it is the present one no more, they wait for their own time.

        Returns:
            How many naps that were; at most so many, the rest have their turn at the next look.
        """
        stream, front_end = round_.stream, round_.stream.front_end
        naps = stream.take(round_, most)
        if stream is not front_end.stream:
            for held in naps.values():
                held.stream = None
                self.timers.arm(held, held.due_seconds, held.sequence)
            return len(naps)
        attempt = int(front_end.connected)
        for held in naps.values():
            held.phase = _CONTINUING
            held.attempt = attempt
        front_end.continuing.update(naps)
        if naps:
            due.told.append(Told(front_end, naps, stream.earliest_seconds(round_)))
        return len(naps)

    def _begin_continuing_early(self, held: Held) -> None:
        self.timers.disarm(held)
        held.phase = Phase.CONTINUING
        held.front_end.continuing[held.sequence] = held
        self._deadlines.add([held], self._clock())

    def _lose(self, held: Held) -> None:
        self.counters.lost += 1
        self._end(held)

    def _end(self, held: Held) -> None:
        held.front_end.committing -= held.phase is Phase.COMMITTING
        held.phase = Phase.ENDED
        self._unarm(held)
        if held.work is not None:
            self.jobs.abandon(held.work)
        held.front_end.continuing.pop(held.sequence, None)
        del held.front_end.held[held.packed_key]
        self._ended.append(held)

    def _unarm(self, held: Held) -> None:
        self.timers.disarm(held)
        if held.stream is not None:
            held.stream.remove(held)

    def _next_sequence(self) -> int:
        self._last_sequence += 1
        return self._last_sequence
