"""What the dispatcher asks of a journal."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Protocol

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
    """The journal could not commit; the message says why and what to do."""


class Journal(Protocol):
    """Keeps what was accepted until it has ended. One commit at a time, each a batch."""

    kind: str
    """Its name as ``--journal`` takes it."""
    durability: Durability
    """What an acceptance survives."""

    async def commit(self, added: Sequence[Held], ended: Sequence[Held]) -> None:
        """Keep `added`, forget `ended`; all or nothing.

        Raises:
            JournalError: Nothing was changed.
        """

    async def close(self) -> None:
        """Give up files and connections; nothing is committed after it."""
