"""One run: the parts joined, a load, faults; then repair, and the promises are checked."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest import mock

import grpc.aio

from sipnap.client import outbox as outbox_module
from sipnap.client import session as session_module
from sipnap.client.outstanding import seconds_of
from sipnap.shim.kamailio import bridge as bridge_module
from sipnap.sidecar import dispatcher as dispatcher_module
from sipnap.sidecar import recovery as recovery_module
from sipnap.sidecar.journal.base import Entry
from sipnap.sidecar.services import front_end as front_end_module
from sipnap.v1 import suspension_pb2 as pb
from tests.simulator.faults import Faults
from tests.simulator.journal import WALL_OFFSET_NS, Disk
from tests.simulator.journal import key_of as key_of_entry
from tests.simulator.loop import START_SECONDS, NeverEnding, Process, VirtualLoop
from tests.simulator.network import Call, Key, Network, key_of
from tests.simulator.proxy import EARLY_TOLERANCE_SECONDS, Nap, Proxy, State
from tests.simulator.shim import SimulatedShim
from tests.simulator.sidecar import SimulatedSidecar
from tests.simulator.work import Workload

_LONGEST_LOAD_SECONDS = 8.0
_PATIENCE_SECONDS = 30.0
_POLL_SECONDS = 0.25
_NUMBERS_SECONDS = 25.0  # a session keeps those of what it has ended for 10 s, twice
_MOST_VIOLATIONS = 20
_CLOCK_TOLERANCE_SECONDS = 3e-6  # streams tell whole microseconds, journals nanoseconds, all of them rounded
_SHORTEST_DELAY_SECONDS = 0.001  # what a session says is left of a delay that is over


@dataclass
class Outcome:
    """What became of a run."""

    seed: int
    violations: list[str] = field(default_factory=list)
    """Broken promises; empty: all were kept."""
    trace: list[tuple[float, str, tuple[Any, ...]]] = field(default_factory=list)
    """Time, format and arguments of what happened."""
    naps: int = 0
    resumed: int = 0
    virtual_seconds: float = 0.0

    def story(self) -> Iterator[str]:
        """The trace, for people."""
        for seconds, form, arguments in self.trace:
            text = " ".join((form % arguments).split())
            yield f"{seconds - START_SECONDS:10.6f}  {text}"


def run(seed: int, *, with_logs: bool = False) -> Outcome:
    """Run one seed.

    Args:
        seed: Decides everything; the same seed gives the same run.
        with_logs: Put the product's own log into the trace.
    """
    outcome = Outcome(seed)
    loop = VirtualLoop()
    with _virtual(loop, seed), _logs(outcome, loop, wanted=with_logs):
        try:
            _Run(loop, seed, outcome).run()
        finally:
            loop.close()
    return outcome


def run_quietly(seed: int) -> Outcome:
    """Run one seed, and keep no trace: it is large, and not all of it can go to another process."""
    outcome = run(seed)
    outcome.trace.clear()
    return outcome


class _Run:
    def __init__(self, loop: VirtualLoop, seed: int, outcome: Outcome) -> None:
        random = Random(seed)
        self._loop = loop
        self._random = random
        self._outcome = outcome
        self._cancelled: set[tuple[str, Key]] = set()
        self._numbers: dict[tuple[str, int], Key] = {}
        self._numbered: set[tuple[str, Key]] = set()
        self._asked: dict[tuple[str, Key], list[tuple[float, float | None]]] = {}
        loop.set_exception_handler(self._report)
        self._network = Network(loop, random, self._trace, self)
        names, self._is_shared = random.choice([(["a"], False)] * 5 + [(["a", "b"], False)] + [(["a", "b"], True)] * 2)
        self._max_pending = random.choice([1_000_000] * 9 + [3])
        self._workload = Workload(seed, self._violate)
        shared_disk = Disk(random, is_shared=True)
        self._sidecars = [
            SimulatedSidecar(
                name, shared_disk if self._is_shared else Disk(random),
                self._max_pending, self._workload, loop, random, self._network,
                self.step, self._kept, self._forgotten, self._is_kept, self._violate,
            )
            for name in names
        ]  # fmt: skip
        # A commit waits for the one before it; each takes its time before and after it is done.
        self._slow_seconds = 4 * max(sidecar.disk.slowest_seconds for sidecar in self._sidecars)
        self._network.sidecars = {sidecar.name: sidecar for sidecar in self._sidecars}
        self._proxy = Proxy(loop, random, self._network, self._workload, self._violate, self._to_shim)
        self._shim = SimulatedShim(loop, random, self._network, self._proxy, self._workload, names, self._violate)
        self._load_seconds = random.uniform(0.5, _LONGEST_LOAD_SECONDS)
        self._faults = Faults(
            loop, random, self._network, self._proxy, self._shim, self._sidecars,
            loop.time() + self._load_seconds + random.choice([0.0, 5.0]),
        )  # fmt: skip

    def run(self) -> None:
        try:
            with (
                mock.patch.object(bridge_module, "open_socket", self._shim.open_socket),
                mock.patch.object(bridge_module, "Inbox", self._shim.open_inbox),
            ):
                self._loop.run_until_complete(self._main())
        except NeverEnding as error:
            self._violate(str(error))
        outcome, naps = self._outcome, self._proxy.naps.values()
        outcome.naps = len(naps)
        outcome.resumed = sum(nap.state is State.RESUMED for nap in naps)
        outcome.virtual_seconds = self._loop.time() - START_SECONDS

    async def _main(self) -> None:
        random, loop = self._random, self._loop
        for sidecar in self._sidecars:
            sidecar.start()
        self._shim.start()
        calls = random.choice([3, 10, 25]) * 3 // (2 + self._proxy.most_at_once)
        for _ in range(max(1, calls)):
            loop.call_later(random.uniform(0.0, self._load_seconds), self._proxy.receive_call)
        for seconds, group_name, workers in self._workload.draw_resizes(self._load_seconds):
            for sidecar in self._sidecars:
                loop.call_later(seconds, sidecar.resize, group_name, workers)
        self._faults.plan()
        try:
            while not self._faults.are_over:
                await asyncio.sleep(_POLL_SECONDS)
            await self._until_settled()
        finally:
            self._shim.kill()
            for sidecar in self._sidecars:
                sidecar.kill()
            await asyncio.sleep(0.01)

    async def _until_settled(self) -> None:
        """Everything works again: now all has to end, and nothing may be left."""
        self._proxy.is_closing = True
        naps = self._proxy.naps
        now = self._loop.time()
        last = max([now, *(nap.due_seconds for nap in naps.values())])
        await self._wait(last + _PATIENCE_SECONDS, lambda: not any(map(self._is_open, naps.values())))
        for nap in naps.values():
            self._judge(nap)
        # What ended without the sidecar's knowledge, such as by a cancel that was lost, it learns when its time comes.
        await self._wait(max(last, self._loop.time()) + _PATIENCE_SECONDS, lambda: not self._left_over())
        if left := self._left_over():
            self._violate(f"left over: {left}")
        # One that the session has moved away from holds what it has until the deadline: nobody else knows of it.
        await self._wait(
            self._loop.time() + 2 * 75.0, lambda: not any(sidecar.held_count for sidecar in self._sidecars)
        )
        await asyncio.sleep(2.0 + self._slow_seconds)
        for sidecar in self._sidecars:
            sidecar.check_empty()
        if left := self._shim.left_over():
            self._violate(f"left over at the shim: {left}")
        await self._wait(self._loop.time() + _NUMBERS_SECONDS, lambda: not self._numbers_left())
        if left_count := self._numbers_left():
            self._violate(f"left over at the shim: {left_count} numbers")

    async def _wait(self, until_seconds: float, condition: Callable[[], bool]) -> None:
        while self._loop.time() < until_seconds and not condition():
            await asyncio.sleep(_POLL_SECONDS)

    def _numbers_left(self) -> int:
        return self._shim.session.numbers_left if self._shim.session is not None else 0

    def _left_over(self) -> str:
        left = self._shim.left_over()
        target = self._shim.session.target if self._shim.session is not None else ""
        if not target:
            return f"{left or 'nothing'}, and not connected"
        for sidecar in self._sidecars:
            # With a journal of its own, one that the session has left holds what it has; sharing one, it gives it up.
            if (self._is_shared or sidecar.name == target) and (held := sidecar.held_count):
                left += f"; {held} held by {sidecar.name}, connected to {target}"
        return left

    # Promises

    def _is_open(self, nap: Nap) -> bool:
        """Whether it still has to end by a continue."""
        if nap.state is not State.WAITING:
            return False
        explain, now = self._faults.explain, self._loop.time()
        if not nap.is_shipped:
            return False  # its datagram was lost: the proxy's own timer ends it
        if not nap.taken_by:
            return now < nap.began_seconds + 1.5 or not explain(nap.began_seconds, nap.began_seconds + 1.0)
        if nap.is_given_up:
            return not (self._network.datagram_loss or explain(nap.began_seconds, now))
        is_life_over = self._shim.process is None or self._shim.process.name != nap.taken_by
        if is_life_over and not (nap.acknowledged_by and (self._is_shared or len(self._sidecars) == 1)):
            return False  # handed over to a shim that died before any sidecar, or the one it will find, had said yes
        if is_life_over and now > nap.last_seconds + 1.0:
            return not (nap.slack_seconds < 2.0 + self._slow_seconds or explain(nap.began_seconds, nap.last_seconds))
        return True

    def _judge(self, nap: Nap) -> None:
        explain = self._faults.explain
        name = f"{nap} of {nap.delay_seconds:.3f} s"
        if nap.state is State.WAITING:
            if self._is_open(nap):
                self._violate(f"{name} hangs (acknowledged by {nap.acknowledged_by or 'nobody'})")
        elif nap.state is State.BACKSTOP:
            network = self._network
            is_slow = network.datagram_loss or network.datagram_late or self._slow_seconds > 0.5
            if not (is_slow or explain(nap.began_seconds, nap.ended_seconds)):
                self._violate(f"{name} was left to the proxy's own timer, though nothing was wrong")
        elif nap.state is State.RESUMED:
            self._judge_resumed(nap, name)

    def _judge_resumed(self, nap: Nap, name: str) -> None:
        explain = self._faults.explain
        if nap.status == "lost":
            is_short = nap.slack_seconds < 2.0 + self._slow_seconds
            if not (is_short or explain(nap.began_seconds, nap.last_seconds)):
                self._violate(f"{name} was lost, though nothing was wrong before its deadline")
        elif nap.status == "failed":
            is_tight = self._max_pending < 100 or (nap.operations and not self._workload.is_light)
            # A claim that was on its way when the session went elsewhere: the sidecar there loses what it is writing.
            is_fenced = explain(nap.began_seconds, nap.ended_seconds) and any(
                nap.began_seconds <= seconds <= nap.ended_seconds for seconds in self._sidecars[0].disk.fenced_seconds
            )
            if not (is_tight or is_fenced or explain(nap.began_seconds, nap.ended_seconds, "disk full", "drain")):
                self._violate(f"{name} was refused, though the sidecar could take it")
        elif nap.status == "timed_out" and nap.operations:
            is_tight = not self._workload.is_light or nap.delay_seconds < 1.0 + self._slow_seconds
            if not (is_tight or explain(nap.began_seconds, nap.ended_seconds)):
                self._violate(f"{name} timed out, though its operations had time")
        elif nap.status != "ok":
            self._violate(f"{name} ended as {nap.status!r}")
        # The shim counts the delay from when it hears of the nap.
        due_seconds = max(nap.due_seconds, nap.taken_seconds + nap.delay_seconds)
        late_seconds = nap.ended_seconds - max(due_seconds, self._faults.explain_until(nap.ended_seconds))
        if late_seconds > (8.0 if self._network.datagram_loss else 3.0) + self._slow_seconds:
            self._violate(f"{name} was resumed {late_seconds:.3f} s late, though nothing was wrong any more")

    # What is said on the streams: see `tests.simulator.network.Observer`

    def submitted(self, client: Process, suspension: pb.Suspension, left_seconds: float) -> None:
        key = key_of(suspension.key)
        nap = self._proxy.naps[key]
        if (client.name, key) in self._shim.delivered:
            self._violate(f"{nap} was submitted again, though its continue had come")
        asked_seconds = seconds_of(suspension.delay)
        if abs(asked_seconds - nap.delay_seconds) > _CLOCK_TOLERANCE_SECONDS:
            self._violate(f"{nap} of {nap.delay_seconds} s was submitted as one of {asked_seconds} s")
        if nap.taken_by == client.name:
            least_seconds = nap.taken_seconds + nap.delay_seconds - self._loop.time()
            if not (
                -_CLOCK_TOLERANCE_SECONDS
                < left_seconds - least_seconds
                < max(_SHORTEST_DELAY_SECONDS - least_seconds, 0.0) + _CLOCK_TOLERANCE_SECONDS
            ):
                self._violate(f"{nap} was submitted with {left_seconds} s left of its {least_seconds} s")

    def taken(self, call: Call, suspension: pb.Suspension, left_seconds: float) -> None:
        assert call.sidecar is not None
        assert call.sidecar.process is not None
        now = self._loop.time()
        deadline_seconds = now + seconds_of(suspension.deadline) if suspension.HasField("deadline") else None
        times = self._asked.setdefault((call.sidecar.process.name, key_of(suspension.key)), [])
        times.append((now + left_seconds, deadline_seconds))

    def _kept(self, process: Process, entry: Entry) -> None:
        """A journal keeps a nap: with the times that its submission said, counted from when it was read."""
        nap = self._proxy.naps[key_of_entry(entry)]
        due_seconds = (entry.due_ns - WALL_OFFSET_NS) * 1e-9
        deadline_seconds = (entry.deadline_ns - WALL_OFFSET_NS) * 1e-9
        asked = self._asked.get((process.name, nap.key), [])
        if not any(
            abs(due_seconds - asked_due_seconds) < _CLOCK_TOLERANCE_SECONDS
            and abs(deadline_seconds - (asked_deadline_seconds or deadline_seconds)) < _CLOCK_TOLERANCE_SECONDS
            for asked_due_seconds, asked_deadline_seconds in asked
        ):
            self._violate(f"{nap} is kept until {due_seconds}, at most {deadline_seconds}; it was asked for as {asked}")

    def acknowledged(self, call: Call, keys: list[Key]) -> None:
        assert call.sidecar is not None
        for key in keys:
            nap = self._proxy.naps[key]
            nap.acknowledged_by.add(call.target)
            if key not in call.sidecar.disk.ever:
                self._violate(f"{nap} was acknowledged, but never was in the journal")

    def cancelled(self, call: Call, key: Key) -> None:
        assert call.sidecar is not None
        self._cancelled.add((call.sidecar.memory, key))

    def numbered(self, call: Call, number: int, key: Key) -> None:
        assert call.sidecar is not None
        assert call.sidecar.process is not None
        other = self._numbers.setdefault((call.sidecar.process.name, number), key)
        if other != key:
            self._violate(f"{self._proxy.naps[key]} has the number of {self._proxy.naps[other]}")
        is_over = self._loop.time() > self._proxy.naps[key].last_seconds
        if (call.sidecar.memory, key) in self._numbered and not is_over:
            self._violate(f"{self._proxy.naps[key]} was held already, and was given a number again")
        self._numbered.add((call.sidecar.memory, key))

    def continued(self, call: Call, key: Key, order: pb.Continue) -> None:
        nap = self._proxy.naps[key]
        early_seconds = nap.due_seconds - self._loop.time()
        if order.status == pb.CONTINUE_STATUS_OK and not nap.operations and early_seconds > EARLY_TOLERANCE_SECONDS:
            self._violate(f"{nap} was continued {early_seconds:.6f} s early")
        self._check_continued(call, nap)

    def over(self, call: Call, key: Key) -> None:
        nap = self._proxy.naps[key]
        early_seconds = nap.due_seconds - self._loop.time()
        if early_seconds > call.ahead_seconds + EARLY_TOLERANCE_SECONDS:
            self._violate(f"{nap} was over {early_seconds:.6f} s ahead of its time, more than the session takes")
        if nap.operations:
            self._violate(f"{nap} was over by its number alone, though it has operations")
        self._check_continued(call, nap)

    def _check_continued(self, call: Call, nap: Nap) -> None:
        assert call.sidecar is not None
        # After its deadline a sidecar may have given it up, and be asked to hold it by a session that has not.
        if nap.key in call.continued and self._loop.time() < nap.last_seconds:
            self._violate(f"{nap} was continued twice in one stream")
        call.continued.add(nap.key)
        if (call.sidecar.memory, nap.key) in self._cancelled:
            self._violate(f"{nap} was continued by a sidecar that had said it was cancelled")
        if nap.key not in call.sidecar.disk.ever:
            self._violate(f"{nap} was continued, but never was in the journal")

    def told(self, client: Process, key: Key) -> None:
        self._shim.told.add((client.name, key))

    def applied(self, client: Process, key: Key) -> None:
        nap = self._proxy.naps[key]
        if nap.state is not State.RESUMED:
            self._violate(f"{client.name} says that {nap} was resumed, and it is {nap.state.value}")

    def misused(self, text: str) -> None:
        self._violate(f"the stream is misused: {text}")

    def _is_kept(self, sidecar: SimulatedSidecar) -> None:
        """A sidecar dies: what it has accepted has to be on its disk, unless it is over."""
        now, kept = self._loop.time(), sidecar.disk.keys()
        for nap in self._proxy.naps.values():
            if (
                sidecar.name in nap.acknowledged_by
                and nap.state is State.WAITING
                and nap.key not in kept
                and not nap.is_given_up
                and now < nap.last_seconds
            ):
                self._violate(f"{nap} is lost: it was acknowledged, and is not in the journal of the dead")

    def _forgotten(self, key: Key) -> None:
        """A journal has forgotten a nap: somebody had better have ended it."""
        nap = self._proxy.naps[key]
        is_wanted = nap.state is State.WAITING and self._loop.time() < nap.last_seconds and not nap.is_given_up
        if is_wanted and nap.acknowledged_by:
            self._violate(f"{nap} still waits, and was forgotten by the journal")

    def _to_shim(self, datagram: bytes) -> None:
        self._shim.receive(datagram)

    def step(self, step: str) -> None:
        self._trace("step: %s", step)
        self._faults.on_step(step)

    def _trace(self, form: str, *arguments: object) -> None:
        self._outcome.trace.append((self._loop.time(), form, arguments))

    def _violate(self, text: str) -> None:
        self._trace("VIOLATION: %s", text)
        if len(self._outcome.violations) < _MOST_VIOLATIONS:
            self._outcome.violations.append(f"{self._loop.time() - START_SECONDS:.6f}: {text}")

    def _report(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error, task = context.get("exception"), context.get("task")
        is_writer = task is not None and task.get_name() == "sipnap session writer"
        if is_writer and isinstance(error, grpc.aio.AioRpcError | asyncio.InvalidStateError):
            return  # the stream ended under its hands; the reader knows
        lines = traceback.format_exception(error) if error is not None else []
        self._violate(f"{context['message']}: {error!r}\n{''.join(lines)}".rstrip())


@contextmanager
def _virtual(loop: VirtualLoop, seed: int) -> Iterator[None]:
    """The product's jitter comes from the seed, as do the bounds of what it does at a time: small ones show more."""
    random = Random(seed)
    with (
        mock.patch.object(session_module, "random", Random(seed)),
        mock.patch.object(recovery_module, "time", SimpleNamespace(monotonic=loop.time)),
        mock.patch.object(outbox_module, "_MOST_ENTRIES_PER_MESSAGE", random.choice([1, 3, 128])),
        mock.patch.object(session_module, "AHEAD_SECONDS", random.choice([0.0, 0.02, 0.3, 0.9])),
        mock.patch.object(front_end_module, "_MOST_CONTINUES_PER_MESSAGE", random.choice([1, 3, 512])),
        mock.patch.object(front_end_module, "_MOST_NUMBERS_PER_MESSAGE", random.choice([1, 3, 4096])),
        mock.patch.object(bridge_module, "_DATAGRAMS_PER_TURN", random.choice([1, 256])),
        mock.patch.object(dispatcher_module, "_MOST_TIMERS_PER_TURN", random.choice([1, 3, 2000])),
    ):
        yield


@contextmanager
def _logs(outcome: Outcome, loop: VirtualLoop, *, wanted: bool) -> Iterator[None]:
    logger = logging.getLogger("sipnap")
    handler = _TraceHandler(outcome, loop)
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.INFO if wanted else logging.CRITICAL + 1)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.propagate = propagate
        logger.removeHandler(handler)


class _TraceHandler(logging.Handler):
    def __init__(self, outcome: Outcome, loop: VirtualLoop) -> None:
        super().__init__()
        self._outcome = outcome
        self._loop = loop

    def emit(self, record: logging.LogRecord) -> None:
        self._outcome.trace.append((self._loop.time(), "log: %s", (record.getMessage(),)))
