"""What the dispatcher asks of a journal."""

from __future__ import annotations

import enum
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from sipnap.sidecar.core.front_ends import FrontEnd
from sipnap.sidecar.core.suspension import Held
from sipnap.sidecar.journal.tasks import TaskStore


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


class Fenced(JournalError):
    """Other sidecars own some of the front ends by now: nothing of those was changed. The rest was committed."""

    def __init__(self, owners: Mapping[FrontEnd, str]) -> None:
        names = "; ".join(f"{front_end.front_end_id!r}: {owner}" for front_end, owner in owners.items())
        super().__init__(f"another sidecar owns this front end now: {names}")
        self.owners = owners
        """The front ends, and who owns them, for people."""


class Entry(NamedTuple):
    """One accepted suspension as a journal keeps it. Times are nanoseconds since 1970: they outlive the process."""

    sequence: int
    """Order of acceptance, from 1; unique among what one sidecar accepted."""
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


class Mailbox(Protocol):
    """Letters between the sidecars that share a journal. They may be lost."""

    async def owner_of(self, front_end_id: str) -> str:
        """Instance id of the sidecar that owns a front end; empty: none does.

        Raises:
            JournalError: It cannot be found out.
        """

    async def post(self, instance_id: str, letter: bytes) -> None:
        """Send a letter to a sidecar.

        Raises:
            JournalError: It could not be sent.
        """

    async def collect(self) -> list[bytes]:
        """Wait, for a second or so, for letters to this sidecar.

        Raises:
            JournalError: The mailbox cannot be reached.
        """


class Journal(Protocol):
    """Keeps what was accepted until it has ended. One commit at a time; each is a batch.

    A journal of one sidecar gives everything back in `recover`. A journal that several sidecars share gives nothing
    then, but what is a front end's in `claim`, to the sidecar that its session has reached. Journals inherit from this
    class: what it defines is right for those of one sidecar.
    """

    kind: str
    """Its name as ``--journal`` takes it."""
    durability: Durability
    """What an acceptance survives."""
    shared: bool = False
    """Whether several sidecars may use it at once: front ends have to be claimed then."""
    mailbox: Mailbox | None = None
    """Where those sidecars write to each other."""
    tasks: TaskStore | None = None
    """Where those sidecars have the work for their remote workers."""

    def introduce(self, instance_id: str, address: str) -> None:
        """Say who writes here, to be shown to other sidecars. Before the first claim."""
        return

    def recover(self) -> AsyncIterator[Sequence[Entry]]:
        """All that is kept, in batches, in no certain order. Asked for once, before the first commit.

        Raises:
            JournalError: It cannot be opened or read; the sidecar must not start.
        """

    async def claim(self, front_end: FrontEnd) -> AsyncIterator[Sequence[Entry]]:
        """Own a front end from now on; who did before is fenced. Gives what is kept of it, in order of acceptance.

        Raises:
            JournalError: It cannot be had; the front end is not owned here.
        """
        nothing: tuple[Sequence[Entry], ...] = ()
        for batch in nothing:
            yield batch

    async def holds(self, front_end: FrontEnd) -> bool:
        """Whether this sidecar owns the front end still.

        Raises:
            JournalError: It cannot be found out.
        """
        return True

    async def commit(self, added: Sequence[Held], ended: Sequence[Held]) -> None:
        """Keep `added`, forget `ended`; all or nothing. With neither: find out whether it could.

        Raises:
            Fenced: Other sidecars own some of the front ends by now.
            JournalError: Nothing was changed; what the journal may have taken nevertheless, it takes out by itself.
        """

    def offset_ns(self) -> int:
        """What to take from the times of entries to get the monotonic clock, at this moment; rather too little."""
        return time.time_ns() - time.monotonic_ns()

    async def close(self) -> None:
        """Give up files and connections; nothing is committed after it."""


def wall_offset_ns() -> int:
    """What to add to the monotonic clock to get nanoseconds since 1970, at this moment; rather too much.

    Between two readings of clocks a process may be put aside. A due time is written with too much and read with too
    little (`Journal.offset_ns`): it may become later by that, never earlier.
    """
    monotonic_ns = time.monotonic_ns()
    return time.time_ns() - monotonic_ns
