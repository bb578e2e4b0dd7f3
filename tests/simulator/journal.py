"""Journals whose disk survives the process: a commit takes time, may fail, and may be done before it is known to be.

Two kinds: one sidecar's own, as the SQLite journal is, and one that sidecars share, as the Redis journal is, where a
front end is owned by whoever claimed it last and everybody else is fenced. They keep the contract of
`sipnap.sidecar.journal.base.Journal`; how the real ones do has its own tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from random import Random

from sipnap.sidecar.core.front_ends import FrontEnd
from sipnap.sidecar.core.suspension import Held
from sipnap.sidecar.journal.base import Durability, Entry, Fenced, Journal, JournalError
from sipnap.sidecar.journal.packing import pack, pack_whole, unpack_whole
from tests.simulator.loop import Process
from tests.simulator.network import Key

WALL_OFFSET_NS = 1_700_000_000_000_000_000
"""What the simulated wall clock is ahead of the virtual one."""

_ENTRIES_PER_BATCH = 3


class Disk:
    """What is left when the sidecar is killed."""

    def __init__(self, random: Random, *, is_shared: bool = False) -> None:
        self.is_shared = is_shared
        self.entries: dict[Hashable, Entry] = {}
        """By sequence, or by key if sidecars share it: each of them counts for itself."""
        self.ever: set[Key] = set()
        """Whatever was kept at some time."""
        self.owners: dict[str, tuple[int, str]] = {}
        """Number of the last claim of a front end, and whose it was."""
        self.fenced_seconds: list[float] = []
        """When somebody wrote for a front end that another one had claimed since."""
        self.is_away = False
        """Full, or stopped: whatever is asked of it fails."""
        self.slowest_seconds = random.choice([0.0005, 0.005, 0.05, 0.3, 1.0])

    def keys(self) -> set[Key]:
        """What is kept now."""
        return {key_of(entry) for entry in self.entries.values()}


class SimulatedJournal(Journal):
    """One sidecar's own. It belongs to one process; what it has kept belongs to the disk."""

    kind = "simulated"
    durability = Durability.DISK

    def __init__(
        self,
        disk: Disk,
        random: Random,
        process: Process,
        on_step: Callable[[str], None],
        on_keep: Callable[[Process, Entry], None],
        on_forget: Callable[[Key], None],
        violate: Callable[[str], None],
    ) -> None:
        self._disk = disk
        self._random = random
        self._process = process
        self._on_step = on_step
        self._on_keep = on_keep
        self._on_forget = on_forget
        self._violate = violate
        self._is_committing = False

    async def recover(self) -> AsyncIterator[Sequence[Entry]]:
        async for batch in self._read(list(self._disk.entries.values())):
            yield batch

    async def commit(self, added: Sequence[Held], ended: Sequence[Held]) -> None:
        if self._is_committing:
            self._violate("journal: two commits at a time")
        self._is_committing = True
        try:
            self._on_step("commit")
            try:
                await self._reach()
            except JournalError:
                self._fail(added)
                raise
            self._write(added, ended)
            self._on_step("durable")
            await self._take_time()
        finally:
            self._is_committing = False

    def offset_ns(self) -> int:
        return WALL_OFFSET_NS

    def _write(self, added: Sequence[Held], ended: Sequence[Held]) -> None:
        kept = self._disk.entries
        for held in added:
            if held.sequence in kept:
                self._violate(f"journal: sequence {held.sequence} is used twice")
            self._keep(held.sequence, held)
        for held in ended:
            self._forget(held.sequence)

    def _fail(self, added: Sequence[Held]) -> None:
        """A commit that cannot be done has changed nothing."""

    def _keep(self, name: Hashable, held: Held) -> None:
        now_ns = int(asyncio.get_running_loop().time() * 1e9) + WALL_OFFSET_NS
        packed = pack(held, WALL_OFFSET_NS, now_ns)
        entry = unpack_whole(pack_whole(held.front_end.front_end_id, held.packed_key, packed))
        self._disk.entries[name] = entry
        self._disk.ever.add(key_of(entry))
        self._on_keep(self._process, entry)

    def _forget(self, name: Hashable) -> None:
        entry = self._disk.entries.pop(name, None)
        if entry is not None:
            self._on_forget(key_of(entry))

    async def _read(self, entries: list[Entry]) -> AsyncIterator[Sequence[Entry]]:
        for first in range(0, len(entries), _ENTRIES_PER_BATCH):
            await self._take_time()
            yield entries[first : first + _ENTRIES_PER_BATCH]

    async def _reach(self) -> None:
        """Return when the disk is about to do what is asked of it."""
        await self._take_time()
        if not self._process.is_alive:
            raise asyncio.CancelledError
        if self._disk.is_away:
            raise JournalError("the simulated disk is full")

    async def close(self) -> None:
        """Nothing to give up."""

    async def _take_time(self) -> None:
        await asyncio.sleep(self._random.uniform(0.0, self._disk.slowest_seconds))


class SharedJournal(SimulatedJournal):
    """One sidecar's access to what several share. Nothing here is atomic but what has no `await` in it."""

    kind = "simulated and shared"
    durability = Durability.PROCESS
    shared = True

    def __init__(
        self,
        disk: Disk,
        random: Random,
        process: Process,
        on_step: Callable[[str], None],
        on_keep: Callable[[Process, Entry], None],
        on_forget: Callable[[Key], None],
        violate: Callable[[str], None],
    ) -> None:
        super().__init__(disk, random, process, on_step, on_keep, on_forget, violate)
        self._tokens: dict[FrontEnd, int] = {}
        self._doubtful: list[tuple[FrontEnd, Hashable]] = []

    async def recover(self) -> AsyncIterator[Sequence[Entry]]:
        """Nothing: what is a front end's comes with `claim`."""
        async for batch in self._read([]):
            yield batch

    async def claim(self, front_end: FrontEnd) -> AsyncIterator[Sequence[Entry]]:
        await self._reach()
        owners, front_end_id = self._disk.owners, front_end.front_end_id
        token = owners[front_end_id][0] + 1 if front_end_id in owners else 1
        owners[front_end_id] = token, self._process.name
        self._tokens[front_end] = token
        async for batch in self._read(
            [entry for entry in self._disk.entries.values() if entry.front_end_id == front_end_id]
        ):
            yield batch

    async def holds(self, front_end: FrontEnd) -> bool:
        await self._reach()
        return self.is_owner(front_end)

    def _fail(self, added: Sequence[Held]) -> None:
        """Nobody knows what became of it: it may have been done after all. The next one sees to that."""
        for held in added:
            if self._random.random() < 0.5 and self.is_owner(held.front_end):
                name = (held.front_end.front_end_id, held.key)
                self._doubtful.append((held.front_end, name))
                self._keep(name, held)

    def is_owner(self, front_end: FrontEnd) -> bool:
        """The fencing check: whether nobody has claimed the front end since we did."""
        return self._disk.owners.get(front_end.front_end_id, (0, ""))[0] == self._tokens.get(front_end)

    def _write(self, added: Sequence[Held], ended: Sequence[Held]) -> None:
        fenced: dict[FrontEnd, str] = {}
        for front_end in [*self._tokens, *(held.front_end for held in added)]:
            if not self.is_owner(front_end):
                fenced[front_end] = self._disk.owners.get(front_end.front_end_id, (0, "nobody"))[1]
        for front_end in fenced:
            self._tokens.pop(front_end, None)
        for front_end, name in self._doubtful:
            if self.is_owner(front_end):
                self._disk.entries.pop(name, None)
        self._doubtful.clear()
        for held in added:
            if held.front_end not in fenced:
                self._keep((held.front_end.front_end_id, held.key), held)
        for held in ended:
            if self.is_owner(held.front_end):
                self._forget((held.front_end.front_end_id, held.key))
        if fenced:
            self._disk.fenced_seconds.append(asyncio.get_running_loop().time())
            raise Fenced(fenced)


def key_of(entry: Entry) -> Key:
    """The entry's key, without its front end."""
    return (entry.boot_epoch, entry.transaction_index, entry.transaction_label, entry.nap_number)
