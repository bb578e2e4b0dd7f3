import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LatePolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LATE_POLICY_UNSPECIFIED: _ClassVar[LatePolicy]
    LATE_POLICY_FIRE: _ClassVar[LatePolicy]
    LATE_POLICY_DROP: _ClassVar[LatePolicy]
    LATE_POLICY_FAIL: _ClassVar[LatePolicy]

class SuspensionPhase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SUSPENSION_PHASE_UNSPECIFIED: _ClassVar[SuspensionPhase]
    SUSPENSION_PHASE_PENDING: _ClassVar[SuspensionPhase]
    SUSPENSION_PHASE_CONTINUING: _ClassVar[SuspensionPhase]

class ContinueStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONTINUE_STATUS_UNSPECIFIED: _ClassVar[ContinueStatus]
    CONTINUE_STATUS_OK: _ClassVar[ContinueStatus]
    CONTINUE_STATUS_FAILED: _ClassVar[ContinueStatus]
    CONTINUE_STATUS_TIMED_OUT: _ClassVar[ContinueStatus]
    CONTINUE_STATUS_LOST: _ClassVar[ContinueStatus]

class ContinueOutcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONTINUE_OUTCOME_UNSPECIFIED: _ClassVar[ContinueOutcome]
    CONTINUE_OUTCOME_APPLIED: _ClassVar[ContinueOutcome]
    CONTINUE_OUTCOME_GONE: _ClassVar[ContinueOutcome]
    CONTINUE_OUTCOME_REJECTED: _ClassVar[ContinueOutcome]

class RefusalReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REFUSAL_REASON_UNSPECIFIED: _ClassVar[RefusalReason]
    REFUSAL_REASON_FULL: _ClassVar[RefusalReason]
    REFUSAL_REASON_DRAINING: _ClassVar[RefusalReason]
    REFUSAL_REASON_INVALID: _ClassVar[RefusalReason]
    REFUSAL_REASON_TOO_LARGE: _ClassVar[RefusalReason]
    REFUSAL_REASON_DELAY_OUT_OF_RANGE: _ClassVar[RefusalReason]
    REFUSAL_REASON_STALE_EPOCH: _ClassVar[RefusalReason]
    REFUSAL_REASON_FRONT_END_UNKNOWN: _ClassVar[RefusalReason]
    REFUSAL_REASON_OPERATION_UNKNOWN: _ClassVar[RefusalReason]
    REFUSAL_REASON_JOURNAL_UNAVAILABLE: _ClassVar[RefusalReason]

class CancelOutcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CANCEL_OUTCOME_UNSPECIFIED: _ClassVar[CancelOutcome]
    CANCEL_OUTCOME_CANCELLED: _ClassVar[CancelOutcome]
    CANCEL_OUTCOME_CONTINUING: _ClassVar[CancelOutcome]
    CANCEL_OUTCOME_GONE: _ClassVar[CancelOutcome]

class Durability(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DURABILITY_UNSPECIFIED: _ClassVar[Durability]
    DURABILITY_MEMORY: _ClassVar[Durability]
    DURABILITY_PROCESS: _ClassVar[Durability]
    DURABILITY_DISK: _ClassVar[Durability]
LATE_POLICY_UNSPECIFIED: LatePolicy
LATE_POLICY_FIRE: LatePolicy
LATE_POLICY_DROP: LatePolicy
LATE_POLICY_FAIL: LatePolicy
SUSPENSION_PHASE_UNSPECIFIED: SuspensionPhase
SUSPENSION_PHASE_PENDING: SuspensionPhase
SUSPENSION_PHASE_CONTINUING: SuspensionPhase
CONTINUE_STATUS_UNSPECIFIED: ContinueStatus
CONTINUE_STATUS_OK: ContinueStatus
CONTINUE_STATUS_FAILED: ContinueStatus
CONTINUE_STATUS_TIMED_OUT: ContinueStatus
CONTINUE_STATUS_LOST: ContinueStatus
CONTINUE_OUTCOME_UNSPECIFIED: ContinueOutcome
CONTINUE_OUTCOME_APPLIED: ContinueOutcome
CONTINUE_OUTCOME_GONE: ContinueOutcome
CONTINUE_OUTCOME_REJECTED: ContinueOutcome
REFUSAL_REASON_UNSPECIFIED: RefusalReason
REFUSAL_REASON_FULL: RefusalReason
REFUSAL_REASON_DRAINING: RefusalReason
REFUSAL_REASON_INVALID: RefusalReason
REFUSAL_REASON_TOO_LARGE: RefusalReason
REFUSAL_REASON_DELAY_OUT_OF_RANGE: RefusalReason
REFUSAL_REASON_STALE_EPOCH: RefusalReason
REFUSAL_REASON_FRONT_END_UNKNOWN: RefusalReason
REFUSAL_REASON_OPERATION_UNKNOWN: RefusalReason
REFUSAL_REASON_JOURNAL_UNAVAILABLE: RefusalReason
CANCEL_OUTCOME_UNSPECIFIED: CancelOutcome
CANCEL_OUTCOME_CANCELLED: CancelOutcome
CANCEL_OUTCOME_CONTINUING: CancelOutcome
CANCEL_OUTCOME_GONE: CancelOutcome
DURABILITY_UNSPECIFIED: Durability
DURABILITY_MEMORY: Durability
DURABILITY_PROCESS: Durability
DURABILITY_DISK: Durability

class SuspensionKey(_message.Message):
    __slots__ = ("front_end_id", "boot_epoch", "transaction_index", "transaction_label", "nap_number")
    FRONT_END_ID_FIELD_NUMBER: _ClassVar[int]
    BOOT_EPOCH_FIELD_NUMBER: _ClassVar[int]
    TRANSACTION_INDEX_FIELD_NUMBER: _ClassVar[int]
    TRANSACTION_LABEL_FIELD_NUMBER: _ClassVar[int]
    NAP_NUMBER_FIELD_NUMBER: _ClassVar[int]
    front_end_id: str
    boot_epoch: int
    transaction_index: int
    transaction_label: int
    nap_number: int
    def __init__(self, front_end_id: _Optional[str] = ..., boot_epoch: _Optional[int] = ..., transaction_index: _Optional[int] = ..., transaction_label: _Optional[int] = ..., nap_number: _Optional[int] = ...) -> None: ...

class Avp(_message.Message):
    __slots__ = ("name", "text", "integer")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    INTEGER_FIELD_NUMBER: _ClassVar[int]
    name: str
    text: bytes
    integer: int
    def __init__(self, name: _Optional[str] = ..., text: _Optional[bytes] = ..., integer: _Optional[int] = ...) -> None: ...

class TransactionState(_message.Message):
    __slots__ = ("method", "request_uri", "to", "call_id", "cseq", "via_branch", "source_ip", "source_port", "avps", "raw_request", "head")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    REQUEST_URI_FIELD_NUMBER: _ClassVar[int]
    FROM_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    CSEQ_FIELD_NUMBER: _ClassVar[int]
    VIA_BRANCH_FIELD_NUMBER: _ClassVar[int]
    SOURCE_IP_FIELD_NUMBER: _ClassVar[int]
    SOURCE_PORT_FIELD_NUMBER: _ClassVar[int]
    AVPS_FIELD_NUMBER: _ClassVar[int]
    RAW_REQUEST_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    method: bytes
    request_uri: bytes
    to: bytes
    call_id: bytes
    cseq: int
    via_branch: bytes
    source_ip: str
    source_port: int
    avps: _containers.RepeatedCompositeFieldContainer[Avp]
    raw_request: bytes
    head: bytes
    def __init__(self, method: _Optional[bytes] = ..., request_uri: _Optional[bytes] = ..., to: _Optional[bytes] = ..., call_id: _Optional[bytes] = ..., cseq: _Optional[int] = ..., via_branch: _Optional[bytes] = ..., source_ip: _Optional[str] = ..., source_port: _Optional[int] = ..., avps: _Optional[_Iterable[_Union[Avp, _Mapping]]] = ..., raw_request: _Optional[bytes] = ..., head: _Optional[bytes] = ..., **kwargs) -> None: ...

class ValueList(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedCompositeFieldContainer[Value]
    def __init__(self, values: _Optional[_Iterable[_Union[Value, _Mapping]]] = ...) -> None: ...

class Value(_message.Message):
    __slots__ = ("text", "integer", "boolean", "list")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    INTEGER_FIELD_NUMBER: _ClassVar[int]
    BOOLEAN_FIELD_NUMBER: _ClassVar[int]
    LIST_FIELD_NUMBER: _ClassVar[int]
    text: bytes
    integer: int
    boolean: bool
    list: ValueList
    def __init__(self, text: _Optional[bytes] = ..., integer: _Optional[int] = ..., boolean: _Optional[bool] = ..., list: _Optional[_Union[ValueList, _Mapping]] = ...) -> None: ...

class NamedValue(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: Value
    def __init__(self, name: _Optional[str] = ..., value: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...

class Operation(_message.Message):
    __slots__ = ("name", "arguments", "group", "prefix", "timeout", "max_attempts")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    MAX_ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    arguments: _containers.RepeatedCompositeFieldContainer[NamedValue]
    group: str
    prefix: str
    timeout: _duration_pb2.Duration
    max_attempts: int
    def __init__(self, name: _Optional[str] = ..., arguments: _Optional[_Iterable[_Union[NamedValue, _Mapping]]] = ..., group: _Optional[str] = ..., prefix: _Optional[str] = ..., timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., max_attempts: _Optional[int] = ...) -> None: ...

class Suspension(_message.Message):
    __slots__ = ("key", "resume_route", "delay", "deadline", "state", "operations", "late_policy", "data")
    KEY_FIELD_NUMBER: _ClassVar[int]
    RESUME_ROUTE_FIELD_NUMBER: _ClassVar[int]
    DELAY_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    LATE_POLICY_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    key: SuspensionKey
    resume_route: str
    delay: _duration_pb2.Duration
    deadline: _duration_pb2.Duration
    state: TransactionState
    operations: _containers.RepeatedCompositeFieldContainer[Operation]
    late_policy: LatePolicy
    data: bytes
    def __init__(self, key: _Optional[_Union[SuspensionKey, _Mapping]] = ..., resume_route: _Optional[str] = ..., delay: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., deadline: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., state: _Optional[_Union[TransactionState, _Mapping]] = ..., operations: _Optional[_Iterable[_Union[Operation, _Mapping]]] = ..., late_policy: _Optional[_Union[LatePolicy, str]] = ..., data: _Optional[bytes] = ...) -> None: ...

class SuspensionInfo(_message.Message):
    __slots__ = ("suspension", "phase", "accept_time", "due_time", "attempt")
    SUSPENSION_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    ACCEPT_TIME_FIELD_NUMBER: _ClassVar[int]
    DUE_TIME_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    suspension: Suspension
    phase: SuspensionPhase
    accept_time: _timestamp_pb2.Timestamp
    due_time: _timestamp_pb2.Timestamp
    attempt: int
    def __init__(self, suspension: _Optional[_Union[Suspension, _Mapping]] = ..., phase: _Optional[_Union[SuspensionPhase, str]] = ..., accept_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., due_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., attempt: _Optional[int] = ...) -> None: ...

class Continue(_message.Message):
    __slots__ = ("key", "resume_route", "attempt", "status", "error", "values", "error_code", "data")
    KEY_FIELD_NUMBER: _ClassVar[int]
    RESUME_ROUTE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    ERROR_CODE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    key: SuspensionKey
    resume_route: str
    attempt: int
    status: ContinueStatus
    error: str
    values: _containers.RepeatedCompositeFieldContainer[NamedValue]
    error_code: str
    data: bytes
    def __init__(self, key: _Optional[_Union[SuspensionKey, _Mapping]] = ..., resume_route: _Optional[str] = ..., attempt: _Optional[int] = ..., status: _Optional[_Union[ContinueStatus, str]] = ..., error: _Optional[str] = ..., values: _Optional[_Iterable[_Union[NamedValue, _Mapping]]] = ..., error_code: _Optional[str] = ..., data: _Optional[bytes] = ...) -> None: ...
