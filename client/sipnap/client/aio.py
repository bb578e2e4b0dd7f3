"""The asyncio client: naps, suspensions, status."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

import grpc

from sipnap.client.channel import DEFAULT_TARGET, open_aio
from sipnap.client.errors import error_from
from sipnap.client.keys import SuspensionKey, key_of
from sipnap.client.outstanding import seconds_of
from sipnap.client.requests import PAGE_SIZE, run_task_request, sleep_request, suspend_route_request
from sipnap.v1 import admin_service_pb2 as admin
from sipnap.v1 import nap_service_pb2 as nap
from sipnap.v1 import suspension_pb2 as pb
from sipnap.v1.admin_service_pb2_grpc import AdminServiceStub
from sipnap.v1.nap_service_pb2_grpc import NapServiceStub

if TYPE_CHECKING:  # the generated stubs have these for type checkers only
    from sipnap.v1.admin_service_pb2_grpc import AdminServiceAsyncStub
    from sipnap.v1.nap_service_pb2_grpc import NapServiceAsyncStub

CALL_TIMEOUT_SECONDS = 5.0
"""How long any RPC may take, beyond the time that a `sleep` asks for."""

_Response = TypeVar("_Response")


class Client:
    """Calls one sidecar. An asynchronous context manager; safe for any number of tasks of one event loop.

    Every method raises `sipnap.client.errors.NapError` or a narrower class of that module.
    """

    def __init__(self, target: str = DEFAULT_TARGET, *, credentials: grpc.ChannelCredentials | None = None) -> None:
        """Prepare a channel to `target` (``HOST:PORT`` or ``unix:PATH``); it connects with the first call."""
        self._target = target
        self._channel = open_aio(target, credentials)
        self._naps: NapServiceAsyncStub = NapServiceStub(self._channel)
        self._admin: AdminServiceAsyncStub = AdminServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the channel; calls in flight end with an error."""
        await self._channel.close(grace=None)

    async def sleep(self, seconds: float) -> float:
        """Wait at the sidecar; the next line is the next action (async module: ``async_sleep``).

        Args:
            seconds: More than 0, at most the sidecar's ``--max-seconds`` (100 unless raised).

        Returns:
            How long it really was, in seconds, as the sidecar measured it; never less than asked for.
        """
        request = sleep_request(seconds)
        response = await self._answer(self._naps.Sleep(request, timeout=seconds + CALL_TIMEOUT_SECONDS))
        return seconds_of(response.slept)

    async def suspend_route(
        self,
        key: SuspensionKey,
        route: str,
        seconds: float,
        *,
        deadline_seconds: float | None = None,
        state: pb.TransactionState | None = None,
        avps: Mapping[str, str | bytes | int] | None = None,
        operations: Sequence[pb.Operation] = (),
        late_policy: pb.LatePolicy = pb.LATE_POLICY_UNSPECIFIED,
    ) -> nap.SuspendRouteResponse:
        """Have a front end resume one of its transactions later (async module: ``async_route``).

        Args:
            key: The transaction and its front end; ``boot_epoch`` 0 means the front end's present one.
            route: Route to resume in.
            seconds: More than 0, at most the sidecar's ``--max-seconds`` (100 unless raised).
            deadline_seconds: When nobody waits for it any more; None: the sidecar's default.
            state: What is known of the request.
            avps: Attribute-value pairs, added to the state's.
            operations: What to do meanwhile, all at the same time (`sipnap.client.operations.operation_message`); none:
                a plain nap. The seconds are the most that they may take.
            late_policy: What to do if its time passes while no sidecar is there; unspecified: fire.
        """
        request = suspend_route_request(key, route, seconds, deadline_seconds, state, avps, operations, late_policy)
        return await self._answer(self._naps.SuspendRoute(request, timeout=CALL_TIMEOUT_SECONDS))

    async def run_task(
        self,
        front_end_id: str,
        route: str,
        data: bytes | str = b"",
        seconds: float = 0.0,
        *,
        operations: Sequence[pb.Operation] = (),
    ) -> SuspensionKey:
        """Have a front end run a route without a transaction (async module: ``async_task_data``).

        It returns once the task is accepted, and the route runs at least once: a front end that dies between running
        it and saying so runs it again. A restart of the front end ends what has not run by then.

        Args:
            front_end_id: Who runs it; it needs a session with the sidecar, or with one that shares its journal.
            route: Route to run: 1 to 64 characters of ``[A-Za-z0-9_.:-]``.
            data: What the route is given; `str` is sent as UTF-8.
            seconds: Not before that much has passed; 0: at once. With operations the most that they may take; 0: the
                sidecar's ``--max-seconds``, which bounds it in any case.
            operations: What to do first, all at the same time (`sipnap.client.operations.operation_message`).

        Returns:
            The task's key, for `get` and `cancel`.
        """
        request = run_task_request(front_end_id, route, data, seconds, operations)
        return key_of((await self._answer(self._naps.RunTask(request, timeout=CALL_TIMEOUT_SECONDS))).key)

    async def cancel(self, key: SuspensionKey) -> pb.CancelOutcome:
        """End a suspension before its time. Idempotent; the outcome is definite."""
        request = nap.CancelRequest(key=key.to_message())
        return (await self._answer(self._naps.Cancel(request, timeout=CALL_TIMEOUT_SECONDS))).outcome

    async def get(self, key: SuspensionKey) -> pb.SuspensionInfo:
        """One suspension; `NotFound` when it has ended or never was."""
        request = nap.GetRequest(key=key.to_message())
        return (await self._answer(self._naps.Get(request, timeout=CALL_TIMEOUT_SECONDS))).suspension

    async def list(self, front_end_id: str = "") -> AsyncIterator[pb.SuspensionInfo]:
        """All suspensions in order of acceptance, or only those of one front end; fetched page by page."""
        request = nap.ListRequest(front_end_id=front_end_id, page_size=PAGE_SIZE)
        while True:
            response = await self._answer(self._naps.List(request, timeout=CALL_TIMEOUT_SECONDS))
            for info in response.suspensions:
                yield info
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    async def status(self) -> admin.GetStatusResponse:
        """The sidecar's state in figures."""
        return await self._answer(self._admin.GetStatus(admin.GetStatusRequest(), timeout=CALL_TIMEOUT_SECONDS))

    async def set_workers(self, group: str, workers: int) -> admin.SetWorkersResponse:
        """Give a worker group another number of workers, 1 to 10000. `NotFound` if there is no such group."""
        request = admin.SetWorkersRequest(group=group, workers=workers)
        return await self._answer(self._admin.SetWorkers(request, timeout=CALL_TIMEOUT_SECONDS))

    async def _answer(self, call: Awaitable[_Response]) -> _Response:
        try:
            return await call
        except grpc.RpcError as error:
            raise error_from(error, self._target) from error
