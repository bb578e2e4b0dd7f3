"""The blocking client: the same calls as `sipnap.client.aio`, for programs without an event loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self, TypeVar

import grpc

from sipnap.client.aio import CALL_TIMEOUT_SECONDS
from sipnap.client.channel import DEFAULT_TARGET, open_sync
from sipnap.client.errors import error_from
from sipnap.client.keys import SuspensionKey, key_of
from sipnap.client.outstanding import seconds_of
from sipnap.client.requests import PAGE_SIZE, run_task_request, sleep_request, suspend_route_request
from sipnap.v1 import admin_service_pb2 as admin
from sipnap.v1 import nap_service_pb2 as nap
from sipnap.v1 import suspension_pb2 as pb
from sipnap.v1.admin_service_pb2_grpc import AdminServiceStub
from sipnap.v1.nap_service_pb2_grpc import NapServiceStub

_Response = TypeVar("_Response")


class Client:
    """Calls one sidecar. A context manager; safe for any number of threads.

    Every method raises `sipnap.client.errors.NapError` or a narrower class of that module.
    """

    def __init__(self, target: str = DEFAULT_TARGET, *, credentials: grpc.ChannelCredentials | None = None) -> None:
        """Prepare a channel to `target` (``HOST:PORT`` or ``unix:PATH``); it connects with the first call."""
        self._target = target
        self._channel = open_sync(target, credentials)
        self._naps = NapServiceStub(self._channel)
        self._admin = AdminServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel; calls in flight end with an error."""
        self._channel.close()

    def sleep(self, seconds: float) -> float:
        """Wait at the sidecar; see `sipnap.client.aio.Client.sleep`."""
        response = self._call(self._naps.Sleep, sleep_request(seconds), seconds + CALL_TIMEOUT_SECONDS)
        return seconds_of(response.slept)

    def suspend_route(
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
        """Have a front end resume a transaction later; see `sipnap.client.aio.Client.suspend_route`."""
        request = suspend_route_request(key, route, seconds, deadline_seconds, state, avps, operations, late_policy)
        return self._call(self._naps.SuspendRoute, request)

    def run_task(
        self,
        front_end_id: str,
        route: str,
        data: bytes | str = b"",
        seconds: float = 0.0,
        *,
        operations: Sequence[pb.Operation] = (),
    ) -> SuspensionKey:
        """Have a front end run a route without a transaction; see `sipnap.client.aio.Client.run_task`."""
        request = run_task_request(front_end_id, route, data, seconds, operations)
        return key_of(self._call(self._naps.RunTask, request).key)

    def cancel(self, key: SuspensionKey) -> pb.CancelOutcome:
        """End a suspension before its time. Idempotent; the outcome is definite."""
        return self._call(self._naps.Cancel, nap.CancelRequest(key=key.to_message())).outcome

    def get(self, key: SuspensionKey) -> pb.SuspensionInfo:
        """One suspension; `NotFound` when it has ended or never was."""
        return self._call(self._naps.Get, nap.GetRequest(key=key.to_message())).suspension

    def list(self, front_end_id: str = "") -> Iterator[pb.SuspensionInfo]:
        """All suspensions in order of acceptance, or only those of one front end; fetched page by page."""
        request = nap.ListRequest(front_end_id=front_end_id, page_size=PAGE_SIZE)
        while True:
            response = self._call(self._naps.List, request)
            yield from response.suspensions
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    def status(self) -> admin.GetStatusResponse:
        """The sidecar's state in figures."""
        return self._call(self._admin.GetStatus, admin.GetStatusRequest())

    def set_workers(self, group: str, workers: int) -> admin.SetWorkersResponse:
        """Resize a worker group; see `sipnap.client.aio.Client.set_workers`."""
        return self._call(self._admin.SetWorkers, admin.SetWorkersRequest(group=group, workers=workers))

    def _call(
        self,
        method: Callable[..., _Response],
        request: object,
        timeout_seconds: float = CALL_TIMEOUT_SECONDS,
    ) -> _Response:
        try:
            return method(request, timeout=timeout_seconds)
        except grpc.RpcError as error:
            raise error_from(error, self._target) from error
