"""What a front end has handed to its sidecar and has not heard of yet. No I/O; the clock is handed in.

Rules kept here, and nowhere else:

- a suspension stays until it is answered for, cancelled, or past its deadline;
- a continue is delivered once, however often it comes; one that was answered lately is answered again from memory;
- after a reconnect everything undelivered is submitted again; whenever it is sent, with what is left of its delay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from google.protobuf.duration_pb2 import Duration

from sipnap.client.keys import Key
from sipnap.v1 import suspension_pb2 as pb

ANSWER_MEMORY_SECONDS = 10.0
"""An answer is remembered for at least this long while there is a sidecar; without one, until there is."""

DEFAULT_LINGER_SECONDS = 60.0
"""What a suspension without a deadline is given beyond its delay."""

_SHORTEST_DELAY_SECONDS = 0.001


class _Entry:
    __slots__ = (
        "continue_number",
        "deadline_seconds",
        "due_seconds",
        "encoded",
        "has_deadline",
        "is_delivered",
        "route",
    )

    def __init__(
        self, encoded: bytes, route: str, due_seconds: float, deadline_seconds: float, *, has_deadline: bool
    ) -> None:
        self.encoded = encoded
        self.route = route
        self.has_deadline = has_deadline
        self.due_seconds = due_seconds
        self.deadline_seconds = deadline_seconds
        self.is_delivered = False
        self.continue_number = 0


class Outstanding:
    """The table of unanswered suspensions of one front end, keyed by `SuspensionKey`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._entries: dict[Key, _Entry] = {}
        # Keys, in order, by the second of their deadline: a sweep touches only what is over, and nothing stale is kept.
        self._by_deadline: dict[int, dict[Key, None]] = {}
        self._times = pb.Suspension()
        self._swept_second = int(clock())
        self._unknown_delivered: set[Key] = set()
        self._answers: dict[Key, pb.ContinueOutcome] = {}
        self._older_answers: dict[Key, pb.ContinueOutcome] = {}
        self._answers_rotated_seconds = clock()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: Key) -> bool:
        return key in self._entries

    def add(
        self, key: Key, encoded: bytes, route: str, delay_seconds: float, deadline_seconds: float | None = None
    ) -> bool:
        """Take a suspension in; False if its key is here already.

        Args:
            key: Which.
            encoded: The Suspension message without delay and deadline: those change while it waits.
            route: Route to resume in.
            delay_seconds: Its delay, from now.
            deadline_seconds: Its deadline, from now; None: none was given.
        """
        entries = self._entries
        if key in entries:
            return False
        now = self._clock()
        due_seconds = now + delay_seconds
        over_seconds = due_seconds + DEFAULT_LINGER_SECONDS if deadline_seconds is None else now + deadline_seconds
        entries[key] = _Entry(encoded, route, due_seconds, over_seconds, has_deadline=deadline_seconds is not None)
        second = int(over_seconds)
        bucket = self._by_deadline.get(second)
        if bucket is None:
            bucket = self._by_deadline[second] = {}
        bucket[key] = None
        return True

    def drop(self, key: Key) -> bool:
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

    def deliver(self, key: Key, continue_number: int = 0) -> bool:
        """Note that a continue for `key` arrived; True if the front end has to see it, False for a repetition.

        A key that is not in the table is delivered too: it may stem from the front end's life before a restart of its
        shim, or from another program's SuspendRoute. `continue_number` is what `answer` gives back.
        """
        entry = self._entries.get(key)
        if entry is not None:
            if continue_number:
                entry.continue_number = continue_number
            if entry.is_delivered:
                return False
            entry.is_delivered = True
            return True
        if key in self._unknown_delivered:
            return False
        self._unknown_delivered.add(key)
        return True

    def answer(self, key: Key, outcome: pb.ContinueOutcome) -> int:
        """Note the front end's answer: the suspension is over.

        Returns:
            The number of the continue that it answers, if this stream brought one; 0 otherwise.
        """
        self._answers[key] = outcome
        entry = self._entries.get(key)
        if entry is None:
            self._unknown_delivered.discard(key)
            return 0
        self.drop(key)
        return entry.continue_number

    def forget_numbers(self) -> None:
        """A new stream: numbers of the old one mean nothing in it."""
        for entry in self._entries.values():
            entry.continue_number = 0

    def remembered_answer(self, key: Key) -> pb.ContinueOutcome | None:
        """The answer given lately for `key`, if any."""
        outcome = self._answers.get(key)
        return outcome if outcome is not None else self._older_answers.get(key)

    def undelivered(self) -> list[Key]:
        """What a sidecar has to be told after a reconnect, in order of submission."""
        return [key for key, entry in self._entries.items() if not entry.is_delivered]

    def to_send(self, keys: Sequence[Key]) -> list[bytes]:
        """Those of the keys that are still wanted, encoded, each with what is left of its times at this moment.

        So neither gathering nor a reconnect makes a nap longer, and none gets shorter than it was asked for.
        """
        now = self._clock()
        times = self._times
        delay = times.delay
        encoded = []
        for key in keys:
            entry = self._entries.get(key)
            if entry is None or entry.is_delivered:
                continue
            set_duration(delay, max(entry.due_seconds - now, _SHORTEST_DELAY_SECONDS))
            if entry.has_deadline:
                set_duration(times.deadline, max(entry.deadline_seconds - now, 2 * _SHORTEST_DELAY_SECONDS))
                # One message after the other is the same as one with the fields of both.
                encoded.append(entry.encoded + times.SerializeToString())
                times.ClearField("deadline")
            else:
                encoded.append(entry.encoded + times.SerializeToString())
        return encoded

    def encoded_of(self, key: Key) -> bytes | None:
        """What was added under the key; None: nothing is."""
        entry = self._entries.get(key)
        return entry.encoded if entry is not None else None

    def due_seconds_of(self, key: Key) -> float:
        """When its time has passed, on this table's clock; infinity when the key is not in the table."""
        entry = self._entries.get(key)
        return entry.due_seconds if entry is not None else math.inf

    def route_of(self, key: Key) -> str:
        """The resume route that was asked for; empty when the key is not in the table."""
        entry = self._entries.get(key)
        return entry.route if entry is not None else ""

    def sweep(self, *, has_sidecar: bool) -> list[tuple[Key, str]]:
        """Take out what is past its deadline, to the second, and old answers if there is a sidecar that had them.

        Returns:
            Key and resume route of those that were never delivered: they are lost.
        """
        now = self._clock()
        if not has_sidecar:
            self._answers_rotated_seconds = now
        elif now - self._answers_rotated_seconds >= ANSWER_MEMORY_SECONDS:
            self._older_answers, self._answers = self._answers, {}
            self._answers_rotated_seconds = now
        lost = []
        for second in range(self._swept_second, int(now)):
            for key in self._by_deadline.pop(second, ()):
                entry = self._entries.pop(key)
                # Until it is answered: a continue that comes after all is a repetition.
                self._unknown_delivered.add(key)
                if not entry.is_delivered:
                    lost.append((key, entry.route))
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
    nanos = int((seconds - whole) * 1e9) + 1 if seconds > whole else 0
    if nanos >= 1_000_000_000:
        whole, nanos = whole + 1, 0
    duration.seconds = whole
    duration.nanos = nanos
