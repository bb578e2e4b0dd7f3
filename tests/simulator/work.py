"""What naps of the simulation ask workers to do, and the groups that do it: drawn from the seed by dice of its own.

Every operation returns what it was given, or fails, at once or later, for ever or until it is tried again; some never
return. So a nap that ends as ok has to bring its own values, and one that does not has somebody to blame.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from random import Random
from typing import TYPE_CHECKING

from sipnap.client.operations import Operation, OperationError, Value, arguments_of, operation_message
from sipnap.sidecar.core.groups import DEFAULT_GROUP, WorkerGroup
from sipnap.v1 import suspension_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable

_GROUPS = (DEFAULT_GROUP, "lookups")
_MOST_ATTEMPTS = 3


class Workload:
    """Of one run."""

    def __init__(self, seed: int, violate: Callable[[str], None]) -> None:
        self._random = random = Random(f"workload {seed}")
        self._violate = violate
        self._share = random.choice([0.0, 0.0, 0.4, 1.0])
        self.is_light = random.random() < 0.4
        """Whether every operation ends well and in time, unless something went wrong."""
        self._failing_share = 0.0 if self.is_light else random.choice([0.0, 0.2, 0.6])
        self._longest_seconds = 0.01 if self.is_light else random.choice([0.001, 0.1, 1.0, 8.0])
        self._workers = [random.choice([1, 2, 16]) for _ in _GROUPS]
        self._max_queued = 1000 if self.is_light else random.choice([1, 1000, 1000])
        self._runs: Counter[tuple[str, str]] = Counter()

    def groups(self) -> list[WorkerGroup]:
        """The groups of a sidecar that starts."""
        return [
            WorkerGroup(name, workers, self._max_queued) for name, workers in zip(_GROUPS, self._workers, strict=True)
        ]

    def draw_resizes(self, until_seconds: float) -> list[tuple[float, str, int]]:
        """When to give which group how many workers."""
        random = self._random
        return [
            (random.uniform(0.0, until_seconds), random.choice(_GROUPS), random.choice([1, 1, 2, 64]))
            for _ in range(random.choice([0, 0, 4]) if self._share else 0)
        ]

    def draw(self, nap_name: str) -> list[pb.Operation]:
        """The operations of a nap; none: a plain one."""
        random = self._random
        if random.random() >= self._share:
            return []
        return [
            operation_message(
                random.choice(["lookup", "lookup", "lookup", "stubborn"]),
                {"who": f"{nap_name} {index}"},
                group=random.choice(["", *_GROUPS]),
                prefix=f"p{index}_",
                timeout_seconds=None if self.is_light else random.choice([None, None, 0.02, 1.0]),
            )
            for index in range(random.choice([1, 1, 2, 4]))
        ]

    def operations(self, memory: Callable[[], str]) -> dict[str, Operation]:
        """What the workers of a sidecar know; `memory` names what it remembers at present."""

        async def lookup(arguments: Mapping[str, Value], state: pb.TransactionState) -> Mapping[str, Value]:
            self._note(memory(), arguments)
            await self._take_time()
            if self._random.random() < self._failing_share:
                raise OperationError("busy", "not now", retry_after_seconds=self._random.choice([None, 0.0, 0.01, 0.5]))
            return arguments

        async def stubborn(arguments: Mapping[str, Value], state: pb.TransactionState) -> Mapping[str, Value]:
            """Does not let go when it is cancelled, and may never end."""
            self._note(memory(), arguments)
            if self._random.random() < self._failing_share:
                await asyncio.Event().wait()
            try:
                await self._take_time()
            except asyncio.CancelledError:
                await asyncio.sleep(0.1)
            return arguments

        return {
            "lookup": Operation(lookup, max_attempts=_MOST_ATTEMPTS, backoff_seconds=0.02),
            "stubborn": Operation(stubborn, timeout_seconds=2.0),
        }

    def check(self, nap_name: str, wanted: list[pb.Operation], received: pb.Continue) -> None:
        """A continue brings what its own operations found, and nothing that another's did."""
        found = arguments_of(received.values)
        own = {
            f"{operation.prefix}{name}": value
            for operation in wanted
            for name, value in arguments_of(operation.arguments).items()
        }
        if not found.items() <= own.items():
            self._violate(f"{nap_name} got {found}, which is not its own")
        if received.status == pb.CONTINUE_STATUS_OK and found != own:
            self._violate(f"{nap_name} ended as ok with {found} of {own}")
        if received.status != pb.CONTINUE_STATUS_OK and not received.error:
            self._violate(f"{nap_name} ended as {received.status} and does not say why")

    async def _take_time(self) -> None:
        await asyncio.sleep(self._random.choice([0.0, self._random.uniform(0.0, self._longest_seconds)]))

    def _note(self, memory: str, arguments: Mapping[str, Value]) -> None:
        who = str(arguments["who"])
        self._runs[memory, who] += 1
        if self._runs[memory, who] > _MOST_ATTEMPTS:
            self._violate(f"{who} was run more than {_MOST_ATTEMPTS} times by {memory}")
