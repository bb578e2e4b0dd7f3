import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from sipnap.v1 import suspension_pb2 as _suspension_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Hello(_message.Message):
    __slots__ = ("protocol_version", "front_end_id", "boot_epoch", "ahead")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    FRONT_END_ID_FIELD_NUMBER: _ClassVar[int]
    BOOT_EPOCH_FIELD_NUMBER: _ClassVar[int]
    AHEAD_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    front_end_id: str
    boot_epoch: int
    ahead: _duration_pb2.Duration
    def __init__(self, protocol_version: _Optional[int] = ..., front_end_id: _Optional[str] = ..., boot_epoch: _Optional[int] = ..., ahead: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("protocol_version", "instance_id", "durability", "max_delay", "max_entry_bytes")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    MAX_DELAY_FIELD_NUMBER: _ClassVar[int]
    MAX_ENTRY_BYTES_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    instance_id: str
    durability: _suspension_pb2.Durability
    max_delay: _duration_pb2.Duration
    max_entry_bytes: int
    def __init__(self, protocol_version: _Optional[int] = ..., instance_id: _Optional[str] = ..., durability: _Optional[_Union[_suspension_pb2.Durability, str]] = ..., max_delay: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., max_entry_bytes: _Optional[int] = ...) -> None: ...

class SessionRequest(_message.Message):
    __slots__ = ("hello", "frame_number", "suspends", "cancels", "results", "heartbeat", "applied", "left_us")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    FRAME_NUMBER_FIELD_NUMBER: _ClassVar[int]
    SUSPENDS_FIELD_NUMBER: _ClassVar[int]
    CANCELS_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    LEFT_US_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    frame_number: int
    suspends: _containers.RepeatedCompositeFieldContainer[_suspension_pb2.Suspension]
    cancels: _containers.RepeatedCompositeFieldContainer[_suspension_pb2.SuspensionKey]
    results: _containers.RepeatedCompositeFieldContainer[ContinueResult]
    heartbeat: Heartbeat
    applied: _containers.RepeatedScalarFieldContainer[int]
    left_us: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., frame_number: _Optional[int] = ..., suspends: _Optional[_Iterable[_Union[_suspension_pb2.Suspension, _Mapping]]] = ..., cancels: _Optional[_Iterable[_Union[_suspension_pb2.SuspensionKey, _Mapping]]] = ..., results: _Optional[_Iterable[_Union[ContinueResult, _Mapping]]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., applied: _Optional[_Iterable[int]] = ..., left_us: _Optional[_Iterable[int]] = ...) -> None: ...

class SessionResponse(_message.Message):
    __slots__ = ("welcome", "frame_results", "cancel_results", "continues", "credits", "go_away", "heartbeat", "due")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    FRAME_RESULTS_FIELD_NUMBER: _ClassVar[int]
    CANCEL_RESULTS_FIELD_NUMBER: _ClassVar[int]
    CONTINUES_FIELD_NUMBER: _ClassVar[int]
    CREDITS_FIELD_NUMBER: _ClassVar[int]
    GO_AWAY_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    DUE_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    frame_results: _containers.RepeatedCompositeFieldContainer[FrameResult]
    cancel_results: _containers.RepeatedCompositeFieldContainer[CancelResult]
    continues: _containers.RepeatedCompositeFieldContainer[_suspension_pb2.Continue]
    credits: Credits
    go_away: GoAway
    heartbeat: Heartbeat
    due: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., frame_results: _Optional[_Iterable[_Union[FrameResult, _Mapping]]] = ..., cancel_results: _Optional[_Iterable[_Union[CancelResult, _Mapping]]] = ..., continues: _Optional[_Iterable[_Union[_suspension_pb2.Continue, _Mapping]]] = ..., credits: _Optional[_Union[Credits, _Mapping]] = ..., go_away: _Optional[_Union[GoAway, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., due: _Optional[_Iterable[int]] = ...) -> None: ...

class ContinueResult(_message.Message):
    __slots__ = ("key", "outcome")
    KEY_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    key: _suspension_pb2.SuspensionKey
    outcome: _suspension_pb2.ContinueOutcome
    def __init__(self, key: _Optional[_Union[_suspension_pb2.SuspensionKey, _Mapping]] = ..., outcome: _Optional[_Union[_suspension_pb2.ContinueOutcome, str]] = ...) -> None: ...

class FrameResult(_message.Message):
    __slots__ = ("frame_number", "refusals", "numbers")
    FRAME_NUMBER_FIELD_NUMBER: _ClassVar[int]
    REFUSALS_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    frame_number: int
    refusals: _containers.RepeatedCompositeFieldContainer[Refusal]
    numbers: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, frame_number: _Optional[int] = ..., refusals: _Optional[_Iterable[_Union[Refusal, _Mapping]]] = ..., numbers: _Optional[_Iterable[int]] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("key", "reason", "message", "retry_after")
    KEY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_FIELD_NUMBER: _ClassVar[int]
    key: _suspension_pb2.SuspensionKey
    reason: _suspension_pb2.RefusalReason
    message: str
    retry_after: _duration_pb2.Duration
    def __init__(self, key: _Optional[_Union[_suspension_pb2.SuspensionKey, _Mapping]] = ..., reason: _Optional[_Union[_suspension_pb2.RefusalReason, str]] = ..., message: _Optional[str] = ..., retry_after: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class CancelResult(_message.Message):
    __slots__ = ("key", "outcome")
    KEY_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    key: _suspension_pb2.SuspensionKey
    outcome: _suspension_pb2.CancelOutcome
    def __init__(self, key: _Optional[_Union[_suspension_pb2.SuspensionKey, _Mapping]] = ..., outcome: _Optional[_Union[_suspension_pb2.CancelOutcome, str]] = ...) -> None: ...

class Credits(_message.Message):
    __slots__ = ("max_pending",)
    MAX_PENDING_FIELD_NUMBER: _ClassVar[int]
    max_pending: int
    def __init__(self, max_pending: _Optional[int] = ...) -> None: ...

class GoAway(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("nonce",)
    NONCE_FIELD_NUMBER: _ClassVar[int]
    nonce: int
    def __init__(self, nonce: _Optional[int] = ...) -> None: ...
