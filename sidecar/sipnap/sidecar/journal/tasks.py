"""Tasks for remote workers that several sidecars hand out together: what a shared journal offers for that."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol


@dataclass(frozen=True, slots=True)
class Task:
    """One operation of one suspension, as any sidecar needs it to have it run."""

    name: str
    """Names it among all tasks of its group: the suspension's key in its printed form, ``#`` and the number of the
    operation within the suspension. What is put twice by one name is there once."""
    operation: str
    """Name of the operation."""
    end_seconds: float
    """When nobody waits for its result any more: monotonic seconds of this process."""
    attempt: int
    """Number of its first attempt here, from 1: the owner may have tried before."""
    max_attempts: int
    """Number of the last attempt that may be made."""
    body: bytes
    """The rest, opaque here."""

    @property
    def front_end_id(self) -> str:
        """The front end whose it is."""
        return self.name.partition("/")[0]


class Taken(NamedTuple):
    """Which of the times that a task was given to a sidecar: this is what makes a result valid or stale."""

    name: str
    """Name of the task."""
    operation: str
    """Name of its operation."""
    entry: str
    """Number of the task in the queue, never given twice."""
    holder: str
    """Instance id of the sidecar that has it."""
    deliveries: int
    """How often it was given to a sidecar by then."""


@dataclass(frozen=True, slots=True)
class HeldTask:
    """A task that this sidecar has, to be run by one of its workers."""

    task: Task
    """What to do."""
    taken: Taken
    """What to show for it."""
    owner: str
    """Instance id of the sidecar that put it, or took it over since."""

    @property
    def attempt(self) -> int:
        """Which attempt it is; above `Task.max_attempts` it is not to be run any more, its last worker was lost."""
        return self.task.attempt + self.taken.deliveries - 1


class Finish(enum.Enum):
    """What the queue thinks of a result."""

    VALID = "DONE"
    """It is that of the attempt that counts; the task is gone now."""
    UNKNOWN = "GONE"
    """There is no such task, any more or ever."""
    STALE = "STALE"
    """The task was given to another sidecar meanwhile, or is another task: the result is not to be used."""
    FOREIGN = "FOREIGN"
    """Another sidecar owns the task's front end, or is about to: the result is for that one."""


class Batch(NamedTuple):
    """What one `TaskStore.take` brings."""

    tasks: list[HeldTask]
    """The tasks; this sidecar's own from now on."""
    total: int
    """How many the group has, waiting or running, of all sidecars."""
    heard: str
    """For `TaskStore.listen`: what comes after this."""


class TaskStore(Protocol):
    """One queue for each group and operation, shared by sidecars. All of its methods may raise `JournalError`.

    A sidecar that took a task keeps it by `keep`, every third of `lease_seconds`; after that time others have it. The
    task stays in the queue until its owner, the sidecar that owns its front end, has finished or dropped it. So a task
    is lost with no sidecar, and a result with none but the one that holds it: then the task is run again.
    """

    lease_seconds: float
    """How long a sidecar may be silent before its tasks are given to others."""

    async def put(self, group: str, tasks: Sequence[Task]) -> int:
        """Queue tasks that the caller owns. One that is there already, waiting or running, stays as it is.

        Returns:
            How many the group has, waiting or running, of all sidecars.
        """

    async def take(self, group: str, operations: Sequence[str], most: int) -> Batch:
        """Take up to `most` tasks of these operations; what was given back or lost comes first."""

    async def listen(self, group: str, heard: str) -> bool:
        """Wait, for a second or so, for something to take after what was `heard`. False: nothing came."""

    async def keep(self, group: str, held: Sequence[Taken]) -> list[Taken]:
        """Keep tasks for another `lease_seconds`. Returns those that are not ours any more: stop them."""

    async def give_back(self, group: str, held: Sequence[Taken], *, tried: bool) -> None:
        """Have others take them, soon; `tried`: it costs an attempt. What is not ours any more is left alone."""

    async def recall(self, group: str, operations: Sequence[str], held: Sequence[Taken]) -> None:
        """Give back what is ours besides these, untried: a `take` has failed, and may have taken something.

        No other `take` may be on its way.
        """

    async def finish(self, group: str, taken: Sequence[Taken], *, is_sure: bool) -> list[Finish]:
        """The owner has results for these; `is_sure`: it is known to own their front ends at this moment."""

    async def drop(self, group: str, names: Sequence[str]) -> list[str]:
        """The owner needs these no more.

        Returns:
            Instance id of the sidecar that has it, for each; empty: none, or the task has another owner.
        """

    async def missing(self, group: str, names: Sequence[str]) -> list[str]:
        """Those which are not in the queue, or not as ours: to be put again."""

    async def count(self, group: str) -> int:
        """How many tasks the group has, waiting or running, of all sidecars."""

    async def claim_lost(self, group: str, operations: Sequence[str]) -> None:
        """Take the tasks of sidecars that are silent for longer than `lease_seconds`, for `take` to give out."""
