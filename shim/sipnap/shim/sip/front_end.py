"""Routes, transactions and the session with the sidecar, put together. Belongs to one event loop, no threads, no locks.

The life of a nap: suspend, the session ships it, the sidecar sends a continue, resume: run a route or wake a sleeper.
Whatever ends the call meanwhile (CANCEL, a final response, the end of the transaction) ends the nap, here and at the
sidecar. If no continue comes, the backstop timer resumes the call with status ``lost``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Protocol

from sipnap.client.keys import Key, SuspensionKey
from sipnap.shim.sip.app import REQUEST_ROUTE, App, Route
from sipnap.shim.sip.call import Call, Nap, RouteEnded, is_nap_length
from sipnap.shim.sip.repeated import RepeatedLog
from sipnap.shim.sip.result import OperationResult, result_of
from sipnap.shim.sip.suspension import TASK_NAP_NUMBER, checked_operations, suspension_of
from sipnap.shim.sip.task import TaskRunner
from sipnap.shim.sip.trace import Trace
from sipnap.shim.sip.transactions import ServerTransaction, TransactionId
from sipnap.v1 import suspension_pb2 as pb

DEFAULT_MAX_SECONDS = 100.0
"""Longest nap unless told otherwise, as in the async module."""

DEFAULT_MARGIN_SECONDS = 2.0
"""How long after its time a nap counts as lost."""

# The contract wants a route; of what goes on with the next line it only shows in `sipnap list`.
_SLEEP_ROUTE, _OPERATION_ROUTE = "async_sleep", "operation"

log = logging.getLogger("sipnap.sip")


class Session(Protocol):
    """What is used of `sipnap.client.session.FrontEndSession`."""

    @property
    def is_open(self) -> bool:
        """Whether suspensions may be sent now."""
        ...

    def suspend(self, suspension: pb.Suspension) -> None:
        """Have a transaction held."""
        ...

    def cancel(self, key: SuspensionKey) -> None:
        """End a suspension before its time."""
        ...

    def answer(self, key: SuspensionKey, outcome: pb.ContinueOutcome) -> None:
        """Say what became of a continue."""
        ...


class FrontEnd:
    """The calls of one front end."""

    def __init__(
        self,
        app: App,
        session: Session,
        *,
        front_end_id: str,
        boot_epoch: int,
        max_seconds: float = DEFAULT_MAX_SECONDS,
        margin_seconds: float = DEFAULT_MARGIN_SECONDS,
        trace: Trace | None = None,
    ) -> None:
        """Create it in a running loop.

        Args:
            app: The routes.
            session: Where naps go.
            front_end_id: Name of the front end, as the session says it.
            boot_epoch: Start of the front end's life, as the session says it.
            max_seconds: Longest nap.
            margin_seconds: How long after its time a nap counts as lost; more than 0.
            trace: Where to write each call's steps.
        """
        self._app = app
        self._session = session
        self._front_end_id = front_end_id
        self._boot_epoch = boot_epoch
        self._max_seconds = max_seconds
        self._margin_seconds = margin_seconds
        self._trace = trace
        self._loop = asyncio.get_running_loop()
        self._calls: dict[TransactionId, Call] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining = False
        self._emptied = asyncio.Event()
        self._events = RepeatedLog(log)
        self.tasks = TaskRunner(
            app,
            session,
            front_end_id=front_end_id,
            boot_epoch=boot_epoch,
            max_seconds=max_seconds,
            events=self._events,
            on_idle=self._note_emptied,
        )
        """What runs without a call."""

    @property
    def open_calls(self) -> int:
        """Calls without a final response."""
        return len(self._calls)

    # Requests and responses

    def receive(self, transaction: ServerTransaction) -> None:
        """Serve a new transaction."""
        route = self._app.find_request_route()
        if self._draining or route is None:
            transaction.reply(503, "Service Unavailable", [("Retry-After", "5")])
            return
        call = Call(self, transaction)
        self._calls[transaction.transaction_id] = call
        transaction.on_end = lambda step: self._ended(call, step)
        self._note("received", call)
        if call.method == "INVITE":
            self.reply(call, 100, "Trying", [])
        self._start(call, route, REQUEST_ROUTE)

    def reply(self, call: Call, code: int, reason: str, headers: Iterable[tuple[str, str]]) -> bool:
        """See `Call.reply`."""
        if not call.transaction.reply(code, reason, headers):
            return False
        self._note("replied", call, code=code)
        if call.transaction.ended:
            self._forget(call)
        return True

    def _ended(self, call: Call, step: str) -> None:
        self._note(step, call)
        self._forget(call)
        if call.task is not None:
            call.task.cancel()

    def _forget(self, call: Call) -> None:
        self._calls.pop(call.transaction.transaction_id, None)
        call.transaction.on_end = None  # a cycle less for the collector
        nap = self._take_nap(call)
        if nap is not None:
            if nap.shipped:
                self._session.cancel(nap.key)
            if nap.sleeper is not None:
                nap.sleeper.cancel()
        self._note_emptied()

    def _note_emptied(self) -> None:
        if not self._calls and not self.tasks.running:
            self._emptied.set()

    # Routes

    def _start(self, call: Call, route: Route, name: str) -> None:
        call.route_name = name
        task = call.task = self._loop.create_task(self._run(call, route, name))
        self._tasks.add(task)  # the loop itself keeps only weak references
        task.add_done_callback(partial(self._finished, call))

    def _finished(self, call: Call, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if call.task is task:
            call.task = None  # a cycle less: a cancelled task holds on to its frames

    async def _run(self, call: Call, route: Route, name: str) -> None:
        try:
            await route(call)
        except RouteEnded:
            return
        except asyncio.CancelledError:
            if call.ended:
                return
            log.warning("route was cancelled by its own code route=%s call=%r", name, call)
        except (Exception, SystemExit) as error:
            self._events.write_raised(name, error)
        else:
            if call.ended or call.nap is not None or call.task is not asyncio.current_task():
                return
            self._events.write(
                (name, "silent"), logging.WARNING, "route ended without a reply: answering 500 route=%s", name
            )
        if not call.ended:
            self.reply(call, 500, "Server Internal Error", [])

    # Naps

    async def nap(self, call: Call, seconds: float, operations: Sequence[pb.Operation]) -> OperationResult:
        """See `Call.async_sleep` and `Call.operations`."""
        checked_operations(operations)
        if reason := self._refusal(call, seconds):
            return OperationResult("refused", reason, "refused")
        nap = self._suspend(call, None)
        nap.sleeper = self._loop.create_future()
        self._ship(call, nap, _OPERATION_ROUTE if operations else _SLEEP_ROUTE, seconds, operations)
        try:
            await nap.sleeper
        except asyncio.CancelledError:
            if call.nap is nap:  # the route's own code gave it up: the call may nap again
                self._take_nap(call)
                self._session.cancel(nap.key)
            raise
        return call.result

    def suspend_for_route(self, call: Call, route: str, seconds: float, operations: Sequence[pb.Operation]) -> bool:
        """See `Call.async_route`; False: refused."""
        checked_operations(operations)
        if self._refusal(call, seconds):
            return False
        self._ship(call, self._suspend(call, route), route, seconds, operations)
        return True

    def t_suspend(self, call: Call) -> Nap | None:
        """See `Call.t_suspend`."""
        if call.ended or call.nap is not None:
            return None
        return self._suspend(call, None)

    def t_continue(self, transaction_index: int, transaction_label: int, route: str) -> bool:
        """Resume a suspended transaction in `route` (tm: t_continue). Call it in the event loop.

        Returns:
            False: it is suspended no more, or there is no such route (the call has got its 500 then).
        """
        call = self._calls.get(TransactionId(transaction_index, transaction_label))
        if call is None or call.nap is None:
            return False
        if call.nap.shipped:
            self._session.cancel(call.nap.key)
        return self._resume(call, OperationResult("ok"), route)

    def continue_all(self, batch: Sequence[pb.Continue]) -> None:
        """Apply what the sidecar sent, and answer for each."""
        for received in batch:
            key = SuspensionKey(
                self._front_end_id,
                received.key.boot_epoch or self._boot_epoch,
                received.key.transaction_index,
                received.key.transaction_label,
                received.key.nap_number,
            )
            if key.nap_number == TASK_NAP_NUMBER:
                self.tasks.start(key, received)
            else:
                self._session.answer(key, self._continue(key, received))

    def shipped(self, keys: Sequence[Key]) -> None:
        """Note that the session wrote these to its stream."""
        if self._trace is not None:
            for _, _, index, label, nap_number in keys:
                call = self._calls.get(TransactionId(index, label))
                if call is not None:
                    self._note("shipped", call, nap=nap_number)

    def _refusal(self, call: Call, seconds: float) -> str:
        """The door: what is refused here was never suspended, and the route goes on at once. Empty: it may nap."""
        reason = ""
        if call.ended:
            reason = "the call has ended"
        elif call.nap is not None:
            reason = "the call is suspended already; for several operations in one nap there is call.operations"
        elif not is_nap_length(seconds) or seconds > self._max_seconds:
            reason = f"a nap is more than 0 and at most {self._max_seconds:g} s; raise --max-seconds"
        elif self._loop.time() + seconds + self._margin_seconds > call.transaction.expires_seconds:
            reason = f"the {call.method} transaction ends before that"
        if reason:
            self._events.write(
                (call.route_name, "refused", reason),
                logging.WARNING,
                "nap refused route=%s seconds=%s reason=%s",
                call.route_name,
                seconds,
                reason,
            )
        elif not self._session.is_open:
            reason = "no sidecar takes naps now"  # the session has said so in the log already
        if reason:
            self._note("refused", call, reason=reason)
        return reason

    def _suspend(self, call: Call, route: str | None) -> Nap:
        call.nap_count += 1
        index, label = call.transaction.transaction_id
        key = SuspensionKey(self._front_end_id, self._boot_epoch, index, label, call.nap_count)
        call.nap = Nap(key, route)
        self._note("suspended", call, nap=call.nap_count, index=index, label=label)
        return call.nap

    def _ship(self, call: Call, nap: Nap, route: str, seconds: float, operations: Sequence[pb.Operation]) -> None:
        wait_seconds = seconds + self._margin_seconds
        try:
            suspension = suspension_of(call, nap.key, route, seconds, wait_seconds, operations)
        except BaseException:
            call.nap = None  # an AVP that cannot travel: the route gets the error, not suspended
            raise
        nap.shipped = True
        nap.backstop = self._loop.call_later(wait_seconds, self._lost, call, nap)
        self._session.suspend(suspension)

    def _continue(self, key: SuspensionKey, received: pb.Continue) -> pb.ContinueOutcome:
        call = self._calls.get(TransactionId(key.transaction_index, key.transaction_label))
        if call is None or call.nap is None or call.nap.key != key:
            return pb.CONTINUE_OUTCOME_GONE
        applied = self._resume(call, result_of(received), call.nap.route or received.resume_route)
        return pb.CONTINUE_OUTCOME_APPLIED if applied else pb.CONTINUE_OUTCOME_REJECTED

    def _lost(self, call: Call, nap: Nap) -> None:
        if call.nap is nap:
            self._events.write("lost", logging.WARNING, "nap lost: no continue came in time call=%r", call)
            self._session.cancel(nap.key)
            self._resume(call, OperationResult("lost", "no continue came in time", "lost"), nap.route or "")

    def _resume(self, call: Call, result: OperationResult, route_name: str) -> bool:
        nap = self._take_nap(call)
        assert nap is not None
        call.result = result
        self._note("continued", call, nap=nap.key.nap_number, status=result.status)
        if nap.sleeper is not None:
            if not nap.sleeper.done():
                nap.sleeper.set_result(None)
            return True
        route = self._app.find_route(route_name)
        if route is None:
            self._events.write(
                ("no route", route_name[:64]), logging.ERROR, "no such route: answering 500 route=%r", route_name
            )
            self.reply(call, 500, "Server Internal Error", [])
            return False
        self._start(call, route, route_name)
        return True

    @staticmethod
    def _take_nap(call: Call) -> Nap | None:
        nap, call.nap = call.nap, None
        if nap is not None and nap.backstop is not None:
            nap.backstop.cancel()
        return nap

    # The end

    async def drain(self, grace_seconds: float) -> None:
        """Refuse new calls, give those under way `grace_seconds` to end, and answer 503 to what is left then.

        Tasks that run have the same time, and are cancelled then.
        """
        self._draining = True
        running = self.tasks.running
        if self._calls or running:
            log.info("draining calls=%d tasks=%d grace_seconds=%g", len(self._calls), len(running), grace_seconds)
            self._emptied.clear()
            try:
                async with asyncio.timeout(grace_seconds):
                    await self._emptied.wait()
            except TimeoutError:
                log.warning("cut short by the shutdown calls=%d tasks=%d", len(self._calls), len(running))
        for call in list(self._calls.values()):
            self.reply(call, 503, "Service Unavailable", [("Retry-After", "5")])
            if call.task is not None:
                call.task.cancel()
        for task in running:
            task.cancel()
        if self._tasks or running:
            await asyncio.wait(self._tasks | running, timeout=1.0)

    def _note(self, step: str, call: Call, **fields: object) -> None:
        if self._trace is not None:
            self._trace.write(step, call, **fields)
