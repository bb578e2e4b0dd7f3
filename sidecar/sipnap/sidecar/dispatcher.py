"""Joins the engine to the event loop: one timer for the head of the heap, one commit at a time, one door out."""

from __future__ import annotations

import asyncio
import itertools
import logging
import operator
import weakref
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from sipnap.client.gather import Gatherer
from sipnap.sidecar.core.engine import Engine
from sipnap.sidecar.core.front_ends import FrontEnd
from sipnap.sidecar.core.groups import Job, JobResult, WorkerGroup, WorkerKind
from sipnap.sidecar.core.histogram import Histogram
from sipnap.sidecar.core.streams import Stream
from sipnap.sidecar.core.suspension import CancelOutcome, Held, NapKey, Outcome, Sleeper
from sipnap.sidecar.journal.base import Durability, Fenced, Journal, JournalError
from sipnap.sidecar.recovery import claim
from sipnap.sidecar.workers.base import WorkerPool

_MOST_TIMERS_PER_TURN = 2000
"""Timers fired before the loop gets a turn again: a million due at once must not silence the RPCs."""

_FORGET_SECONDS = 0.05
"""How long the journal keeps what has ended, at most, while nothing is added."""

_COMMIT_SECONDS = 0.02
"""Shortest time between two commits. A nap's time runs meanwhile; only its acknowledgement waits."""

_SHORT_NAP_SECONDS = 0.08
"""What is due so soon is committed at once, or it would be late; what has operations, too: they begin then."""

_FIRE_SECONDS = 0.002
"""Shortest time between two looks at the timers: under load it is the most that it adds to a nap."""

_JOURNAL_RETRY_SECONDS = 1.0
"""How often a journal that failed is tried again, and one that is shared is asked whose the front ends are."""

_FRONT_END_OF = operator.attrgetter("front_end")

log = logging.getLogger("sipnap.sidecar")


class Connection(Protocol):
    """A front end's session, as the dispatcher sees it. Its methods return at once."""

    def send_due(self, numbers: Sequence[int]) -> None:
        """Tell it of naps of its own that are over as they were asked for, by their numbers."""

    def send_continues(self, batch: Sequence[Held]) -> None:
        """Put continues on their way; at their time, if they are plain and it has not come."""

    def supersede(self, reason: str) -> None:
        """Another session of the same front end, here or at another sidecar, takes over; `reason` for people."""

    def set_credits(self, max_pending: int) -> None:
        """Announce how much may be pending from now on; 0 closes the door."""

    def go_away(self, reason: str) -> None:
        """Announce that nothing new is accepted any more."""


@dataclass(frozen=True, slots=True)
class _Submission:
    batch: list[Held]
    done: Callable[[JournalError | None], None]


class Dispatcher:
    """Carries out what the engine decides. Belongs to one event loop; every method is called in it."""

    def __init__(self, engine: Engine, journal: Journal) -> None:
        self.engine = engine
        self.journal = journal
        self.lateness = Histogram()
        """How long after their time timers were fired."""
        self.pools: dict[WorkerKind, WorkerPool] = {}
        """Who runs the jobs of groups of a kind; without one they wait. Set before `start`."""
        self._loop = asyncio.get_running_loop()
        self._connections: dict[FrontEnd, Connection] = {}
        self._submissions: list[_Submission] = []
        self._work = Gatherer(_COMMIT_SECONDS if journal.durability is not Durability.MEMORY else 0.0)
        self._timer: asyncio.TimerHandle | None = None
        self._armed_seconds = float("inf")
        self._fired_seconds = float("-inf")
        self._unforgotten: list[Held] = []
        self._forget_timer: asyncio.TimerHandle | None = None
        self._committing = asyncio.Lock()
        self._check_wanted = False
        self._claims: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    def start(self) -> None:
        """Take up what was restored into the engine."""
        self._changed()
        if self.journal.shared:
            self._check()

    # Sessions

    @property
    def connection_count(self) -> int:
        """Sessions open now."""
        return len(self._connections)

    async def attach(
        self, front_end_id: str, boot_epoch: int, connection: Connection, ahead_seconds: float = 0.0
    ) -> FrontEnd:
        """Open a session: an older one of the same front end ends, unanswered continues go out again.

        With a shared journal this sidecar owns the front end from now on, and has what others held of it.
        `ahead_seconds`: how long before its time a nap that has this session's number may be handed to the connection.

        Raises:
            Refused: There are too many front ends.
            JournalError: What others held of it cannot be had at present.
        """
        if not self.journal.shared:
            return self._open(front_end_id, boot_epoch, connection, ahead_seconds)
        async with self._claims.setdefault(front_end_id, asyncio.Lock()):
            await self._claim(front_end_id)
            return self._open(front_end_id, boot_epoch, connection, ahead_seconds)

    def is_claiming(self, front_end_id: str) -> bool:
        """Whether a front end is being taken over at present: what is held of it is not all here yet."""
        lock = self._claims.get(front_end_id)
        return lock is not None and lock.locked()

    async def _claim(self, front_end_id: str) -> None:
        front_end = self.engine.front_ends.get(front_end_id)
        if front_end is not None:
            try:
                is_ours = await self.journal.holds(front_end)
            except JournalError as error:
                # Nobody can say whose it is. We held it last that we know, and it came to us: what is held has to fire.
                self._report_journal(str(error))
                return
            if is_ours and self.engine.front_ends.get(front_end_id) is front_end:
                return
            self.engine.counters.fenced += 1
            self._disown({front_end: "another sidecar, until now"})
        front_end = self.engine.adopt(front_end_id)
        try:
            await claim(self.engine, self.journal, front_end)
        except BaseException:
            self.engine.disown(front_end)
            self._changed()
            raise

    def _open(self, front_end_id: str, boot_epoch: int, connection: Connection, ahead_seconds: float) -> FrontEnd:
        front_end = self.engine.attach(front_end_id, boot_epoch, ahead_seconds)
        previous = self._connections.pop(front_end, None)
        if previous is not None:
            previous.supersede(f"another session of front end {front_end_id!r} took over")
        self._connections[front_end] = connection
        if front_end.continuing:
            connection.send_continues(list(front_end.continuing.values()))
        self._changed()
        return front_end

    def detach(self, front_end: FrontEnd, connection: Connection) -> None:
        """A session has ended; unless another took its place, the front end has none now."""
        if self._connections.get(front_end) is connection:
            del self._connections[front_end]
            self.engine.detach(front_end)

    def _disown(self, owners: Mapping[FrontEnd, str]) -> None:
        """Other sidecars own these front ends: their naps are not ours to fire any more."""
        for front_end, owner in owners.items():
            name, held = front_end.front_end_id, len(front_end.held)
            self.engine.disown(front_end)
            connection = self._connections.pop(front_end, None)
            if connection is not None:
                connection.supersede(f"another sidecar owns front end {name!r} now: {owner}")
            log.warning(
                "another sidecar owns a front end now, its naps are left to it front_end=%s owner=%s dropped=%d",
                name, owner, held,
            )  # fmt: skip
        self._changed()

    def announce_drain(self, reason: str) -> None:
        """Accept nothing new from now on and say so to every session."""
        self.engine.draining = True
        for connection in self._connections.values():
            connection.go_away(reason)

    # Suspensions

    def submit(self, batch: list[Held], done: Callable[[JournalError | None], None]) -> None:
        """Commit reserved suspensions; `done` is called when they are accepted, or with why they could not be."""
        self._submissions.append(_Submission(batch, done))
        soon_seconds = self._loop.time() + _SHORT_NAP_SECONDS
        if [held for held in batch if held.due_seconds < soon_seconds or held.work is not None]:
            self._work.hurry()
        else:
            self._work.wake()

    def cancel(self, front_end_id: str, key: NapKey) -> CancelOutcome:
        """End a suspension before its time."""
        outcome = self.engine.cancel(front_end_id, key)
        self._changed()
        return outcome

    def settle(self, front_end: FrontEnd, answers: Iterable[tuple[NapKey, Outcome]]) -> None:
        """A front end's answers for continues."""
        for key, outcome in answers:
            held = self.engine.settle(front_end, key, outcome)
            if held is not None and outcome is Outcome.REJECTED:
                log.warning("no such route front_end=%s route=%s key=%s", front_end.front_end_id, held.route, held.key)
        self._changed()

    def settle_applied(self, front_end: FrontEnd, stream: Stream | None, numbers: Iterable[int]) -> None:
        """What a front end resumed, by the numbers of its stream."""
        self.engine.settle_applied(front_end, stream, numbers)
        self._changed()

    def sleep(self, seconds: float) -> tuple[asyncio.Future[None], Sleeper]:
        """Begin a sleep; the future is done when its time has passed.

        Raises:
            Refused: It is not accepted.
        """
        future = self._loop.create_future()
        sleeper = self.engine.sleep(seconds, future)
        self._arm()
        return future, sleeper

    # Time and journal

    async def commit_forever(self) -> None:
        """Commit what has gathered, one batch after the other, until cancelled. Started once.

        At once after a pause; under load a commit takes in what some milliseconds bring, for one sync.
        """
        while True:
            await self._work.wait()
            await self.commit_once()
            if self.engine.journal_error:
                await asyncio.sleep(_JOURNAL_RETRY_SECONDS)
                self._work.wake()

    async def commit_once(self) -> None:
        """Commit what has gathered so far: additions are acknowledged after it, never before. One commit at a time."""
        async with self._committing:
            await self._commit()

    async def _commit(self) -> None:
        submissions, self._submissions = self._submissions, []
        is_checking, self._check_wanted = self._check_wanted, False
        self._unforgotten += self.engine.take_ended()
        ended = self._unforgotten
        if not submissions and not ended and not self.engine.journal_error and not is_checking:
            return
        added = [held for submission in submissions for held in submission.batch]
        refusal: Fenced | None = None
        try:
            await self.journal.commit(added, ended)
        except Fenced as fenced:
            refusal = fenced
            self.engine.counters.fenced += len(fenced.owners)
            self.engine.abandon(held for held in added if held.front_end in fenced.owners)
            self._disown(fenced.owners)
        except JournalError as error:
            self._report_journal(str(error))
            self.engine.abandon(added)
            for submission in submissions:
                submission.done(error)
            return
        self._unforgotten = []
        self._report_journal("")
        self.engine.activate(added)  # what was abandoned stays so
        for submission in submissions:
            if refusal is not None and any(held.front_end in refusal.owners for held in submission.batch):
                submission.done(refusal)  # a submission is of one front end
            else:
                submission.done(None)
        self._changed()

    def check_owners(self) -> None:
        """Have a shared journal asked, also when there is nothing to write: is it there, are the front ends ours?"""
        self._check_wanted = True
        self._work.wake()

    def _check(self) -> None:
        self.check_owners()
        self._loop.call_later(_JOURNAL_RETRY_SECONDS, self._check)

    def _report_journal(self, error: str) -> None:
        engine = self.engine
        if error and not engine.journal_error:
            log.error("journal failed, new naps are refused, held ones still fire reason=%s", error)
        elif engine.journal_error and not error:
            log.warning("journal works again kind=%s", self.journal.kind)
        if bool(error) != bool(engine.journal_error):
            for connection in self._connections.values():
                connection.set_credits(0 if error or engine.draining else engine.limits.max_pending)
        engine.journal_error = error

    def _changed(self) -> None:
        """Follow up on whatever the engine may have gathered."""
        if self.engine.jobs.has_news:
            self._wake_pools()
        self._arm()
        if self.engine.has_ended and self._forget_timer is None:
            # Forgetting late is harmless (a continue may come again and is answered from memory), a sync is not free:
            # so it waits for the next additions, if they come soon.
            self._forget_timer = self._loop.call_later(_FORGET_SECONDS, self._forget)

    def _forget(self) -> None:
        self._forget_timer = None
        self._work.wake()

    def _arm(self) -> None:
        due_seconds = self.engine.timers.next_due_seconds()
        if due_seconds is None:
            return
        due_seconds = max(due_seconds, self._fired_seconds + _FIRE_SECONDS)
        if due_seconds >= self._armed_seconds:
            return  # a timer that comes too soon finds nothing due and is armed anew: cheaper than cancelling it
        if self._timer is not None:
            self._timer.cancel()
        self._armed_seconds = due_seconds
        self._timer = self._loop.call_at(due_seconds, self._fire)

    def _fire(self) -> None:
        self._armed_seconds = float("inf")
        self._timer = None
        due = self.engine.pop_due(_MOST_TIMERS_PER_TURN)
        now = self._fired_seconds = self._loop.time()
        for sleeper in due.sleepers:
            self.lateness.observe(now - sleeper.due_seconds)
            with suppress(asyncio.InvalidStateError):  # its caller went away in this very turn
                sleeper.waiter.set_result(None)
        for told in due.told:
            if now <= told.earliest_seconds:
                self.lateness.observe(0.0, len(told.naps))
            else:
                self.lateness.observe_all([now - held.due_seconds for held in told.naps.values()])
            connection = self._connections.get(told.front_end)
            if connection is not None:
                connection.send_due(list(told.naps))
        self.lateness.observe_all([now - held.due_seconds for held in due.continues])
        self._send(due.continues)
        self._send(due.answered)
        self._changed()

    def _send(self, continues: Sequence[Held]) -> None:
        for front_end, batch in itertools.groupby(continues, _FRONT_END_OF):
            connection = self._connections.get(front_end)
            if connection is not None:
                connection.send_continues(list(batch))

    # Operations

    def take_job(self, group: WorkerGroup, operations: Container[str] | None = None) -> Job | None:
        """A pool has a free worker that can run these operations (None: any): the first job for it, if there is one.

        It is answered for by `job_done` or `release_job`, exactly once.
        """
        if self.engine.draining and self.journal.durability is not Durability.MEMORY:
            return None  # the next start finds it in the journal
        job = self.engine.jobs.take(group, operations)
        if job is not None:
            self._arm()
        return job

    def send_job(self, group: WorkerGroup) -> Job | None:
        """The first job of a group, to wait in a queue that sidecars share, for a worker of any of them.

        Then it is answered for by `begin_job` and `job_done`, unless it is stopped before.
        """
        return group.send_away()

    def begin_job(self, job: Job, attempt: int) -> None:
        """A worker somewhere has taken a job that was sent away, for this attempt."""
        self.engine.jobs.begin(job, attempt)
        self._arm()

    def job_done(self, job: Job, result: JobResult) -> None:
        """A pool's worker has ended an attempt, in one way or another, and is free."""
        held = self.engine.jobs.finish(job, result)
        if held is not None:
            self._send([held])
        self._changed()

    def release_job(self, job: Job) -> None:
        """A pool's worker gives back what it did not begin."""
        self.engine.jobs.release(job)
        self._changed()

    def resize(self, group: WorkerGroup, workers: int) -> None:
        """Give a group another number of workers, 1 to `MOST_WORKERS`; of a remote group, as its pool counts."""
        self.engine.jobs.resize(group, workers)
        self._changed()

    def _wake_pools(self) -> None:
        for job in self.engine.jobs.take_stopped():
            pool = self.pools.get(job.group.kind)
            if pool is not None:
                pool.stop(job)
        for group in self.engine.jobs.take_stirred():
            pool = self.pools.get(group.kind)
            if pool is not None:
                pool.wake(group)
