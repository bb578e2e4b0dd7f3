import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from sipnap.v1 import suspension_pb2 as _suspension_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WorkerHello(_message.Message):
    __slots__ = ("protocol_version", "worker_id", "group", "operations")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    worker_id: str
    group: str
    operations: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, protocol_version: _Optional[int] = ..., worker_id: _Optional[str] = ..., group: _Optional[str] = ..., operations: _Optional[_Iterable[str]] = ...) -> None: ...

class WorkerWelcome(_message.Message):
    __slots__ = ("protocol_version", "instance_id", "lease_time")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_TIME_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    instance_id: str
    lease_time: _duration_pb2.Duration
    def __init__(self, protocol_version: _Optional[int] = ..., instance_id: _Optional[str] = ..., lease_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class WorkRequest(_message.Message):
    __slots__ = ("hello", "credits", "results", "extend", "leaving")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    CREDITS_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    EXTEND_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    hello: WorkerHello
    credits: int
    results: _containers.RepeatedCompositeFieldContainer[LeaseResult]
    extend: _containers.RepeatedScalarFieldContainer[int]
    leaving: bool
    def __init__(self, hello: _Optional[_Union[WorkerHello, _Mapping]] = ..., credits: _Optional[int] = ..., results: _Optional[_Iterable[_Union[LeaseResult, _Mapping]]] = ..., extend: _Optional[_Iterable[int]] = ..., leaving: _Optional[bool] = ...) -> None: ...

class WorkResponse(_message.Message):
    __slots__ = ("welcome", "leases", "cancels", "stale", "go_away")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    CANCELS_FIELD_NUMBER: _ClassVar[int]
    STALE_FIELD_NUMBER: _ClassVar[int]
    GO_AWAY_FIELD_NUMBER: _ClassVar[int]
    welcome: WorkerWelcome
    leases: _containers.RepeatedCompositeFieldContainer[Lease]
    cancels: _containers.RepeatedScalarFieldContainer[int]
    stale: _containers.RepeatedScalarFieldContainer[int]
    go_away: bool
    def __init__(self, welcome: _Optional[_Union[WorkerWelcome, _Mapping]] = ..., leases: _Optional[_Iterable[_Union[Lease, _Mapping]]] = ..., cancels: _Optional[_Iterable[int]] = ..., stale: _Optional[_Iterable[int]] = ..., go_away: _Optional[bool] = ...) -> None: ...

class Lease(_message.Message):
    __slots__ = ("lease_id", "operation", "arguments", "state", "key", "attempt", "time_left")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    TIME_LEFT_FIELD_NUMBER: _ClassVar[int]
    lease_id: int
    operation: str
    arguments: _containers.RepeatedCompositeFieldContainer[_suspension_pb2.NamedValue]
    state: _suspension_pb2.TransactionState
    key: _suspension_pb2.SuspensionKey
    attempt: int
    time_left: _duration_pb2.Duration
    def __init__(self, lease_id: _Optional[int] = ..., operation: _Optional[str] = ..., arguments: _Optional[_Iterable[_Union[_suspension_pb2.NamedValue, _Mapping]]] = ..., state: _Optional[_Union[_suspension_pb2.TransactionState, _Mapping]] = ..., key: _Optional[_Union[_suspension_pb2.SuspensionKey, _Mapping]] = ..., attempt: _Optional[int] = ..., time_left: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class LeaseResult(_message.Message):
    __slots__ = ("lease_id", "completed", "failed", "released")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    lease_id: int
    completed: LeaseCompleted
    failed: LeaseFailed
    released: LeaseReleased
    def __init__(self, lease_id: _Optional[int] = ..., completed: _Optional[_Union[LeaseCompleted, _Mapping]] = ..., failed: _Optional[_Union[LeaseFailed, _Mapping]] = ..., released: _Optional[_Union[LeaseReleased, _Mapping]] = ...) -> None: ...

class LeaseCompleted(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedCompositeFieldContainer[_suspension_pb2.NamedValue]
    def __init__(self, values: _Optional[_Iterable[_Union[_suspension_pb2.NamedValue, _Mapping]]] = ...) -> None: ...

class LeaseFailed(_message.Message):
    __slots__ = ("error_code", "error", "retry_after")
    ERROR_CODE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_FIELD_NUMBER: _ClassVar[int]
    error_code: str
    error: str
    retry_after: _duration_pb2.Duration
    def __init__(self, error_code: _Optional[str] = ..., error: _Optional[str] = ..., retry_after: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class LeaseReleased(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
