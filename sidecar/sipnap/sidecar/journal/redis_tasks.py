"""Tasks for remote workers in Redis Streams: a stream for each worker group and operation, read as a consumer group.

Keys of one worker group, in one slot of a cluster: ``sipnap:group:{GROUP}:tasks:OPERATION`` (stream), and beside them
``:index``, ``:ends`` and ``:bell``, which `tasks.lua` explains. Sidecars are the consumers; a task is pending for the
one that has it, and stays in its stream until the owner of its front end ends it. Only the scripts write here.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from sipnap.sidecar.journal.base import JournalError
from sipnap.sidecar.journal.redis_plan import script
from sipnap.sidecar.journal.tasks import Batch, Finish, HeldTask, Taken, Task

if TYPE_CHECKING:
    from sipnap.sidecar.journal.redis import RedisJournal

LEASE_SECONDS = 5.0
"""A sidecar that has not kept its tasks for so long is taken for dead."""

_KEPT_MS = 3600 * 1000  # beyond the last end: keys of groups that nobody uses any more
_FORGET_CONSUMER_MS = 3600 * 1000
_LISTEN_MS = 1000
_TASKS_PER_SCRIPT = 200  # Redis serves nobody else meanwhile

_Item = TypeVar("_Item")
log = logging.getLogger("sipnap.sidecar")


class RedisTasks:
    """See `sipnap.sidecar.journal.tasks.TaskStore`."""

    lease_seconds = LEASE_SECONDS

    def __init__(self, journal: RedisJournal, *, lease_seconds: float = LEASE_SECONDS) -> None:
        self.lease_seconds = lease_seconds
        self._journal = journal
        self._scripts = {
            name: b"\n".join((script("tasks"), script(f"tasks_{name}")))
            for name in ("put", "take", "keep", "recall", "end", "claim")
        }
        self._failed_seconds = float("-inf")

    async def put(self, group: str, tasks: Sequence[Task]) -> int:
        """Ask the script."""
        offset_ns = self._journal.clock.highest_offset_ns
        count = 0
        for some in _portions(tasks):
            words: list[str | bytes | int] = []
            for task in some:
                end_ms = (int(task.end_seconds * 1e9) + offset_ns) // 1_000_000 + 1
                words += (task.name, task.operation, end_ms, task.attempt, task.max_attempts, task.body)
            count, had = await self._run("put", group, self._journal.instance_id, _KEPT_MS, *words)
            if had:
                log.debug("tasks were in the queue already group=%s tasks=%d", group, had)
        return count

    async def take(self, group: str, operations: Sequence[str], most: int) -> Batch:
        """Ask the script, each time with another operation first."""
        first = random.randrange(len(operations)) if operations else 0
        in_turn = (*operations[first:], *operations[:first])
        sent_ns = time.monotonic_ns()
        heard, total, seconds, microseconds, *given = await self._run(
            "take", group, self._journal.instance_id, min(most, _TASKS_PER_SCRIPT), *in_turn
        )
        self._journal.clock.observe(sent_ns, seconds, microseconds, time.monotonic_ns())
        return Batch([self._read(*one) for one in given], total, heard.decode())

    async def listen(self, group: str, heard: str) -> bool:
        """Wait at the bell."""
        return bool(
            await self._ask("XREAD", "COUNT", 1, "BLOCK", _LISTEN_MS, "STREAMS", _keys_of(group)[2], heard or "0-0")
        )

    async def keep(self, group: str, held: Sequence[Taken]) -> list[Taken]:
        """Ask the script."""
        return await self._keep("keep", group, held)

    async def give_back(self, group: str, held: Sequence[Taken], *, tried: bool) -> None:
        """Ask the script."""
        await self._keep("release" if tried else "untried", group, held)

    async def recall(self, group: str, operations: Sequence[str], held: Sequence[Taken]) -> None:
        """Ask the script."""
        known = [word for one in held for word in (one.operation, one.entry)]
        count = await self._run("recall", group, self._journal.instance_id, len(operations), *operations, *known)
        if count:
            log.info("tasks were ours without our knowledge, given back group=%s tasks=%d", group, count)

    async def finish(self, group: str, taken: Sequence[Taken], *, is_sure: bool) -> list[Finish]:
        """Ask the script."""
        answers: list[Finish] = []
        for some in _portions(taken):
            words = [word for one in some for word in (one.name, one.entry, one.holder, one.deliveries)]
            said = await self._run("end", group, "finish", "" if is_sure else self._journal.instance_id, *words)
            answers += [Finish(word.decode()) for word in said]
        return answers

    async def drop(self, group: str, names: Sequence[str]) -> list[str]:
        """Ask the script."""
        holders: list[str] = []
        for some in _portions(names):
            said = await self._run("end", group, "drop", self._journal.instance_id, *some)
            holders += [word.decode() for word in said]
        return holders

    async def missing(self, group: str, names: Sequence[str]) -> list[str]:
        """Look into the index."""
        missing = []
        mine = self._journal.instance_id.encode()
        for some in _portions(names):
            entries: list[bytes | None] = await self._ask("HMGET", _keys_of(group)[0], *some)
            missing += [
                name
                for name, entry in zip(some, entries, strict=True)
                if entry is None or entry.split(b" ", 2)[1] != mine
            ]
        return missing

    async def count(self, group: str) -> int:
        """Look at the size of the index."""
        return int(await self._ask("HLEN", _keys_of(group)[0]))

    async def claim_lost(self, group: str, operations: Sequence[str]) -> None:
        """Ask the script, unless Redis was away lately: then nobody could keep anything, and nobody is dead."""
        if time.monotonic() - self._failed_seconds < self.lease_seconds:
            return
        lease_ms = int(self.lease_seconds * 1000)
        count, *lost = await self._run("claim", group, lease_ms, _FORGET_CONSUMER_MS, *operations)
        if count:
            log.warning(
                "a sidecar has not kept its tasks, others run them again group=%s tasks=%d from=%s",
                group, count, ",".join(sorted(name.decode() for name in lost)),
            )  # fmt: skip

    async def _keep(self, what: str, group: str, held: Sequence[Taken]) -> list[Taken]:
        gone: list[Taken] = []
        for some in _portions(held):
            words = [word for one in some for word in (one.operation, one.entry, one.deliveries)]
            numbers = await self._run("keep", group, self._journal.instance_id, what, *words)
            gone += [some[number - 1] for number in numbers]
        return gone

    def _read(self, operation: bytes, entry: bytes, deliveries: int, flat: list[bytes], owner: bytes) -> HeldTask:
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        name = fields[b"name"].decode()
        task = Task(
            name,
            operation.decode(),
            (int(fields[b"end"]) * 1_000_000 - self._journal.clock.lowest_offset_ns) * 1e-9,
            int(fields[b"attempt"]),
            int(fields[b"most"]),
            fields[b"body"],
        )
        taken = Taken(name, task.operation, entry.decode(), self._journal.instance_id, deliveries)
        return HeldTask(task, taken, owner.decode())

    async def _run(self, name: str, group: str, *words: str | bytes | int) -> Any:
        return await self._ask("EVAL", self._scripts[name], 3, *_keys_of(group), *words)

    async def _ask(self, *words: str | bytes | int) -> Any:
        try:
            return await self._journal.ask(self._journal.opened().execute_command(*words))
        except JournalError:
            self._failed_seconds = time.monotonic()
            raise


def _portions(items: Sequence[_Item]) -> Iterator[Sequence[_Item]]:
    for start in range(0, len(items), _TASKS_PER_SCRIPT):
        yield items[start : start + _TASKS_PER_SCRIPT]


def _keys_of(group: str) -> tuple[str, str, str]:
    """A group's index, ends and bell: the braces keep them, and its streams, in one slot of a cluster."""
    base = f"sipnap:group:{{{group}}}"
    return f"{base}:index", f"{base}:ends", f"{base}:bell"
