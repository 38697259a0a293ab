"""What the HTTP face asks of the services (floor 4). Structural types, so that tests can stand in-process fakes in."""

from collections.abc import AsyncGenerator, AsyncIterable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vllamad.domain.creation import Creation
from vllamad.domain.model import Model
from vllamad.domain.operation import Operation
from vllamad.domain.ports import EngineSocket, EngineStream
from vllamad.domain.view import WorkerView


class Names(Protocol):
    """Names to models, for requests that ask a model."""

    async def find(self, name: str) -> Model: ...


class CatalogService(Names, Protocol):
    """The same for requests about models, and what changes them."""

    def list(self) -> list[Model]: ...
    def resolve(self, name: str) -> Model: ...
    def pull(self, name: str) -> Operation: ...
    def create(self, name: str, creation: Creation) -> Operation: ...
    def source_name(self, model: Model) -> str: ...
    async def copy(self, source: str, destination: str) -> Model: ...


class IncomingFile(Protocol):
    """A file on its way in."""

    async def write(self, data: bytes) -> None: ...
    async def finish(self) -> None: ...


class UploadsService(Protocol):
    """Files that clients send before they make a model of them."""

    async def find(self, sha256: str) -> Path | None: ...
    def receive(self, sha256: str, size_bytes: int) -> AbstractAsyncContextManager[IncomingFile, bool | None]: ...


class LoadingService(Protocol):
    """Removal that minds workers."""

    async def remove(self, name: str, force: bool) -> int: ...


class OperationsService(Protocol):
    """Long work."""

    def watch(self, name: str) -> AsyncGenerator[Operation, None]: ...
    def cancel(self, name: str, only_if_unwatched: bool = False) -> Operation: ...


class HeldLease(Protocol):
    """The right to ask a ready worker."""

    @property
    def context_length(self) -> int: ...
    @property
    def load_ns(self) -> int: ...
    @property
    def waited_ns(self) -> int: ...
    @property
    def served_name(self) -> str: ...
    @property
    def has_fast_path(self) -> bool: ...
    async def open(
        self, path: str, body: bytes | AsyncIterable[bytes], headers: Mapping[str, str] | None = None
    ) -> EngineStream: ...
    async def connect(self, path: str, headers: Mapping[str, str] | None = None) -> EngineSocket: ...


class GateService(Protocol):
    """Admission."""

    def lease(
        self, model: Model, *, keep_alive_s: float | None = None, caller: str = ""
    ) -> AbstractAsyncContextManager[HeldLease, bool | None]: ...
    async def unload(self, model: Model) -> None: ...


class WorkersService(Protocol):
    """Pictures of the workers."""

    def views(self) -> list[WorkerView]: ...


class Asking(Protocol):
    """What handlers call to have a model answer. It may be far away: nothing here answers at once but in-process."""

    @property
    def catalog(self) -> Names: ...
    @property
    def gate(self) -> GateService: ...


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that handlers call. ``health`` returns the body of ``/health``: its ``status`` is "ok" (200) or says
    what is wrong (503)."""

    catalog: CatalogService
    uploads: UploadsService
    loading: LoadingService
    operations: OperationsService
    gate: GateService
    supervisor: WorkersService
    health: Callable[[], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Policy:
    """What the face allows and says of itself. ``origins`` come in front of the built-in ones; ``check_host`` guards a
    listener on loopback against DNS rebinding; ``ollama_version`` is what ``/api/version`` claims to be compatible
    with, because clients refuse servers that look old; ``remote_images``: images that requests name by address are
    fetched, else refused; ``api_keys``: of which a request must send one, if there are any."""

    origins: tuple[str, ...] = ()
    check_host: bool = True
    max_body_bytes: int = 64 * 1024 * 1024
    remote_images: bool = False
    api_keys: tuple[str, ...] = ()
    ollama_version: str = "0.33.0"
