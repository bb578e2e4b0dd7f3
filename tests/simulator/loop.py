"""An event loop whose time is virtual, and the processes that live in it and may be stopped and killed.

Nothing sleeps and no socket is real: when nothing is ready, the clock jumps to the next timer. What runs in the context
of a `Process` belongs to it; a stopped process's callbacks wait, a killed one's tasks are cancelled while the doors of
the simulated world (network, journal) are shut to it, so that its last words reach nobody.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import Any, TypeVar

START_SECONDS = 1000.0
"""What the clock shows first."""

_MOST_STEPS_AT_ONE_INSTANT = 200_000

_Result = TypeVar("_Result")

PROCESS: ContextVar[Process | None] = ContextVar("process", default=None)
"""The process that the code running now belongs to; None: the world around them."""


class NeverEnding(Exception):
    """Nothing is left to wait for, or time stands still."""


class _Handle(asyncio.Handle):
    __slots__ = ("process",)
    process: Process | None


class _TimerHandle(asyncio.TimerHandle):
    __slots__ = ("process",)
    process: Process | None


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs callbacks in order of time, and those of one instant in order of scheduling."""

    def __init__(self) -> None:
        super().__init__()
        self._now_seconds = START_SECONDS
        self._queue: deque[_Handle | _TimerHandle] = deque()
        self._timers: list[tuple[float, int, _TimerHandle]] = []
        self._timer_number = 0
        self._steps_at_this_instant = 0

    def time(self) -> float:
        return self._now_seconds

    def call_soon(  # type: ignore[override]  # typeshed's form has a TypeVarTuple that an override cannot repeat
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = _Handle(callback, args, self, context)
        handle.process = PROCESS.get() if context is None else context.get(PROCESS)
        self._queue.append(handle)
        return handle

    def call_at(  # type: ignore[override]  # as above
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        handle = _TimerHandle(when, callback, args, self, context)
        handle.process = PROCESS.get() if context is None else context.get(PROCESS)
        self._timer_number += 1
        heapq.heappush(self._timers, (when, self._timer_number, handle))
        return handle

    def create_task(  # type: ignore[override]  # as above
        self, coro: Coroutine[Any, Any, _Result], *, name: str | None = None, context: Context | None = None
    ) -> asyncio.Task[_Result]:
        process = PROCESS.get() if context is None else context.get(PROCESS)
        task = asyncio.Task(coro, loop=self, name=name, context=context)
        if process is not None:
            process.adopt(task)
        return task

    def requeue(self, handles: list[_Handle | _TimerHandle]) -> None:
        """Run these after all: their process goes on."""
        self._queue.extend(handles)

    def add_reader(  # type: ignore[override]  # as above
        self, fd: Any, callback: Callable[..., object], *args: Any
    ) -> None:
        """Of simulated sockets only: they know what to do."""
        fd.watch(lambda: callback(*args))

    def remove_reader(self, fd: Any) -> bool:
        fd.watch(None)
        return True

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It stays in the heap until its time comes."""

    def _run_once(self) -> None:
        queue, timers = self._queue, self._timers
        if not queue:
            while timers and timers[0][2].cancelled():
                heapq.heappop(timers)
            if not timers:
                raise NeverEnding("every task waits for another one")
            if timers[0][0] > self._now_seconds:
                self._now_seconds = timers[0][0]
                self._steps_at_this_instant = 0
        while timers and timers[0][0] <= self._now_seconds:
            queue.append(heapq.heappop(timers)[2])
        self._steps_at_this_instant += len(queue)
        if self._steps_at_this_instant > _MOST_STEPS_AT_ONE_INSTANT:
            raise NeverEnding("time stands still: something calls itself again and again")
        for _ in range(len(queue)):
            handle = queue.popleft()
            process = handle.process
            if handle.cancelled():
                continue
            if process is not None:
                if process.is_stopped:
                    process.frozen.append(handle)
                    continue
                if not process.is_alive and type(handle) is _TimerHandle:
                    continue
            handle._run()


class Process:
    """Whatever runs in its context. Its own tasks and callbacks, nothing else of an operating system's process."""

    def __init__(self, loop: VirtualLoop, name: str) -> None:
        self.name = name
        self.is_alive = True
        self.is_stopped = False
        self.frozen: list[_Handle | _TimerHandle] = []
        self.context = copy_context()
        self.context.run(PROCESS.set, self)
        self._loop = loop
        self._tasks: dict[asyncio.Task[Any], None] = {}

    def start(self, coro: Coroutine[Any, Any, object], name: str) -> asyncio.Task[object]:
        """Begin a task that belongs to the process."""
        return self._loop.create_task(coro, name=name, context=self.context.copy())

    def adopt(self, task: asyncio.Task[Any]) -> None:
        """It belongs to the process from now on."""
        self._tasks[task] = None
        task.add_done_callback(self._forget, context=self.context)
        if not self.is_alive:  # begun by what the end of another one has called
            self._loop.call_soon(self._reap, context=Context())

    def stop(self) -> None:
        """SIGSTOP."""
        self.is_stopped = True

    def go_on(self) -> None:
        """SIGCONT."""
        self.is_stopped = False
        frozen, self.frozen = self.frozen, []
        self._loop.requeue(frozen)

    def kill(self) -> None:
        """SIGKILL: nothing that it does from now on reaches anybody."""
        self.is_alive = False
        self.go_on()
        self._reap()

    def _reap(self) -> None:
        left = [task for task in self._tasks if not task.done()]
        for task in left:
            task.cancel()
        if left:  # some wait once more while they unwind
            self._loop.call_soon(self._reap, context=Context())

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None and self.is_alive:
            self._loop.call_exception_handler(
                {"message": f"task {task.get_name()!r}", "exception": error, "task": task}
            )
