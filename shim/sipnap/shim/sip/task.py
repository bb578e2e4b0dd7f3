"""Tasks: routes that run without a call."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sipnap.client.keys import SuspensionKey
from sipnap.client.operations import Value
from sipnap.shim.sip.app import App, TaskRoute, check_route_name
from sipnap.shim.sip.repeated import RepeatedLog
from sipnap.shim.sip.result import OperationResult, result_of
from sipnap.shim.sip.suspension import TASK_NAP_NUMBER, checked_operations, task_suspension
from sipnap.v1 import suspension_pb2 as pb

if TYPE_CHECKING:
    from sipnap.shim.sip.front_end import Session

log = logging.getLogger("sipnap.sip")


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """One run of a route that has no call (async module: async_task_data)."""

    route: str
    """Its name."""
    data: bytes
    """What it was given (Kamailio shim: $avp(sipnap_data))."""
    result: OperationResult
    """How it was waited for, and what its operations found. A task that the sidecar refused after all runs with
    status ``failed``, one that no sidecar answered for in time with ``lost``."""
    key: SuspensionKey
    """Its name at the sidecar: the same if it runs again."""
    _runner: TaskRunner = field(repr=False)

    @property
    def status(self) -> str:
        """``ok``, ``failed``, ``timed_out`` or ``lost``."""
        return self.result.status

    @property
    def values(self) -> Mapping[str, Value]:
        """What its operations found, by name."""
        return self.result.values

    def run_task(
        self, route: str, data: bytes | str = b"", *, seconds: float = 0.0, operations: Sequence[pb.Operation] = ()
    ) -> bool:
        """Have another task run; see `Call.run_task`."""
        return self._runner.submit(route, data, seconds, operations)


class TaskRunner:
    """The tasks of one front end: sent to the sidecar, and run when it sends them back."""

    def __init__(
        self,
        app: App,
        session: Session,
        *,
        front_end_id: str,
        boot_epoch: int,
        max_seconds: float,
        events: RepeatedLog,
        on_idle: Callable[[], None],
    ) -> None:
        """Create it in a running loop.

        Args:
            app: The routes.
            session: Where tasks go and come from.
            front_end_id: Name of the front end, as the session says it.
            boot_epoch: Start of the front end's life, as the session says it.
            max_seconds: Longest wait for a task.
            events: Where to log what may happen often.
            on_idle: Called when the last task that ran has ended.
        """
        self._app = app
        self._session = session
        self._front_end_id = front_end_id
        self._boot_epoch = boot_epoch
        self._max_seconds = max_seconds
        self._events = events
        self._on_idle = on_idle
        self._loop = asyncio.get_running_loop()
        self.running: set[asyncio.Task[None]] = set()
        """Those that run now."""

    def submit(self, route: str, data: bytes | str, seconds: float, operations: Sequence[pb.Operation]) -> bool:
        """See `Call.run_task`; False: refused at the door."""
        check_route_name(route)
        if not 0 <= seconds <= self._max_seconds:
            reason = f"a task waits at most {self._max_seconds:g} s; raise --max-seconds"
            self._events.write(
                ("task refused", route),
                logging.WARNING,
                "task refused route=%s seconds=%s reason=%s",
                route,
                seconds,
                reason,
            )
            return False
        if not self._session.is_open:  # which the session has logged already
            return False
        if operations:
            seconds = seconds or self._max_seconds
        number = secrets.randbits(64)
        key = SuspensionKey(self._front_end_id, self._boot_epoch, number >> 32, number & 0xFFFFFFFF, TASK_NAP_NUMBER)
        self._session.suspend(task_suspension(key, route, data, seconds, checked_operations(operations)))
        return True

    def start(self, key: SuspensionKey, received: pb.Continue) -> bool:
        """Run what the sidecar sent; the session has its answer when the route has ended.

        Returns:
            False: there is no such route, and the sidecar was told so.
        """
        name = received.resume_route
        route = self._app.find_task(name)
        if route is None:
            self._events.write(
                ("no task", name[:64]), logging.ERROR, "no such task: decorate its route with @app.task route=%r", name
            )
            self._session.answer(key, pb.CONTINUE_OUTCOME_REJECTED)
            return False
        task = Task(name, received.data, result_of(received), key, self)
        running = self._loop.create_task(self._run(route, task), name=f"sipnap task {name}")
        self.running.add(running)  # the loop itself keeps only weak references
        running.add_done_callback(self._ended)
        return True

    async def _run(self, route: TaskRoute, task: Task) -> None:
        try:
            await route(task)
        except asyncio.CancelledError:
            if is_being_cancelled():  # by a drain: it has not run, and nobody is to take it for that
                raise
            log.warning("task was cancelled by its own code route=%s", task.route)
        except (Exception, SystemExit) as error:
            self._events.write_raised(task.route, error)
        self._session.answer(task.key, pb.CONTINUE_OUTCOME_APPLIED)

    def _ended(self, running: asyncio.Task[None]) -> None:
        self.running.discard(running)
        if not self.running:
            self._on_idle()


def is_being_cancelled() -> bool:
    """Whether somebody has asked the running asyncio task to end; else a CancelledError comes from its own code."""
    running = asyncio.current_task()
    return running is not None and running.cancelling() > 0
