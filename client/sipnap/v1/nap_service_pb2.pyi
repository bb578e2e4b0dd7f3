import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from sipnap.v1 import suspension_pb2 as _suspension_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SleepRequest(_message.Message):
    __slots__ = ("duration",)
    DURATION_FIELD_NUMBER: _ClassVar[int]
    duration: _duration_pb2.Duration
    def __init__(self, duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class SleepResponse(_message.Message):
    __slots__ = ("slept",)
    SLEPT_FIELD_NUMBER: _ClassVar[int]
    slept: _duration_pb2.Duration
    def __init__(self, slept: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class SuspendRouteRequest(_message.Message):
    __slots__ = ("suspension",)
    SUSPENSION_FIELD_NUMBER: _ClassVar[int]
    suspension: _suspension_pb2.Suspension
    def __init__(self, suspension: _Optional[_Union[_suspension_pb2.Suspension, _Mapping]] = ...) -> None: ...

class SuspendRouteResponse(_message.Message):
    __slots__ = ("key", "due_time", "durability", "already_held")
    KEY_FIELD_NUMBER: _ClassVar[int]
    DUE_TIME_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    ALREADY_HELD_FIELD_NUMBER: _ClassVar[int]
    key: _suspension_pb2.SuspensionKey
    due_time: _timestamp_pb2.Timestamp
    durability: _suspension_pb2.Durability
    already_held: bool
    def __init__(self, key: _Optional[_Union[_suspension_pb2.SuspensionKey, _Mapping]] = ..., due_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., durability: _Optional[_Union[_suspension_pb2.Durability, str]] = ..., already_held: _Optional[bool] = ...) -> None: ...

class RunTaskRequest(_message.Message):
    __slots__ = ("front_end_id", "route", "data", "delay", "operations")
    FRONT_END_ID_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    DELAY_FIELD_NUMBER: _ClassVar[int]
    OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    front_end_id: str
    route: str
    data: bytes
    delay: _duration_pb2.Duration
    operations: _containers.RepeatedCompositeFieldContainer[_suspension_pb2.Operation]
    def __init__(self, front_end_id: _Optional[str] = ..., route: _Optional[str] = ..., data: _Optional[bytes] = ..., delay: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., operations: _Optional[_Iterable[_Union[_suspension_pb2.Operation, _Mapping]]] = ...) -> None: ...

class RunTaskResponse(_message.Message):
    __slots__ = ("key", "durability")
    KEY_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    key: _suspension_pb2.SuspensionKey
    durability: _suspension_pb2.Durability
    def __init__(self, key: _Optional[_Union[_suspension_pb2.SuspensionKey, _Mapping]] = ..., durability: _Optional[_Union[_suspension_pb2.Durability, str]] = ...) -> None: ...

class CancelRequest(_message.Message):
    __slots__ = ("key",)
    KEY_FIELD_NUMBER: _ClassVar[int]
    key: _suspension_pb2.SuspensionKey
    def __init__(self, key: _Optional[_Union[_suspension_pb2.SuspensionKey, _Mapping]] = ...) -> None: ...

class CancelResponse(_message.Message):
    __slots__ = ("outcome",)
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    outcome: _suspension_pb2.CancelOutcome
    def __init__(self, outcome: _Optional[_Union[_suspension_pb2.CancelOutcome, str]] = ...) -> None: ...

class GetRequest(_message.Message):
    __slots__ = ("key",)
    KEY_FIELD_NUMBER: _ClassVar[int]
    key: _suspension_pb2.SuspensionKey
    def __init__(self, key: _Optional[_Union[_suspension_pb2.SuspensionKey, _Mapping]] = ...) -> None: ...

class GetResponse(_message.Message):
    __slots__ = ("suspension",)
    SUSPENSION_FIELD_NUMBER: _ClassVar[int]
    suspension: _suspension_pb2.SuspensionInfo
    def __init__(self, suspension: _Optional[_Union[_suspension_pb2.SuspensionInfo, _Mapping]] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ("front_end_id", "page_size", "page_token")
    FRONT_END_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    front_end_id: str
    page_size: int
    page_token: str
    def __init__(self, front_end_id: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListResponse(_message.Message):
    __slots__ = ("suspensions", "next_page_token")
    SUSPENSIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    suspensions: _containers.RepeatedCompositeFieldContainer[_suspension_pb2.SuspensionInfo]
    next_page_token: str
    def __init__(self, suspensions: _Optional[_Iterable[_Union[_suspension_pb2.SuspensionInfo, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...
