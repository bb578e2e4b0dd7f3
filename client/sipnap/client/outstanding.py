"""What a front end has handed to its sidecar and has not heard of yet. No I/O; the clock is handed in.

Rules kept here, and nowhere else:

- a suspension stays until it is answered for, cancelled, or past its deadline;
- that it is over is delivered once, however often it is said; what was answered lately is answered again from memory;
- a number names a suspension in the stream that gave it, and in no other;
- after a reconnect everything undelivered is submitted again; whenever it is sent, with what is left of its delay.

There is one object per suspension, and it is referred to; its key is looked up only when somebody names it by that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from google.protobuf.duration_pb2 import Duration

from sipnap.client.answers import Answers
from sipnap.client.keys import Key
from sipnap.v1 import suspension_pb2 as pb

DEFAULT_LINGER_SECONDS = 60.0
"""What a suspension without a deadline is given beyond its delay."""

_SHORTEST_DELAY_US = 1000  # none at all would be refused
_ENDED_MEMORY_SECONDS = 10.0


class Suspended:
    """One suspension of a front end, from its submission until it is answered for. Front ends may add to it.

    It is submitted once; a second nap is a second object.
    """

    __slots__ = (
        "deadline_seconds",
        "delay_seconds",
        "due_seconds",
        "encoded",
        "is_delivered",
        "key",
        "number",
        "outcome",
        "over_seconds",
        "route",
    )

    due_seconds: float
    """When its time has passed, on the session's clock; set when it is submitted."""
    over_seconds: float
    """When it is past its deadline, on the session's clock; set when it is submitted."""

    def __init__(
        self, key: Key, encoded: bytes, route: str, delay_seconds: float, deadline_seconds: float | None = None
    ) -> None:
        """Describe it.

        Args:
            key: Which.
            encoded: The Suspension message, with its delay, without a deadline: that changes while it waits.
            route: Route to resume in.
            delay_seconds: Its delay, from its submission.
            deadline_seconds: Its deadline, from its submission; None: none was given.
        """
        self.key = key
        self.encoded = encoded
        self.route = route
        self.delay_seconds = delay_seconds
        self.deadline_seconds = deadline_seconds
        self.number = 0
        """By which the present stream names it; 0: by its key."""
        self.is_delivered = False
        """Whether it is known to be over, for whatever reason: it is not submitted any more."""
        self.outcome: pb.ContinueOutcome | None = None
        """What the front end has answered or, by a cancel, decided; None: nothing yet."""


class Outstanding:
    """The table of unanswered suspensions of one front end."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._suspended: dict[Key, Suspended] = {}
        # In order, by the second of their deadline: a sweep touches only what is over, and nothing stale is kept.
        self._by_deadline: dict[int, dict[Suspended, None]] = {}
        self._by_number: dict[int, Suspended] = {}
        # What the front end has ended of them: the sidecar may not have known it yet when it used the number.
        self._ended: list[Suspended] = []
        self._ended_before: list[Suspended] = []
        # Delivered, not answered, and not in the table: past the deadline; or nothing (None) was ever known of it here.
        self._unknown_delivered: dict[Key, Suspended | None] = {}
        self._swept_second = int(clock())
        self._forgot_seconds = clock()
        self._answers = Answers(clock())

    def __len__(self) -> int:
        return len(self._suspended)

    def __contains__(self, key: Key) -> bool:
        return key in self._suspended

    def find(self, key: Key) -> Suspended | None:
        """The suspension of that key, if it is outstanding, or past its deadline and not answered for."""
        return self._suspended.get(key) or self._unknown_delivered.get(key)

    def add(self, suspended: Suspended) -> bool:
        """Take a suspension in; False if its key is here already."""
        if self._suspended.setdefault(suspended.key, suspended) is not suspended:
            return False
        now = self._clock()
        due_seconds = suspended.due_seconds = now + suspended.delay_seconds
        deadline_seconds = suspended.deadline_seconds
        over_seconds = due_seconds + DEFAULT_LINGER_SECONDS if deadline_seconds is None else now + deadline_seconds
        suspended.over_seconds = over_seconds
        second = int(over_seconds)
        bucket = self._by_deadline.get(second)
        if bucket is None:
            bucket = self._by_deadline[second] = {}
        bucket[suspended] = None
        return True

    # What the sidecar says

    def set_numbers(self, batch: Sequence[Suspended], numbers: Sequence[int]) -> None:
        """Note by which numbers the present stream names these; 0: by none."""
        by_number = self._by_number
        by_number.update(zip(numbers, batch, strict=True))
        for suspended, number in zip(batch, numbers, strict=True):
            if not suspended.is_delivered:
                suspended.number = number
            elif suspended.outcome is not None:  # the sidecar may not know that yet
                suspended.number = number
                self._ended.append(suspended)
            else:  # it came in full: it is answered for by its key
                by_number.pop(number, None)
        by_number.pop(0, None)

    def deliver_due(self, numbers: Iterable[int]) -> tuple[list[Suspended], list[Suspended]]:
        """Note that these are said to be over just as they were asked for.

        A number that names nothing is one that was named before.

        Returns:
            Those to be handed to the front end at their time, and those that it has ended already.
        """
        take = self._by_number.pop
        due, ended = [], []
        for number in numbers:
            suspended = take(number, None)
            if suspended is None:
                continue
            if not suspended.is_delivered:
                suspended.is_delivered = True
                due.append(suspended)
            elif suspended.outcome is not None:
                ended.append(suspended)
        return due, ended

    def deliver(self, key: Key) -> bool:
        """Note that a continue for `key` arrived; True if the front end has to see it, False for a repetition.

        A key that is not in the table is delivered too: it may stem from the front end's life before a restart of its
        shim, or from another program's SuspendRoute.
        """
        suspended = self._suspended.get(key)
        if suspended is not None:
            if suspended.is_delivered:
                return False
            suspended.is_delivered = True
            if suspended.number:  # it is answered for by its key
                self._by_number.pop(suspended.number, None)
                suspended.number = 0
            return True
        if key in self._unknown_delivered:
            return False
        self._unknown_delivered[key] = None
        return True

    def forget_numbers(self) -> None:
        """A new stream: numbers of the old one mean nothing in it."""
        for suspended in self._suspended.values():
            suspended.number = 0
        self._by_number.clear()

    # What the front end says

    def answer(self, key: Key, outcome: pb.ContinueOutcome) -> int:
        """Note the front end's answer: the suspension is over.

        Returns:
            The number by which the sidecar may be told of it; 0: it has none.
        """
        self._answers.add(key, outcome)
        suspended = self._suspended.get(key)
        if suspended is None:
            if (suspended := self._unknown_delivered.pop(key, None)) is not None:
                suspended.outcome = outcome
            return 0
        self._remove(suspended)
        suspended.outcome = outcome
        if suspended.is_delivered:
            return suspended.number
        suspended.is_delivered = True
        if suspended.number:
            self._ended.append(suspended)
        return 0

    def applied(self, batch: Iterable[Suspended]) -> tuple[list[int], list[Key]]:
        """Note that these were resumed.

        Returns:
            The numbers by which the sidecar may be told of them, and the keys of those that have none.
        """
        table, by_deadline = self._suspended, self._by_deadline
        numbers, keys, unnumbered = [], [], []
        for suspended in batch:
            key, number = suspended.key, suspended.number
            if not number or suspended.outcome is not None or not suspended.is_delivered:
                suspended.outcome = pb.CONTINUE_OUTCOME_APPLIED
                if number := self.answer(key, pb.CONTINUE_OUTCOME_APPLIED):
                    numbers.append(number)
                else:
                    unnumbered.append(key)
                continue
            suspended.outcome = pb.CONTINUE_OUTCOME_APPLIED
            numbers.append(number)
            keys.append(key)
            del table[key]
            second = int(suspended.over_seconds)
            bucket = by_deadline[second]
            del bucket[suspended]
            if not bucket:
                del by_deadline[second]
        self._answers.add_applied(keys)
        return numbers, unnumbered

    def remembered_answer(self, key: Key) -> pb.ContinueOutcome | None:
        """The answer given lately for a key that is not outstanding, if any."""
        return self._answers.outcome_of(key)

    # What the sidecar is told

    def undelivered(self) -> list[Suspended]:
        """What a sidecar has to be told after a reconnect, in order of submission."""
        return [suspended for suspended in self._suspended.values() if not suspended.is_delivered]

    def to_send(self, batch: Iterable[Suspended]) -> tuple[list[Suspended], list[bytes], list[int]]:
        """Those that are still wanted, encoded, and what is left of the delay of each at this moment.

        So neither gathering nor a reconnect makes a nap longer, and none gets shorter than it was asked for.

        Returns:
            They themselves; their Suspension messages; what is left of their delays, in microseconds.
        """
        now = self._clock()
        wanted = [suspended for suspended in batch if not suspended.is_delivered]
        encoded = [
            suspended.encoded if suspended.deadline_seconds is None else _with_deadline(suspended, now)
            for suspended in wanted
        ]
        before_us = now * 1e6 - 1  # rounded up
        left_us = [int(suspended.due_seconds * 1e6 - before_us) for suspended in wanted]
        if left_us and min(left_us) < _SHORTEST_DELAY_US:
            left_us = [max(each_us, _SHORTEST_DELAY_US) for each_us in left_us]
        return wanted, encoded, left_us

    # Time

    def sweep(self, *, has_sidecar: bool) -> list[tuple[Key, str]]:
        """Take out what is past its deadline, to the second, and old answers if there is a sidecar that had them.

        Returns:
            Key and resume route of those that were never delivered: they are lost.
        """
        now = self._clock()
        self._answers.rotate(now, has_sidecar=has_sidecar)
        if now - self._forgot_seconds >= _ENDED_MEMORY_SECONDS:
            self._forgot_seconds = now
            for suspended in self._ended_before:
                if self._by_number.get(suspended.number) is suspended:
                    del self._by_number[suspended.number]
            self._ended_before, self._ended = self._ended, []
        lost = []
        for second in range(self._swept_second, int(now)):
            for suspended in self._by_deadline.pop(second, ()):
                key = suspended.key
                del self._suspended[key]
                # Until it is answered: a continue that comes after all is a repetition.
                self._unknown_delivered[key] = suspended
                self._by_number.pop(suspended.number, None)
                suspended.number = 0
                if not suspended.is_delivered:
                    suspended.is_delivered = True
                    lost.append((key, suspended.route))
        self._swept_second = int(now)
        return lost

    def clear(self) -> None:
        """Forget everything: the transactions are gone."""
        self.forget_numbers()
        self._suspended.clear()
        self._by_deadline.clear()
        self._unknown_delivered.clear()

    def _remove(self, suspended: Suspended) -> None:
        del self._suspended[suspended.key]
        second = int(suspended.over_seconds)
        bucket = self._by_deadline[second]
        del bucket[suspended]
        if not bucket:
            del self._by_deadline[second]


def _with_deadline(suspended: Suspended, now: float) -> bytes:
    """Its message, and what is left of its deadline: one message after the other is the same as both in one."""
    rest = pb.Suspension()
    set_duration(rest.deadline, max(suspended.over_seconds - now, 2 * _SHORTEST_DELAY_US * 1e-6))
    return suspended.encoded + rest.SerializeToString()


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
