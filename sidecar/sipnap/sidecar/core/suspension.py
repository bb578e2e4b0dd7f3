"""A suspension as the sidecar holds it, and the words that the core's rules use."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from sipnap.sidecar.core.front_ends import FrontEnd
    from sipnap.sidecar.core.groups import Job


class NapKey(NamedTuple):
    """A suspension's key within its front end."""

    boot_epoch: int
    transaction_index: int
    transaction_label: int
    nap_number: int


class Phase(enum.Enum):
    """Where a suspension stands. It only ever moves downwards through this list."""

    COMMITTING = 1
    """The journal does not have it yet: not acknowledged, cannot fire."""
    PENDING = 2
    """Accepted; its time has not come, its operation has not ended."""
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

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        """Why, for programs and metrics."""
        self.message = message
        """Why, for people; names the setting where there is one."""


@dataclass(frozen=True, slots=True)
class Request:
    """What somebody asks the sidecar to hold, read from the wire but not judged yet."""

    key: NapKey
    """Which nap."""
    route: str
    """Route to resume in."""
    delay_seconds: float
    """Time to the continue; with an operation, the most that it may take."""
    deadline_seconds: float | None
    """When nobody waits any more, counted like the delay; None: the sidecar's default."""
    payload: bytes
    """The whole suspension as it came, for the journal and for showing; opaque here."""
    operation: tuple[str, str] | None = None
    """Name and worker group of the operation to run meanwhile; None: a plain nap."""


class Held:
    """One suspension that the sidecar holds. Slots and no dataclass: there may be a million of them."""

    __slots__ = (
        "accepted_seconds",
        "attempt",
        "deadline_seconds",
        "due_seconds",
        "error",
        "front_end",
        "job",
        "key",
        "payload",
        "phase",
        "route",
        "sequence",
        "status",
        "timer_sequence",
        "values",
    )

    def __init__(self, front_end: FrontEnd, request: Request, sequence: int, now_seconds: float) -> None:
        self.front_end = front_end
        self.key = request.key
        self.route = request.route
        self.payload = request.payload
        self.sequence = sequence
        """Order of acceptance, unique in a journal."""
        self.accepted_seconds = now_seconds
        self.due_seconds = now_seconds + request.delay_seconds
        self.deadline_seconds = self.due_seconds
        self.phase = Phase.COMMITTING
        self.status = Status.OK
        self.error = ""
        self.attempt = 0
        self.values: tuple[bytes, ...] = ()
        """What the operation found, each value in the wire's encoding; opaque here."""
        self.job: Job | None = None
        self.timer_sequence = 0


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
    """Largest encoded suspension (``--max-entry-bytes``)."""
    max_front_ends: int = 1024
    """Most front ends that have a session or suspensions."""
