"""A suspension as the sidecar holds it, and the words that the core's rules use."""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from sipnap.sidecar.core.groups import TIMEOUT, Job, JobResult

if TYPE_CHECKING:
    from sipnap.sidecar.core.front_ends import FrontEnd
    from sipnap.sidecar.core.streams import Stream

LATE = "late"
"""Error code of what fell due while no sidecar was there (`LatePolicy.FAIL`)."""


_KEY = struct.Struct(">QIII")
pack_key = _KEY.pack
"""`NapKey.pack` for who has the four numbers and needs no tuple."""


class NapKey(NamedTuple):
    """A suspension's key within its front end."""

    boot_epoch: int
    transaction_index: int
    transaction_label: int
    nap_number: int
    """From 1; 0: a task, which has no transaction."""

    def pack(self) -> bytes:
        """The same in 20 bytes: a third of a tuple's memory, and it sorts as the tuple does."""
        return _KEY.pack(*self)

    @classmethod
    def unpack(cls, packed: bytes) -> NapKey:
        """The key again.

        Raises:
            struct.error: It is not 20 bytes long.
        """
        return cls._make(_KEY.unpack(packed))


class Phase(enum.Enum):
    """Where a suspension stands. It only ever moves downwards through this list."""

    COMMITTING = 1
    """The journal does not have it yet: not acknowledged, cannot fire."""
    PENDING = 2
    """Accepted; its time has not come, its operations have not ended."""
    CONTINUING = 3
    """To be continued; the front end has not answered yet."""
    ENDED = 4
    """Over; nothing refers to it any more."""


class Status(enum.Enum):
    """How the wait ended."""

    OK = "ok"
    FAILED = "failed"
    TIMED_OUT = "timed_out"


class Outcome(enum.Enum):
    """What the front end did with the continue."""

    APPLIED = "applied"
    GONE = "gone"
    REJECTED = "rejected"


class CancelOutcome(enum.Enum):
    """What became of a cancel."""

    CANCELLED = "cancelled"
    CONTINUING = "continuing"
    GONE = "gone"


class Reason(enum.Enum):
    """Why a suspension was not accepted."""

    FULL = "full"
    DRAINING = "draining"
    INVALID = "invalid"
    TOO_LARGE = "too_large"
    DELAY_OUT_OF_RANGE = "delay_out_of_range"
    STALE_EPOCH = "stale_epoch"
    FRONT_END_UNKNOWN = "front_end_unknown"
    OPERATION_UNKNOWN = "operation_unknown"
    JOURNAL_UNAVAILABLE = "journal_unavailable"


class LatePolicy(enum.Enum):
    """What becomes of a suspension whose time passed while no sidecar was there to keep it."""

    FIRE = "fire"
    """It is continued at once."""
    DROP = "drop"
    """It ends without a continue."""
    FAIL = "fail"
    """It is continued at once, as failed."""


class Refused(Exception):
    """The sidecar does not accept a suspension or a sleep."""

    def __init__(self, reason: Reason, message: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        """Why, for programs and metrics."""
        self.message = message
        """Why, for people; names the setting where there is one."""
        self.retry_after_seconds = retry_after_seconds
        """When it may be worth another try, counted from now; None: nobody knows."""


@dataclass(frozen=True, slots=True)
class OperationRequest:
    """An operation that somebody asks for, not judged yet."""

    name: str
    """Name of the operation."""
    group: str = ""
    """Worker group that runs it; empty: the default one."""
    prefix: str = ""
    """Put before the names of the values that it finds."""
    timeout_seconds: float | None = None
    """Most that one attempt may take; None: what the operation says."""
    max_attempts: int = 0
    """How often it is tried at most; 0: what the operation says."""


class Request(NamedTuple):
    """What somebody asks the sidecar to hold, read from the wire but not judged yet."""

    key: NapKey
    """Which nap."""
    route: str
    """Route to resume in."""
    delay_seconds: float
    """Time to the continue; with operations, the most that they may take."""
    deadline_seconds: float | None
    """When nobody waits any more, counted like the delay; None: the sidecar's default."""
    payload: bytes
    """The whole suspension as it came, for the journal and for showing; opaque here."""
    operations: tuple[OperationRequest, ...] = ()
    """What to do meanwhile, all at the same time; none: a plain nap."""


class Work:
    """The operations of one suspension: those that have not ended, and what came of the others."""

    __slots__ = ("delay_seconds", "error", "error_code", "group", "jobs", "names", "results", "status", "values")

    def __init__(self, names: Sequence[str] = (), group: str = "", delay_seconds: float = 0.0) -> None:
        self.delay_seconds = delay_seconds
        """The nap's own: the most that all of them may take."""
        self.names = names
        """Of the operations, in the order of the request."""
        self.group = group
        """Name of the first one's worker group."""
        self.jobs: list[Job] = []
        """Those that have not ended."""
        self.results: list[JobResult | None] = [None] * len(names)
        """Those that have, in the order of the request."""
        self.status = Status.OK
        """How all of them together ended; here and in the next two, once they have."""
        self.error = ""
        """What went wrong, for people."""
        self.error_code = ""
        """Of the first that did not end well; empty: all did."""
        self.values: tuple[bytes, ...] = ()
        """What those found that ended well, once all have ended; each in the wire's encoding, opaque here."""

    def conclude(self) -> None:
        """All have ended: gather what came of them.

        The status is that of the first that did not end well; the text names each of those. Values are kept in any
        case: a script may go on with half of what it asked for.
        """
        ended = [(name, result) for name, result in zip(self.names, self.results, strict=True) if result is not None]
        self.results = []
        self.values = tuple(value for _, result in ended for value in result.values)
        errors = [(name, result) for name, result in ended if result.error_code]
        if errors:
            self.error_code = errors[0][1].error_code
            self.status = Status.TIMED_OUT if self.error_code == TIMEOUT else Status.FAILED
            self.error = "; ".join(f"{name}: {result.error}" for name, result in errors)


class Held:
    """One suspension that the sidecar holds. Slots and no dataclass: there may be a million of them."""

    __slots__ = (
        "attempt", "due_seconds", "front_end", "linger_seconds", "packed_key", "payload", "phase", "route", "sequence",
        "stream", "timer_sequence", "work",
    )  # fmt: skip

    def __init__(
        self,
        front_end: FrontEnd,
        packed_key: bytes,
        route: str,
        payload: bytes,
        sequence: int,
        due_seconds: float,
        linger_seconds: float,
        stream: Stream | None = None,
    ) -> None:
        self.front_end = front_end
        self.packed_key = packed_key
        self.route = route
        self.payload = payload
        self.sequence = sequence
        """Order of acceptance, unique in a journal."""
        self.due_seconds = due_seconds
        self.linger_seconds = linger_seconds
        """How long after its due time nobody waits any more; mostly the sidecar's own, so one number for all."""
        self.stream = stream
        """The stream of its front end in which `sequence` names it; None: it has none, and is continued in full."""
        self.phase = Phase.COMMITTING
        self.attempt = 0
        self.work: Work | None = None
        """Its operations; None: a plain nap."""
        self.timer_sequence = 0

    @property
    def key(self) -> NapKey:
        """Which nap."""
        return NapKey._make(_KEY.unpack(self.packed_key))

    @property
    def deadline_seconds(self) -> float:
        """When nobody waits any more."""
        return self.due_seconds + self.linger_seconds

    @property
    def status(self) -> Status:
        """How the wait ended."""
        return self.work.status if self.work is not None else Status.OK

    @property
    def error(self) -> str:
        """What went wrong, for people; empty: nothing."""
        return self.work.error if self.work is not None else ""

    @property
    def jobs(self) -> Sequence[Job]:
        """Its operations that have not ended."""
        return self.work.jobs if self.work is not None else ()

    @property
    def error_code(self) -> str:
        """What went wrong, for scripts; empty: nothing."""
        return self.work.error_code if self.work is not None else ""

    @property
    def values(self) -> tuple[bytes, ...]:
        """What its operations found; each value in the wire's encoding, opaque here."""
        return self.work.values if self.work is not None else ()


class Sleeper:
    """One caller that waits for its time. Has no journal: it ends with its caller's connection."""

    __slots__ = ("due_seconds", "started_seconds", "timer_sequence", "waiter")

    def __init__(self, waiter: object, started_seconds: float, due_seconds: float) -> None:
        self.waiter: Any = waiter
        """Whatever the edge wants to be handed when the time has come."""
        self.started_seconds = started_seconds
        self.due_seconds = due_seconds
        self.timer_sequence = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of what a sidecar takes in; every one of them is refused at, in so many words."""

    max_delay_seconds: float = 100.0
    """Longest delay (``--max-seconds``); the async module's 100 s unless raised."""
    linger_seconds: float = 60.0
    """How long a continue without an own deadline is kept after its due time (``--linger-seconds``)."""
    max_pending: int = 1_000_000
    """Most suspensions of one front end, and most sleeping callers (``--max-pending``)."""
    max_entry_bytes: int = 65_536
    """Largest encoded suspension, and most that one operation may find (``--max-entry-bytes``)."""
    max_front_ends: int = 1024
    """Most front ends that have a session or suspensions."""
