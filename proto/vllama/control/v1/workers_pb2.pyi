from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from vllama.control.v1 import operations_pb2 as _operations_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Worker(_message.Message):
    __slots__ = ("name", "model", "state", "incarnation", "pid", "leases", "waiting", "load_phase", "load_fraction", "load_duration", "expire_time", "is_pinned", "memory_bytes", "device_bytes", "device", "context_length", "failure", "start_time", "model_digest", "reserved_bytes", "cache_tokens", "cpu_time", "holder", "cache_usage", "fast_path")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[Worker.State]
        STOPPED: _ClassVar[Worker.State]
        STARTING: _ClassVar[Worker.State]
        READY: _ClassVar[Worker.State]
        DRAINING: _ClassVar[Worker.State]
        SUSPENDING: _ClassVar[Worker.State]
        SUSPENDED: _ClassVar[Worker.State]
        RESUMING: _ClassVar[Worker.State]
        STOPPING: _ClassVar[Worker.State]
        KILLING: _ClassVar[Worker.State]
        RELEASING: _ClassVar[Worker.State]
        BACKOFF: _ClassVar[Worker.State]
        FAILED: _ClassVar[Worker.State]
    STATE_UNSPECIFIED: Worker.State
    STOPPED: Worker.State
    STARTING: Worker.State
    READY: Worker.State
    DRAINING: Worker.State
    SUSPENDING: Worker.State
    SUSPENDED: Worker.State
    RESUMING: Worker.State
    STOPPING: Worker.State
    KILLING: Worker.State
    RELEASING: Worker.State
    BACKOFF: Worker.State
    FAILED: Worker.State
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    LOAD_PHASE_FIELD_NUMBER: _ClassVar[int]
    LOAD_FRACTION_FIELD_NUMBER: _ClassVar[int]
    LOAD_DURATION_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    IS_PINNED_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    DEVICE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    RESERVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    CACHE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CPU_TIME_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    CACHE_USAGE_FIELD_NUMBER: _ClassVar[int]
    FAST_PATH_FIELD_NUMBER: _ClassVar[int]
    name: str
    model: str
    state: Worker.State
    incarnation: int
    pid: int
    leases: int
    waiting: int
    load_phase: str
    load_fraction: float
    load_duration: _duration_pb2.Duration
    expire_time: _timestamp_pb2.Timestamp
    is_pinned: bool
    memory_bytes: int
    device_bytes: int
    device: str
    context_length: int
    failure: _operations_pb2.Failure
    start_time: _timestamp_pb2.Timestamp
    model_digest: str
    reserved_bytes: int
    cache_tokens: int
    cpu_time: _duration_pb2.Duration
    holder: str
    cache_usage: float
    fast_path: str
    def __init__(self, name: _Optional[str] = ..., model: _Optional[str] = ..., state: _Optional[_Union[Worker.State, str]] = ..., incarnation: _Optional[int] = ..., pid: _Optional[int] = ..., leases: _Optional[int] = ..., waiting: _Optional[int] = ..., load_phase: _Optional[str] = ..., load_fraction: _Optional[float] = ..., load_duration: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., expire_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., is_pinned: bool = ..., memory_bytes: _Optional[int] = ..., device_bytes: _Optional[int] = ..., device: _Optional[str] = ..., context_length: _Optional[int] = ..., failure: _Optional[_Union[_operations_pb2.Failure, _Mapping]] = ..., start_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., model_digest: _Optional[str] = ..., reserved_bytes: _Optional[int] = ..., cache_tokens: _Optional[int] = ..., cpu_time: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., holder: _Optional[str] = ..., cache_usage: _Optional[float] = ..., fast_path: _Optional[str] = ...) -> None: ...

class ListWorkersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListWorkersResponse(_message.Message):
    __slots__ = ("workers",)
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    workers: _containers.RepeatedCompositeFieldContainer[Worker]
    def __init__(self, workers: _Optional[_Iterable[_Union[Worker, _Mapping]]] = ...) -> None: ...

class GetWorkerRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetWorkerResponse(_message.Message):
    __slots__ = ("worker",)
    WORKER_FIELD_NUMBER: _ClassVar[int]
    worker: Worker
    def __init__(self, worker: _Optional[_Union[Worker, _Mapping]] = ...) -> None: ...

class StartWorkerRequest(_message.Message):
    __slots__ = ("model", "keep_alive")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    KEEP_ALIVE_FIELD_NUMBER: _ClassVar[int]
    model: str
    keep_alive: _duration_pb2.Duration
    def __init__(self, model: _Optional[str] = ..., keep_alive: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class StartWorkerResponse(_message.Message):
    __slots__ = ("operation",)
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    operation: _operations_pb2.Operation
    def __init__(self, operation: _Optional[_Union[_operations_pb2.Operation, _Mapping]] = ...) -> None: ...

class StopWorkerRequest(_message.Message):
    __slots__ = ("model", "force")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    model: str
    force: bool
    def __init__(self, model: _Optional[str] = ..., force: bool = ...) -> None: ...

class StopWorkerResponse(_message.Message):
    __slots__ = ("operation",)
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    operation: _operations_pb2.Operation
    def __init__(self, operation: _Optional[_Union[_operations_pb2.Operation, _Mapping]] = ...) -> None: ...

class StreamLogsRequest(_message.Message):
    __slots__ = ("model", "tail_lines", "follow")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TAIL_LINES_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    model: str
    tail_lines: int
    follow: bool
    def __init__(self, model: _Optional[str] = ..., tail_lines: _Optional[int] = ..., follow: bool = ...) -> None: ...

class StreamLogsResponse(_message.Message):
    __slots__ = ("line", "missed")
    LINE_FIELD_NUMBER: _ClassVar[int]
    MISSED_FIELD_NUMBER: _ClassVar[int]
    line: LogLine
    missed: int
    def __init__(self, line: _Optional[_Union[LogLine, _Mapping]] = ..., missed: _Optional[int] = ...) -> None: ...

class LogLine(_message.Message):
    __slots__ = ("time", "origin", "text")
    TIME_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    time: _timestamp_pb2.Timestamp
    origin: str
    text: str
    def __init__(self, time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., origin: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...
