"""A sidecar of the simulation: the product's engine, dispatcher, recovery and servicer, in a process that can die."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any

from sipnap.sidecar.core.engine import Engine
from sipnap.sidecar.core.front_ends import FrontEnd
from sipnap.sidecar.core.groups import WorkerKind
from sipnap.sidecar.core.suspension import Limits, Phase
from sipnap.sidecar.dispatcher import Dispatcher
from sipnap.sidecar.journal.base import Entry
from sipnap.sidecar.recovery import recover
from sipnap.sidecar.services.front_end import FrontEndServicer
from sipnap.sidecar.workers.coroutines import CoroutinePool
from tests.simulator.journal import Disk, SharedJournal, SimulatedJournal
from tests.simulator.loop import Process, VirtualLoop
from tests.simulator.network import Call, Key, Network
from tests.simulator.work import Workload


class CountingEngine(Engine):
    """The engine, which also counts what its counters leave out."""

    restored = 0
    """Taken back from a journal."""
    disowned = 0
    """Left to another sidecar."""
    claims = 0
    """Front ends taken over, or taken back."""

    def adopt(self, front_end_id: str) -> FrontEnd:
        self.claims += 1
        return super().adopt(front_end_id)

    def restore(self, *arguments: Any, **named: Any) -> None:
        self.restored += 1
        super().restore(*arguments, **named)

    def disown(self, front_end: FrontEnd) -> None:
        self.disowned += accepted_count(front_end)
        super().disown(front_end)


def accepted_count(front_end: FrontEnd) -> int:
    """Suspensions held, without those that the journal does not have yet."""
    return sum(held.phase is not Phase.COMMITTING for held in front_end.held.values())


class SimulatedSidecar:
    """One sidecar over all its lives; its disk outlives them."""

    def __init__(
        self,
        name: str,
        disk: Disk,
        max_pending: int,
        workload: Workload,
        loop: VirtualLoop,
        random: Random,
        network: Network,
        on_step: Callable[[str], None],
        on_keep: Callable[[Process, Entry], None],
        on_forget: Callable[[Key], None],
        on_death: Callable[[SimulatedSidecar], None],
        violate: Callable[[str], None],
    ) -> None:
        self.name = name
        self.disk = disk
        self.engine: CountingEngine | None = None
        """Of its present life; None while it is away."""
        self.process: Process | None = None
        self._dispatcher: Dispatcher | None = None
        self._servicer: FrontEndServicer | None = None
        self._lives = 0
        self._main: asyncio.Task[object] | None = None
        self._max_pending = max_pending
        self._workload = workload
        self._loop = loop
        self._random = random
        self._network = network
        self._on_step = on_step
        self._on_keep = on_keep
        self._on_forget = on_forget
        self._on_death = on_death
        self._violate = violate

    @property
    def is_up(self) -> bool:
        """Whether it has been started and not been killed since."""
        return self.process is not None

    @property
    def memory(self) -> str:
        """Names what it remembers: it forgets with each life, and with each claim has it from the journal again."""
        assert self.process is not None
        return f"{self.process.name}, claim {self.engine.claims if self.engine is not None else 0}"

    @property
    def _memory_of_work(self) -> str:
        """The same, but what it has given up at its deadline it may learn of anew, from a session that has not."""
        return f"{self.memory}, given up {self.engine.counters.lost if self.engine is not None else 0}"

    @property
    def held_count(self) -> int:
        """Suspensions that it holds, or will when it is back."""
        return self.engine.held_count if self.engine is not None else len(self.disk.entries)

    def start(self) -> None:
        """Begin a life, if it has none."""
        if self.process is None:
            self._lives += 1
            self.process = Process(self._loop, f"{self.name}{self._lives}")
            self._network.trace("%s starts", self.process.name)
            self._main = self.process.start(self._serve(self.process), "sidecar")

    def kill(self) -> None:
        """``kill -9``."""
        process, self.process = self.process, None
        if process is not None:
            self._network.trace("%s is killed", process.name)
            self.check_counters()
            self.engine = self._dispatcher = self._servicer = None
            process.kill()
            self._network.vanish(process, self)
            self._on_death(self)

    async def drain(self) -> None:
        """End as `sipnap serve` does at the first signal: say goodbye, commit what has gathered, end."""
        process, dispatcher = self.process, self._dispatcher
        if process is None or dispatcher is None:
            return
        self._network.trace("%s drains", process.name)
        process.context.copy().run(dispatcher.announce_drain, "the sidecar is shutting down")
        await asyncio.sleep(self._random.uniform(0.0, 0.5))
        if process is self.process:
            await asyncio.wait([process.start(dispatcher.commit_once(), "last commit")])
        if process is self.process:
            self.kill()

    def resize(self, group_name: str, workers: int) -> None:
        """As `sipnap workers set` does."""
        process, dispatcher = self.process, self._dispatcher
        if process is not None and dispatcher is not None and not process.is_stopped:
            self._network.trace("%s: %d workers in group %s", process.name, workers, group_name)
            group = dispatcher.engine.jobs.groups[group_name]
            process.context.copy().run(dispatcher.resize, group, workers)

    def accept(self, call: Call) -> bool:
        """Serve a stream; False if nobody listens."""
        if self.process is None or self._servicer is None:
            return False
        call.sidecar = self
        call.handler = self.process.start(self._network.serve(call, self.process, self._servicer), "handler")
        return True

    async def _serve(self, process: Process) -> None:
        make = SharedJournal if self.disk.is_shared else SimulatedJournal
        journal = make(
            self.disk, self._random, process, self._on_step, self._on_keep, self._on_forget, self._violate
        )  # fmt: skip
        operations = self._workload.operations(
            lambda: self._memory_of_work if process is self.process else process.name
        )
        limits = Limits(max_pending=self._max_pending)
        engine = CountingEngine(self._loop.time, limits, self._workload.groups(), operations)
        dispatcher = Dispatcher(engine, journal)
        dispatcher.pools[WorkerKind.ASYNC] = CoroutinePool(dispatcher, operations)
        restored = await recover(engine, journal)
        dispatcher.start()
        self.engine, self._dispatcher = engine, dispatcher
        self._servicer = FrontEndServicer(dispatcher, process.name)
        self._network.trace("%s serves, restored %d", process.name, restored)
        await dispatcher.commit_forever()

    # Promises

    def check_counters(self) -> None:
        """Whatever was accepted is held or has ended, in one way."""
        engine = self.engine
        if engine is None:
            return
        counters = engine.counters
        held = sum(map(accepted_count, engine.front_ends.values()))
        began = engine.restored + counters.accepted
        ended = counters.cancelled + counters.lost + sum(counters.outcomes.values()) + engine.disowned
        if began != ended + held:
            self._violate(
                f"{self.name}: counters do not add up: restored {engine.restored} + accepted {counters.accepted} "
                f"is not cancelled {counters.cancelled} + lost {counters.lost} + "
                f"answered {sum(counters.outcomes.values())} + disowned {engine.disowned} + held {held}"
            )

    def check_empty(self) -> None:
        """Nothing is left of what has ended."""
        engine = self.engine
        if engine is None:
            self._violate(f"{self.name} did not come back")
            return
        left = engine.held_count, engine.continuing_count, len(engine.timers), len(self.disk.entries)
        if any(left):
            self._violate(f"{self.name}: left over: held %d, continuing %d, timers %d, in the journal %d" % left)
        for group in engine.jobs.groups.values():
            waiting = group.queued, group.max_queued + max(0, group.workers - len(group.running)) - group.room
            if any(waiting):
                self._violate(f"{self.name}: group {group.name}: left over: queued %d, places kept %d" % waiting)
            if not all(job.abandoned for job in group.running):
                self._violate(f"{self.name}: group {group.name}: somebody still waits for {group.running}")
        self.check_counters()
