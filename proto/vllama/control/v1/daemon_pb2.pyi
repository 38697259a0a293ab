from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from vllama.control.v1 import workers_pb2 as _workers_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("version", "state", "pid", "start_time", "http_url", "socket_path", "state_folder", "memory_bytes", "engine", "workers", "models", "active_requests", "waiting_requests", "devices", "storage", "decisions", "waits", "needs_restart", "upgrades", "acceptors")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[GetStatusResponse.State]
        STARTING: _ClassVar[GetStatusResponse.State]
        SERVING: _ClassVar[GetStatusResponse.State]
        DRAINING: _ClassVar[GetStatusResponse.State]
        UPGRADING: _ClassVar[GetStatusResponse.State]
    STATE_UNSPECIFIED: GetStatusResponse.State
    STARTING: GetStatusResponse.State
    SERVING: GetStatusResponse.State
    DRAINING: GetStatusResponse.State
    UPGRADING: GetStatusResponse.State
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    HTTP_URL_FIELD_NUMBER: _ClassVar[int]
    SOCKET_PATH_FIELD_NUMBER: _ClassVar[int]
    STATE_FOLDER_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    WAITING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    STORAGE_FIELD_NUMBER: _ClassVar[int]
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    WAITS_FIELD_NUMBER: _ClassVar[int]
    NEEDS_RESTART_FIELD_NUMBER: _ClassVar[int]
    UPGRADES_FIELD_NUMBER: _ClassVar[int]
    ACCEPTORS_FIELD_NUMBER: _ClassVar[int]
    version: str
    state: GetStatusResponse.State
    pid: int
    start_time: _timestamp_pb2.Timestamp
    http_url: str
    socket_path: str
    state_folder: str
    memory_bytes: int
    engine: Engine
    workers: _containers.RepeatedCompositeFieldContainer[_workers_pb2.Worker]
    models: int
    active_requests: int
    waiting_requests: int
    devices: _containers.RepeatedCompositeFieldContainer[Device]
    storage: Storage
    decisions: _containers.RepeatedCompositeFieldContainer[Decision]
    waits: _containers.RepeatedScalarFieldContainer[str]
    needs_restart: _containers.RepeatedCompositeFieldContainer[Change]
    upgrades: int
    acceptors: _containers.RepeatedCompositeFieldContainer[Acceptor]
    def __init__(self, version: _Optional[str] = ..., state: _Optional[_Union[GetStatusResponse.State, str]] = ..., pid: _Optional[int] = ..., start_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., http_url: _Optional[str] = ..., socket_path: _Optional[str] = ..., state_folder: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., engine: _Optional[_Union[Engine, _Mapping]] = ..., workers: _Optional[_Iterable[_Union[_workers_pb2.Worker, _Mapping]]] = ..., models: _Optional[int] = ..., active_requests: _Optional[int] = ..., waiting_requests: _Optional[int] = ..., devices: _Optional[_Iterable[_Union[Device, _Mapping]]] = ..., storage: _Optional[_Union[Storage, _Mapping]] = ..., decisions: _Optional[_Iterable[_Union[Decision, _Mapping]]] = ..., waits: _Optional[_Iterable[str]] = ..., needs_restart: _Optional[_Iterable[_Union[Change, _Mapping]]] = ..., upgrades: _Optional[int] = ..., acceptors: _Optional[_Iterable[_Union[Acceptor, _Mapping]]] = ...) -> None: ...

class Acceptor(_message.Message):
    __slots__ = ("number", "pid", "is_ready", "requests", "starts", "memory_bytes")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    IS_READY_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    STARTS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    number: int
    pid: int
    is_ready: bool
    requests: int
    starts: int
    memory_bytes: int
    def __init__(self, number: _Optional[int] = ..., pid: _Optional[int] = ..., is_ready: bool = ..., requests: _Optional[int] = ..., starts: _Optional[int] = ..., memory_bytes: _Optional[int] = ...) -> None: ...

class Engine(_message.Message):
    __slots__ = ("python", "version", "problem", "device", "zygotes")
    PYTHON_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    ZYGOTES_FIELD_NUMBER: _ClassVar[int]
    python: str
    version: str
    problem: str
    device: str
    zygotes: _containers.RepeatedCompositeFieldContainer[Zygote]
    def __init__(self, python: _Optional[str] = ..., version: _Optional[str] = ..., problem: _Optional[str] = ..., device: _Optional[str] = ..., zygotes: _Optional[_Iterable[_Union[Zygote, _Mapping]]] = ...) -> None: ...

class Zygote(_message.Message):
    __slots__ = ("state", "pid", "memory_bytes", "forked", "problem")
    STATE_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    FORKED_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    state: str
    pid: int
    memory_bytes: int
    forked: int
    problem: str
    def __init__(self, state: _Optional[str] = ..., pid: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., forked: _Optional[int] = ..., problem: _Optional[str] = ...) -> None: ...

class Device(_message.Message):
    __slots__ = ("name", "total_bytes", "free_bytes", "product", "kind", "key", "usable_bytes", "reserved_bytes", "holders", "foreign_bytes", "giveable_bytes", "loading", "temperature_c", "utilisation", "problem")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    PRODUCT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    USABLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESERVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    HOLDERS_FIELD_NUMBER: _ClassVar[int]
    FOREIGN_BYTES_FIELD_NUMBER: _ClassVar[int]
    GIVEABLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    LOADING_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_C_FIELD_NUMBER: _ClassVar[int]
    UTILISATION_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    name: str
    total_bytes: int
    free_bytes: int
    product: str
    kind: str
    key: str
    usable_bytes: int
    reserved_bytes: int
    holders: _containers.RepeatedScalarFieldContainer[str]
    foreign_bytes: int
    giveable_bytes: int
    loading: str
    temperature_c: int
    utilisation: float
    problem: str
    def __init__(self, name: _Optional[str] = ..., total_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., product: _Optional[str] = ..., kind: _Optional[str] = ..., key: _Optional[str] = ..., usable_bytes: _Optional[int] = ..., reserved_bytes: _Optional[int] = ..., holders: _Optional[_Iterable[str]] = ..., foreign_bytes: _Optional[int] = ..., giveable_bytes: _Optional[int] = ..., loading: _Optional[str] = ..., temperature_c: _Optional[int] = ..., utilisation: _Optional[float] = ..., problem: _Optional[str] = ...) -> None: ...

class Storage(_message.Message):
    __slots__ = ("path", "models_bytes", "free_bytes")
    PATH_FIELD_NUMBER: _ClassVar[int]
    MODELS_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    path: str
    models_bytes: int
    free_bytes: int
    def __init__(self, path: _Optional[str] = ..., models_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ...) -> None: ...

class Decision(_message.Message):
    __slots__ = ("time", "text")
    TIME_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    time: _timestamp_pb2.Timestamp
    text: str
    def __init__(self, time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., text: _Optional[str] = ...) -> None: ...

class GetConfigRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetConfigResponse(_message.Message):
    __slots__ = ("settings",)
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    settings: _containers.RepeatedCompositeFieldContainer[Setting]
    def __init__(self, settings: _Optional[_Iterable[_Union[Setting, _Mapping]]] = ...) -> None: ...

class Setting(_message.Message):
    __slots__ = ("key", "value", "source", "overrode", "is_reloadable", "help", "pending")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    OVERRODE_FIELD_NUMBER: _ClassVar[int]
    IS_RELOADABLE_FIELD_NUMBER: _ClassVar[int]
    HELP_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    key: str
    value: str
    source: str
    overrode: _containers.RepeatedScalarFieldContainer[str]
    is_reloadable: bool
    help: str
    pending: Change
    def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ..., source: _Optional[str] = ..., overrode: _Optional[_Iterable[str]] = ..., is_reloadable: bool = ..., help: _Optional[str] = ..., pending: _Optional[_Union[Change, _Mapping]] = ...) -> None: ...

class ReloadRequest(_message.Message):
    __slots__ = ("dry_run",)
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    dry_run: bool
    def __init__(self, dry_run: bool = ...) -> None: ...

class ReloadResponse(_message.Message):
    __slots__ = ("changes", "models", "warnings", "dry_run")
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    changes: _containers.RepeatedCompositeFieldContainer[Change]
    models: _containers.RepeatedCompositeFieldContainer[ModelChange]
    warnings: _containers.RepeatedScalarFieldContainer[str]
    dry_run: bool
    def __init__(self, changes: _Optional[_Iterable[_Union[Change, _Mapping]]] = ..., models: _Optional[_Iterable[_Union[ModelChange, _Mapping]]] = ..., warnings: _Optional[_Iterable[str]] = ..., dry_run: bool = ...) -> None: ...

class UpgradeRequest(_message.Message):
    __slots__ = ("dry_run", "drain")
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    dry_run: bool
    drain: _duration_pb2.Duration
    def __init__(self, dry_run: bool = ..., drain: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class UpgradeResponse(_message.Message):
    __slots__ = ("version", "models", "dry_run")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    version: str
    models: _containers.RepeatedScalarFieldContainer[str]
    dry_run: bool
    def __init__(self, version: _Optional[str] = ..., models: _Optional[_Iterable[str]] = ..., dry_run: bool = ...) -> None: ...

class Change(_message.Message):
    __slots__ = ("key", "before", "after", "source", "effect", "note")
    class Effect(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        EFFECT_UNSPECIFIED: _ClassVar[Change.Effect]
        AT_ONCE: _ClassVar[Change.Effect]
        AT_LOAD: _ClassVar[Change.Effect]
        AT_RESTART: _ClassVar[Change.Effect]
    EFFECT_UNSPECIFIED: Change.Effect
    AT_ONCE: Change.Effect
    AT_LOAD: Change.Effect
    AT_RESTART: Change.Effect
    KEY_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    EFFECT_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    key: str
    before: str
    after: str
    source: str
    effect: Change.Effect
    note: str
    def __init__(self, key: _Optional[str] = ..., before: _Optional[str] = ..., after: _Optional[str] = ..., source: _Optional[str] = ..., effect: _Optional[_Union[Change.Effect, str]] = ..., note: _Optional[str] = ...) -> None: ...

class ModelChange(_message.Message):
    __slots__ = ("model", "kind", "text")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[ModelChange.Kind]
        LOADED_ANEW: _ClassVar[ModelChange.Kind]
        NEXT_LOAD: _ClassVar[ModelChange.Kind]
        KEEP_ALIVE: _ClassVar[ModelChange.Kind]
        LOADED: _ClassVar[ModelChange.Kind]
    KIND_UNSPECIFIED: ModelChange.Kind
    LOADED_ANEW: ModelChange.Kind
    NEXT_LOAD: ModelChange.Kind
    KEEP_ALIVE: ModelChange.Kind
    LOADED: ModelChange.Kind
    MODEL_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    model: str
    kind: ModelChange.Kind
    text: str
    def __init__(self, model: _Optional[str] = ..., kind: _Optional[_Union[ModelChange.Kind, str]] = ..., text: _Optional[str] = ...) -> None: ...
