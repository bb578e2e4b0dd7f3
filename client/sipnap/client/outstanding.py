"""What a front end has handed to its sidecar and has not heard of yet. No I/O; the clock is handed in.

Rules kept here, and nowhere else:

- a suspension stays until it is answered for, cancelled, or past its deadline;
- a continue is delivered once, however often it comes; one that was answered lately is answered again from memory;
- after a reconnect everything undelivered is submitted again; whenever it is sent, with what is left of its delay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from google.protobuf.duration_pb2 import Duration

from sipnap.client.keys import SuspensionKey
from sipnap.v1 import suspension_pb2 as pb

ANSWER_MEMORY_SECONDS = 60.0
"""An answer is remembered for at least this long, at most twice as long."""

DEFAULT_LINGER_SECONDS = 60.0
"""What a suspension without a deadline is given beyond its delay."""

_SHORTEST_DELAY_SECONDS = 0.001


class _Entry:
    __slots__ = ("deadline_seconds", "delivered", "due_seconds", "has_deadline", "suspension")

    def __init__(
        self, suspension: pb.Suspension, due_seconds: float, deadline_seconds: float, *, has_deadline: bool
    ) -> None:
        self.suspension = suspension
        self.has_deadline = has_deadline
        self.due_seconds = due_seconds
        self.deadline_seconds = deadline_seconds
        self.delivered = False


class Outstanding:
    """The table of unanswered suspensions of one front end, keyed by `SuspensionKey`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._entries: dict[SuspensionKey, _Entry] = {}
        # Keys, in order, by the second of their deadline: a sweep touches only what is over, and nothing stale is kept.
        self._by_deadline: dict[int, dict[SuspensionKey, None]] = {}
        self._swept_second = int(clock())
        self._unknown_delivered: set[SuspensionKey] = set()
        self._answers: dict[SuspensionKey, pb.ContinueOutcome] = {}
        self._older_answers: dict[SuspensionKey, pb.ContinueOutcome] = {}
        self._answers_rotated_seconds = clock()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: SuspensionKey) -> bool:
        return key in self._entries

    def add(self, key: SuspensionKey, suspension: pb.Suspension) -> bool:
        """Take a suspension in; False if its key is here already."""
        if key in self._entries:
            return False
        now = self._clock()
        due_seconds = now + seconds_of(suspension.delay)
        has_deadline = suspension.HasField("deadline")
        if has_deadline:
            deadline_seconds = now + seconds_of(suspension.deadline)
        else:
            deadline_seconds = due_seconds + DEFAULT_LINGER_SECONDS
        self._entries[key] = _Entry(suspension, due_seconds, deadline_seconds, has_deadline=has_deadline)
        second = int(deadline_seconds)
        bucket = self._by_deadline.get(second)
        if bucket is None:
            bucket = self._by_deadline[second] = {}
        bucket[key] = None
        return True

    def drop(self, key: SuspensionKey) -> bool:
        """Forget a suspension; False if there was none."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return False
        second = int(entry.deadline_seconds)
        bucket = self._by_deadline.get(second)
        if bucket is not None:
            bucket.pop(key, None)
            if not bucket:
                del self._by_deadline[second]
        return True

    def deliver(self, key: SuspensionKey) -> bool:
        """Note that a continue for `key` arrived; True if the front end has to see it, False for a repetition.

        A key that is not in the table is delivered too: it may stem from the front end's life before a restart of its
        shim, or from another program's SuspendRoute.
        """
        entry = self._entries.get(key)
        if entry is not None:
            if entry.delivered:
                return False
            entry.delivered = True
            return True
        if key in self._unknown_delivered:
            return False
        self._unknown_delivered.add(key)
        return True

    def answer(self, key: SuspensionKey, outcome: pb.ContinueOutcome) -> None:
        """Note the front end's answer: the suspension is over."""
        if not self.drop(key):
            self._unknown_delivered.discard(key)
        self._answers[key] = outcome

    def remembered_answer(self, key: SuspensionKey) -> pb.ContinueOutcome | None:
        """The answer given lately for `key`, if any."""
        outcome = self._answers.get(key)
        return outcome if outcome is not None else self._older_answers.get(key)

    def undelivered(self) -> list[SuspensionKey]:
        """What a sidecar has to be told after a reconnect, in order of submission."""
        return [key for key, entry in self._entries.items() if not entry.delivered]

    def to_send(self, keys: Sequence[SuspensionKey]) -> list[pb.Suspension]:
        """Those of the keys that are still wanted, each with what is left of its times at this moment.

        So neither gathering nor a reconnect makes a nap longer, and none gets shorter than it was asked for.
        """
        now = self._clock()
        suspensions = []
        for key in keys:
            entry = self._entries.get(key)
            if entry is None or entry.delivered:
                continue
            suspension = entry.suspension
            set_duration(suspension.delay, max(entry.due_seconds - now, _SHORTEST_DELAY_SECONDS))
            if entry.has_deadline:
                set_duration(suspension.deadline, max(entry.deadline_seconds - now, 2 * _SHORTEST_DELAY_SECONDS))
            suspensions.append(suspension)
        return suspensions

    def route_of(self, key: SuspensionKey) -> str:
        """The resume route that was asked for; empty when the key is not in the table."""
        entry = self._entries.get(key)
        return entry.suspension.resume_route if entry is not None else ""

    def sweep(self) -> list[tuple[SuspensionKey, str]]:
        """Take out what is past its deadline, to the second.

        Returns:
            Key and resume route of those that were never delivered: they are lost.
        """
        now = self._clock()
        if now - self._answers_rotated_seconds >= ANSWER_MEMORY_SECONDS:
            self._older_answers, self._answers = self._answers, {}
            self._answers_rotated_seconds = now
        lost = []
        for second in range(self._swept_second, int(now)):
            for key in self._by_deadline.pop(second, ()):
                entry = self._entries.pop(key)
                # Until it is answered: a continue that comes after all is a repetition.
                self._unknown_delivered.add(key)
                if not entry.delivered:
                    lost.append((key, entry.suspension.resume_route))
        self._swept_second = int(now)
        return lost

    def clear(self) -> None:
        """Forget everything: the transactions are gone."""
        self._entries.clear()
        self._by_deadline.clear()
        self._unknown_delivered.clear()


def seconds_of(duration: Duration) -> float:
    """A protobuf Duration in seconds."""
    return duration.seconds + duration.nanos * 1e-9


def set_duration(duration: Duration, seconds: float) -> None:
    """Set a protobuf Duration, rounded up to the nanosecond: a nap must not get shorter on its way."""
    whole = int(seconds)
    nanos = int((seconds - whole) * 1e9) + 1 if seconds > 0 else 0
    if nanos >= 1_000_000_000:
        whole, nanos = whole + 1, 0
    duration.seconds = whole
    duration.nanos = nanos
