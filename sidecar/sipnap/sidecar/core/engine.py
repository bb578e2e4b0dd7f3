"""The engine: every rule about suspensions, in one place.

The edges feed it requests, answers and the passing of time, and carry out what it returns. The order of a suspension's
life is `reserve`, (the journal commits), `activate`, `pop_due`, (the continue travels), `settle`. The rules about its
operations are those of `sipnap.sidecar.core.jobs`: they begin with `activate`, and may continue it before its time.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from sipnap.sidecar.core.counters import Counters
from sipnap.sidecar.core.deadlines import DeadlineWatch
from sipnap.sidecar.core.front_ends import FrontEnd
from sipnap.sidecar.core.groups import Job, Policy, WorkerGroup
from sipnap.sidecar.core.jobs import JobBook
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
    Refused,
    Request,
    Sleeper,
    Status,
    Work,
)
from sipnap.sidecar.core.timers import TimerHeap

_NO_EPOCH = 0  # no front end has it: in the contract it stands for the present one
_MOST_KNOWN_ROUTES = 10_000
_ROUTE = re.compile(r"[A-Za-z0-9_.:-]{1,64}\Z")


@dataclass(frozen=True, slots=True)
class Due:
    """Whose time has come."""

    continues: list[Held]
    """To be sent to their front ends."""
    sleepers: list[Sleeper]
    """To be woken."""
    answered: list[Held]
    """To be sent to their front ends as well, before their time: the last attempt of their operations has timed out."""


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
        self.front_ends: dict[str, FrontEnd] = {}
        self.draining = False
        self.journal_error = ""
        """Why the journal takes nothing at present; empty: it does."""
        self.timers: TimerHeap[Held | Sleeper | Job | DeadlineWatch] = TimerHeap()
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
        self._routes: dict[str, str] = {}
        self._deadlines = DeadlineWatch(clock, self.timers)
        self._ended: list[Held] = []

    # Front ends

    def attach(self, front_end_id: str, boot_epoch: int) -> FrontEnd:
        """A front end has said Hello. What it held in an earlier life is gone (its transactions died with it).

        The caller sends again what is in `FrontEnd.continuing`, marked by `mark_sent`.

        Raises:
            Refused: There are too many front ends.
        """
        front_end = self.front_ends.get(front_end_id)
        if front_end is None:
            front_end = self._make_front_end(front_end_id, boot_epoch)
        elif front_end.boot_epoch != boot_epoch:
            front_end.begin_life(boot_epoch)
            for held in list(front_end.held.values()):
                if held.packed_key[:8] != front_end.packed_epoch and held.phase is not Phase.COMMITTING:
                    self.counters.outcomes[Outcome.GONE] += 1
                    self._end(held)
        front_end.connected = True
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
        front_end = self._make_front_end(front_end_id, _NO_EPOCH)
        front_end.gone_since_seconds = float("-inf")
        return front_end

    def disown(self, front_end: FrontEnd) -> None:
        """Another sidecar holds it now: forget everything of it. Nothing fires, nothing counts as ended."""
        for held in front_end.held.values():
            held.phase = Phase.ENDED
            self.timers.disarm(held)
            if held.work is not None:
                self.jobs.abandon(held.work)
        front_end.committing = 0
        front_end.held.clear()
        front_end.continuing.clear()
        front_end.connected = False
        if self.front_ends.get(front_end.front_end_id) is front_end:
            del self.front_ends[front_end.front_end_id]

    def front_end_for(self, front_end_id: str) -> FrontEnd:
        """The front end that a unary call names.

        Raises:
            Refused: It has no session, nor had one lately: nobody would ever resume its transactions.
        """
        front_end = self.front_ends.get(front_end_id)
        if front_end is not None and (
            front_end.connected or self._clock() - front_end.gone_since_seconds < self.limits.linger_seconds
        ):
            return front_end
        raise self._refusal(
            Reason.FRONT_END_UNKNOWN, f"front end {front_end_id[:160]!r} has no session with this sidecar"
        )

    def _make_front_end(self, front_end_id: str, boot_epoch: int) -> FrontEnd:
        if len(self.front_ends) >= self.limits.max_front_ends:
            self._forget_idle_front_ends()
        if len(self.front_ends) >= self.limits.max_front_ends:
            raise Refused(Reason.FULL, f"the sidecar serves {self.limits.max_front_ends} front ends already")
        front_end = self.front_ends[front_end_id] = FrontEnd(front_end_id, boot_epoch)
        return front_end

    def _forget_idle_front_ends(self) -> None:
        for name, front_end in list(self.front_ends.items()):
            if not front_end.connected and not front_end.held:
                del self.front_ends[name]

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
        request = Request(key, route, due_seconds - accepted_seconds, None, payload, operations)
        if sequence is None:
            sequence = self._next_sequence()
        elif sequence > self._last_sequence:
            self._last_sequence = sequence
        linger_seconds = self.limits.linger_seconds
        held = Held(front_end, request, sequence, accepted_seconds, linger_seconds)
        held.due_seconds = due_seconds
        held.linger_seconds = max(deadline_seconds, self._clock() + linger_seconds) - due_seconds
        held.phase = Phase.PENDING
        late_seconds = self._clock() - due_seconds
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
        self._begin_pending(held)

    # Suspensions

    def reserve(self, front_end: FrontEnd, request: Request) -> tuple[Held, bool]:
        """Judge a request and take it in, not yet acknowledged: it cannot fire before `activate`.

        Returns:
            The suspension, and whether it is new; a key that is held already changes nothing.

        Raises:
            Refused: It is not accepted.
        """
        key, route, delay_seconds, deadline_seconds, payload, operations = request
        held = front_end.held.get(key.pack())
        if held is not None:
            return held, False
        limits = self.limits
        if self.draining:
            raise self._refusal(Reason.DRAINING, "the sidecar is shutting down")
        if self.journal_error:
            raise self._refusal(Reason.JOURNAL_UNAVAILABLE, self.journal_error)
        if route not in self._routes:
            if not _ROUTE.match(route):
                raise self._refusal(Reason.INVALID, f"resume_route {route[:80]!r} is not 1 to 64 of [A-Za-z0-9_.:-]")
            if len(self._routes) < _MOST_KNOWN_ROUTES:
                self._routes[route] = route
        if key[0] != front_end.boot_epoch:
            raise self._refusal(
                Reason.STALE_EPOCH,
                f"boot epoch {key.boot_epoch} is not the front end's present one, {front_end.boot_epoch}",
            )
        if len(front_end.held) >= limits.max_pending:
            raise self._refusal(Reason.FULL, f"{limits.max_pending} suspensions are held already (--max-pending)")
        if len(payload) > limits.max_entry_bytes:
            raise self._refusal(
                Reason.TOO_LARGE, f"{len(payload)} bytes, more than {limits.max_entry_bytes} (--max-entry-bytes)"
            )
        if not 0 < delay_seconds <= limits.max_delay_seconds:
            self._check_delay(delay_seconds)
        if deadline_seconds is not None and not delay_seconds < deadline_seconds < 1e9:
            raise self._refusal(
                Reason.DELAY_OUT_OF_RANGE,
                f"deadline of {deadline_seconds:g} s is not after the delay of {delay_seconds:g} s",
            )
        work = self.jobs.judge(operations) if operations else None
        self._last_sequence += 1
        held = Held(front_end, request, self._last_sequence, self._clock(), limits.linger_seconds)
        held.route = self._routes.get(route, route)  # one string for all of them
        if work is not None:
            self.jobs.give(held, work, delay_seconds)
        front_end.held[held.packed_key] = held
        front_end.committing += 1
        return held, True

    def activate(self, batch: Iterable[Held]) -> None:
        """The journal has them: they are accepted, their time runs, their operations are queued."""
        for held in batch:
            if held.phase is not Phase.COMMITTING:  # cancelled during the commit
                continue
            front_end = held.front_end
            front_end.committing -= 1
            self.counters.accepted += 1
            held.phase = Phase.PENDING
            if held.packed_key[:8] != front_end.packed_epoch:  # the front end was restarted during the commit
                self.counters.outcomes[Outcome.GONE] += 1
                self._end(held)
                continue
            self._begin_pending(held)
            if held.work is not None:
                self.jobs.queue(held.work.jobs)

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
        held = front_end.continuing.get(key.pack())
        if held is not None:
            self.settle_held(held, outcome)
        return held

    def settle_held(self, held: Held, outcome: Outcome) -> None:
        """`settle` for who has the suspension at hand; it may have ended since."""
        if held.phase is Phase.CONTINUING:
            self.counters.outcomes[outcome] += 1
            self._end(held)

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
        self._check_delay(seconds)
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

        Never early: a timer counts when its time has passed; only a front end that waits itself gets its continues
        ahead of their time.
        """
        now = self._clock()
        due = Due([], [], [])
        for item in self.timers.pop_due(now, most):
            if isinstance(item, Held):
                if item.phase is Phase.CONTINUING:
                    if item.deadline_seconds > now:  # its last job timed out in this very turn, before its own time
                        continue
                    self._lose(item)
                    continue
                if item.due_seconds > now + item.front_end.ahead_seconds:
                    self._begin_pending(item)  # its front end has another session since, and that one does not wait
                    continue
                if item.work is not None and item.work.jobs:
                    self.jobs.time_out(item.work)
                self._begin_continuing(item)
                due.continues.append(item)
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

    def _check_delay(self, seconds: float) -> None:
        if not 0 < seconds <= self.limits.max_delay_seconds:
            raise self._refusal(
                Reason.DELAY_OUT_OF_RANGE,
                f"{seconds:g} s is not more than 0 and at most {self.limits.max_delay_seconds:g} s (--max-seconds)",
            )

    def _begin_pending(self, held: Held) -> None:
        ahead_seconds = held.front_end.ahead_seconds if held.work is None else 0.0
        self.timers.arm(held, held.due_seconds - ahead_seconds, held.sequence)

    def _begin_continuing(self, held: Held) -> None:
        held.phase = Phase.CONTINUING
        held.front_end.continuing[held.packed_key] = held
        self._deadlines.add(held)

    def _begin_continuing_early(self, held: Held) -> None:
        self.timers.disarm(held)
        self._begin_continuing(held)

    def _lose(self, held: Held) -> None:
        self.counters.lost += 1
        self._end(held)

    def _end(self, held: Held) -> None:
        held.front_end.committing -= held.phase is Phase.COMMITTING
        held.phase = Phase.ENDED
        self.timers.disarm(held)
        if held.work is not None:
            self.jobs.abandon(held.work)
        held.front_end.continuing.pop(held.packed_key, None)
        del held.front_end.held[held.packed_key]
        self._ended.append(held)

    def _next_sequence(self) -> int:
        self._last_sequence += 1
        return self._last_sequence
