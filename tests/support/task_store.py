"""The queue of remote tasks in memory, for several sidecars in one process; and ways for it to go wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from sipnap.sidecar.journal.base import JournalError
from sipnap.sidecar.journal.tasks import Batch, Finish, HeldTask, Taken, Task


@dataclass
class Entry:
    group: str
    number: str
    task: Task
    owner: str
    holder: str = ""
    deliveries: int = 0


@dataclass
class Queue:
    """What all sidecars share."""

    entries: dict[str, Entry] = field(default_factory=dict)
    released: list[str] = field(default_factory=list)
    last_number: int = 0
    calls: list[str] = field(default_factory=list)
    """What was written, in order: ``put NAME``, ``drop NAME``, ``finish NAME WORD``, ``give NAME``."""
    is_down: bool = False
    loses_next_take: bool = False
    gate: asyncio.Event | None = None
    """What is taken arrives when this is set."""

    def take_from(self, holder: str) -> None:
        """A sidecar is dead: what it has goes to others, and costs an attempt."""
        for name, entry in self.entries.items():
            if entry.holder == holder:
                entry.holder = ""
                self.released.append(name)


class MemoryStore:
    """One sidecar's end. See `sipnap.sidecar.journal.tasks.TaskStore`."""

    def __init__(self, queue: Queue, instance_id: str, lease_seconds: float = 0.08) -> None:
        self.lease_seconds = lease_seconds
        self._queue = queue
        self._me = instance_id

    async def put(self, group: str, tasks: Sequence[Task]) -> int:
        await self._reach()
        for task in tasks:
            self._queue.calls.append(f"put {task.name}")
            if task.name in self._queue.entries:
                self._queue.entries[task.name].owner = self._me
            else:
                self._queue.last_number += 1
                self._queue.entries[task.name] = Entry(group, str(self._queue.last_number), task, self._me)
        return await self.count(group)

    async def take(self, group: str, operations: Sequence[str], most: int) -> Batch:
        await self._reach()
        waiting = [entry for name in self._queue.released if (entry := self._queue.entries.get(name)) is not None]
        waiting += [entry for entry in self._queue.entries.values() if not entry.deliveries]
        held = []
        for entry in [one for one in waiting if one.task.operation in operations and not one.holder][:most]:
            entry.holder, entry.deliveries = self._me, entry.deliveries + 1
            held.append(HeldTask(entry.task, self._taken(entry), entry.owner))
        self._queue.released = [name for name in self._queue.released if not self._queue.entries[name].holder]
        if self._queue.gate is not None:
            await self._queue.gate.wait()
        if self._queue.loses_next_take:
            self._queue.loses_next_take = False
            raise JournalError("the answer was lost")
        return Batch(held, len(self._queue.entries), "")

    async def listen(self, group: str, heard: str) -> bool:
        await asyncio.sleep(0.005)
        await self._reach()
        return True

    async def keep(self, group: str, held: Sequence[Taken]) -> list[Taken]:
        await self._reach()
        return [one for one in held if not self._is_at(one)]

    async def give_back(self, group: str, held: Sequence[Taken], *, tried: bool) -> None:
        await self._reach()
        for one in held:
            if self._is_at(one):
                self._queue.calls.append(f"give {one.name}")
                self._release(self._queue.entries[one.name], tried=tried)

    async def recall(self, group: str, operations: Sequence[str], held: Sequence[Taken]) -> None:
        await self._reach()
        for entry in self._queue.entries.values():
            if entry.holder == self._me and self._taken(entry) not in held:
                self._release(entry, tried=False)

    async def finish(self, group: str, taken: Sequence[Taken], *, is_sure: bool) -> list[Finish]:
        await self._reach()
        words = []
        for one in taken:
            entry = self._queue.entries.get(one.name)
            word = Finish.STALE
            if entry is None:
                word = Finish.UNKNOWN
            elif not is_sure and entry.owner != self._me:
                word = Finish.FOREIGN
            elif self._taken(entry) == one:
                word = Finish.VALID
                del self._queue.entries[one.name]
            self._queue.calls.append(f"finish {one.name} {word.name}")
            words.append(word)
        return words

    async def drop(self, group: str, names: Sequence[str]) -> list[str]:
        await self._reach()
        holders = []
        for name in names:
            self._queue.calls.append(f"drop {name}")
            entry = self._queue.entries.get(name)
            is_ours = entry is not None and entry.owner == self._me
            holders.append(entry.holder if entry is not None and is_ours else "")
            if is_ours:
                del self._queue.entries[name]
        return holders

    async def missing(self, group: str, names: Sequence[str]) -> list[str]:
        await self._reach()
        entries = self._queue.entries
        return [name for name in names if name not in entries or entries[name].owner != self._me]

    async def count(self, group: str) -> int:
        await self._reach()
        return len(self._queue.entries)

    async def claim_lost(self, group: str, operations: Sequence[str]) -> None:
        await self._reach()

    async def _reach(self) -> None:
        await asyncio.sleep(0)
        if self._queue.is_down:
            raise JournalError("down")

    def _taken(self, entry: Entry) -> Taken:
        return Taken(entry.task.name, entry.task.operation, entry.number, entry.holder, entry.deliveries)

    def _is_at(self, one: Taken) -> bool:
        entry = self._queue.entries.get(one.name)
        return entry is not None and self._taken(entry) == one

    def _release(self, entry: Entry, *, tried: bool) -> None:
        entry.holder = ""
        entry.deliveries -= not tried
        if entry.deliveries:
            self._queue.released.append(entry.task.name)
