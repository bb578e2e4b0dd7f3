"""The journal that keeps nothing: acceptances end with the process, and every acknowledgement says so."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from sipnap.sidecar.core.suspension import Held
from sipnap.sidecar.journal.base import Durability, Entry, Journal


class MemoryJournal(Journal):
    """See `sipnap.sidecar.journal.base.Journal`."""

    kind = "memory"
    durability = Durability.MEMORY

    async def recover(self) -> AsyncIterator[Sequence[Entry]]:
        """Nothing was kept."""
        nothing: tuple[Sequence[Entry], ...] = ()
        for batch in nothing:
            yield batch

    async def commit(self, added: Sequence[Held], ended: Sequence[Held]) -> None:
        """Nothing to do: what is held is in the engine."""

    async def close(self) -> None:
        """Nothing to give up."""
