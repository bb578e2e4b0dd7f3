"""What the dispatcher asks of a journal."""

from __future__ import annotations

import enum
import time
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple, Protocol

from sipnap.sidecar.core.suspension import Held


class Durability(enum.Enum):
    """What an acceptance survives once `Journal.commit` has returned."""

    MEMORY = "memory"
    """Nothing: it ends with the process."""
    PROCESS = "process"
    """The death of the process, not of the machine."""
    DISK = "disk"
    """The death of the machine."""


class JournalError(Exception):
    """The journal could not do it; the message says why and what to do."""


class Entry(NamedTuple):
    """One accepted suspension as a journal keeps it. Times are nanoseconds since 1970: they outlive the process."""

    sequence: int
    """Order of acceptance, unique in the journal, from 1."""
    front_end_id: str
    """Whose it is."""
    boot_epoch: int
    """Its key within the front end, here and in the next three."""
    transaction_index: int
    transaction_label: int
    nap_number: int
    route: str
    """Route to resume in."""
    accepted_ns: int
    """When it was accepted."""
    due_ns: int
    """When it is to be continued."""
    deadline_ns: int
    """When nobody waits any more."""
    operation: str
    """Name of its operation; empty: a plain nap."""
    group: str
    """Worker group of its operation."""
    payload: bytes
    """The whole suspension as it came, opaque here."""


class Journal(Protocol):
    """Keeps what was accepted until it has ended. One call at a time; each commit is a batch."""

    kind: str
    """Its name as ``--journal`` takes it."""
    durability: Durability
    """What an acceptance survives."""

    def recover(self) -> AsyncIterator[Sequence[Entry]]:
        """All that is kept, in batches, in order of sequence. Asked for once, before the first commit.

        Raises:
            JournalError: It cannot be opened or read; the sidecar must not start.
        """

    async def commit(self, added: Sequence[Held], ended: Sequence[Held]) -> None:
        """Keep `added`, forget `ended`; all or nothing. With neither: find out whether it could.

        Raises:
            JournalError: Nothing was changed.
        """

    async def close(self) -> None:
        """Give up files and connections; nothing is committed after it."""


def wall_offset_ns() -> int:
    """What to add to the monotonic clock to get nanoseconds since 1970, at this moment."""
    return time.time_ns() - time.monotonic_ns()


def entry_of(held: Held, offset_ns: int) -> Entry:
    """A held suspension as a journal keeps it; `offset_ns` from `wall_offset_ns`."""
    job = held.job
    return Entry(
        held.sequence,
        held.front_end.front_end_id,
        *held.key,
        held.route,
        int(held.accepted_seconds * 1e9) + offset_ns,
        int(held.due_seconds * 1e9) + offset_ns,
        int(held.deadline_seconds * 1e9) + offset_ns,
        job.operation if job is not None else "",
        job.group.name if job is not None else "",
        held.payload,
    )
