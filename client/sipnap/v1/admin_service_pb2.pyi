import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from sipnap.v1 import suspension_pb2 as _suspension_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WorkerKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WORKER_KIND_UNSPECIFIED: _ClassVar[WorkerKind]
    WORKER_KIND_ASYNC: _ClassVar[WorkerKind]
    WORKER_KIND_PROCESS: _ClassVar[WorkerKind]
    WORKER_KIND_REMOTE: _ClassVar[WorkerKind]
WORKER_KIND_UNSPECIFIED: WorkerKind
WORKER_KIND_ASYNC: WorkerKind
WORKER_KIND_PROCESS: WorkerKind
WORKER_KIND_REMOTE: WorkerKind

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("version", "instance_id", "start_time", "draining", "journal", "pending", "continuing", "sleeping", "max_pending", "counters", "front_ends", "worker_groups", "lateness")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    JOURNAL_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    CONTINUING_FIELD_NUMBER: _ClassVar[int]
    SLEEPING_FIELD_NUMBER: _ClassVar[int]
    MAX_PENDING_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    FRONT_ENDS_FIELD_NUMBER: _ClassVar[int]
    WORKER_GROUPS_FIELD_NUMBER: _ClassVar[int]
    LATENESS_FIELD_NUMBER: _ClassVar[int]
    version: str
    instance_id: str
    start_time: _timestamp_pb2.Timestamp
    draining: bool
    journal: JournalStatus
    pending: int
    continuing: int
    sleeping: int
    max_pending: int
    counters: Counters
    front_ends: _containers.RepeatedCompositeFieldContainer[FrontEndStatus]
    worker_groups: _containers.RepeatedCompositeFieldContainer[WorkerGroupStatus]
    lateness: Distribution
    def __init__(self, version: _Optional[str] = ..., instance_id: _Optional[str] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., draining: _Optional[bool] = ..., journal: _Optional[_Union[JournalStatus, _Mapping]] = ..., pending: _Optional[int] = ..., continuing: _Optional[int] = ..., sleeping: _Optional[int] = ..., max_pending: _Optional[int] = ..., counters: _Optional[_Union[Counters, _Mapping]] = ..., front_ends: _Optional[_Iterable[_Union[FrontEndStatus, _Mapping]]] = ..., worker_groups: _Optional[_Iterable[_Union[WorkerGroupStatus, _Mapping]]] = ..., lateness: _Optional[_Union[Distribution, _Mapping]] = ...) -> None: ...

class Distribution(_message.Message):
    __slots__ = ("buckets", "total")
    BUCKETS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    buckets: _containers.RepeatedCompositeFieldContainer[Bucket]
    total: _duration_pb2.Duration
    def __init__(self, buckets: _Optional[_Iterable[_Union[Bucket, _Mapping]]] = ..., total: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Bucket(_message.Message):
    __slots__ = ("upper_bound", "count")
    UPPER_BOUND_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    upper_bound: _duration_pb2.Duration
    count: int
    def __init__(self, upper_bound: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., count: _Optional[int] = ...) -> None: ...

class JournalStatus(_message.Message):
    __slots__ = ("kind", "durability")
    KIND_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    kind: str
    durability: _suspension_pb2.Durability
    def __init__(self, kind: _Optional[str] = ..., durability: _Optional[_Union[_suspension_pb2.Durability, str]] = ...) -> None: ...

class Counters(_message.Message):
    __slots__ = ("accepted", "refused", "cancelled", "applied", "gone", "rejected", "lost", "slept", "dropped")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    GONE_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    SLEPT_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    accepted: int
    refused: int
    cancelled: int
    applied: int
    gone: int
    rejected: int
    lost: int
    slept: int
    dropped: int
    def __init__(self, accepted: _Optional[int] = ..., refused: _Optional[int] = ..., cancelled: _Optional[int] = ..., applied: _Optional[int] = ..., gone: _Optional[int] = ..., rejected: _Optional[int] = ..., lost: _Optional[int] = ..., slept: _Optional[int] = ..., dropped: _Optional[int] = ...) -> None: ...

class FrontEndStatus(_message.Message):
    __slots__ = ("front_end_id", "boot_epoch", "connected", "pending", "continuing")
    FRONT_END_ID_FIELD_NUMBER: _ClassVar[int]
    BOOT_EPOCH_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    CONTINUING_FIELD_NUMBER: _ClassVar[int]
    front_end_id: str
    boot_epoch: int
    connected: bool
    pending: int
    continuing: int
    def __init__(self, front_end_id: _Optional[str] = ..., boot_epoch: _Optional[int] = ..., connected: _Optional[bool] = ..., pending: _Optional[int] = ..., continuing: _Optional[int] = ...) -> None: ...

class WorkerGroupStatus(_message.Message):
    __slots__ = ("name", "workers", "busy", "queued", "kind", "max_queued", "succeeded", "failed", "timed_out", "abandoned", "refused", "retried", "wait", "run")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    BUSY_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUED_FIELD_NUMBER: _ClassVar[int]
    SUCCEEDED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    TIMED_OUT_FIELD_NUMBER: _ClassVar[int]
    ABANDONED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    RETRIED_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    name: str
    workers: int
    busy: int
    queued: int
    kind: WorkerKind
    max_queued: int
    succeeded: int
    failed: int
    timed_out: int
    abandoned: int
    refused: int
    retried: int
    wait: Distribution
    run: Distribution
    def __init__(self, name: _Optional[str] = ..., workers: _Optional[int] = ..., busy: _Optional[int] = ..., queued: _Optional[int] = ..., kind: _Optional[_Union[WorkerKind, str]] = ..., max_queued: _Optional[int] = ..., succeeded: _Optional[int] = ..., failed: _Optional[int] = ..., timed_out: _Optional[int] = ..., abandoned: _Optional[int] = ..., refused: _Optional[int] = ..., retried: _Optional[int] = ..., wait: _Optional[_Union[Distribution, _Mapping]] = ..., run: _Optional[_Union[Distribution, _Mapping]] = ...) -> None: ...

class SetWorkersRequest(_message.Message):
    __slots__ = ("group", "workers")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    group: str
    workers: int
    def __init__(self, group: _Optional[str] = ..., workers: _Optional[int] = ...) -> None: ...

class SetWorkersResponse(_message.Message):
    __slots__ = ("previous_workers", "group")
    PREVIOUS_WORKERS_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    previous_workers: int
    group: WorkerGroupStatus
    def __init__(self, previous_workers: _Optional[int] = ..., group: _Optional[_Union[WorkerGroupStatus, _Mapping]] = ...) -> None: ...
