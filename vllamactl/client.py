"""The daemon as typed coroutines (floor 3). The only file here that imports grpc.

A client finds the daemon's socket, waits a moment for a daemon that is just starting, and turns every failure into a
CtlError with the daemon's own reason.
"""

import asyncio
import errno
import os
import socket
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from vllama import __version__
from vllama.control.v1 import daemon_pb2, inference_pb2, models_pb2, operations_pb2, workers_pb2
from vllamactl.exits import CtlError

CLIENT_VERSION_KEY = "vllama-client-version"
DAEMON_VERSION_KEY = "vllama-version"

WAIT_S = 2.0
"""How long a daemon may take from its start to its socket; it needs 0.7 s."""

ANSWER_S = 30.0
"""How long one answer may take. What takes longer is an operation; only removing a loaded model waits for its end."""

DELETE_S = 180.0
UPGRADE_S = 60.0
"""The daemon starts the program that would take over, and has it say so: half a minute on a cold disk."""

_PACKAGE = "vllama.control.v1"
_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", -1),  # a list of models with all their files; the socket is trusted
    ("grpc.max_metadata_size", 64 * 1024),  # failures carry the engine's last log lines
)

M = TypeVar("M", bound=Message)


class _Call(Protocol):
    async def initial_metadata(self) -> Any: ...


@asynccontextmanager
async def connect(sockets: Sequence[str], wait_s: float = WAIT_S) -> AsyncGenerator["Client", None]:
    """Yield a client of the daemon behind the first of ``sockets`` that answers. Raises DAEMON_UNREACHABLE if none
    does within ``wait_s``, PERMISSION_DENIED if one is there but closed to this user."""
    found = await _find(sockets, wait_s)
    async with grpc.aio.insecure_channel("unix:" + quote(found), options=_OPTIONS) as channel:
        yield Client(channel, found)


class Client:
    """One connection. ``daemon_version`` is known after the first answer. Calls raise CtlError; streams end when they
    are closed (``contextlib.aclosing``) or their task is cancelled, and the daemon learns of it."""

    def __init__(self, channel: grpc.aio.Channel, socket_path: str) -> None:
        self._channel = channel
        self.socket_path = socket_path
        self.daemon_version = ""

    # --- daemon

    async def get_status(self) -> daemon_pb2.GetStatusResponse:
        return await self._ask("Daemon/GetStatus", daemon_pb2.GetStatusRequest(), daemon_pb2.GetStatusResponse)

    async def get_config(self) -> list[daemon_pb2.Setting]:
        answer = await self._ask("Daemon/GetConfig", daemon_pb2.GetConfigRequest(), daemon_pb2.GetConfigResponse)
        return list(answer.settings)

    async def reload(self, dry_run: bool) -> daemon_pb2.ReloadResponse:
        request = daemon_pb2.ReloadRequest(dry_run=dry_run)
        return await self._ask("Daemon/Reload", request, daemon_pb2.ReloadResponse)

    async def upgrade(self, drain_s: float | None, dry_run: bool) -> daemon_pb2.UpgradeResponse:
        request = daemon_pb2.UpgradeRequest(dry_run=dry_run, drain=duration(drain_s))
        return await self._ask("Daemon/Upgrade", request, daemon_pb2.UpgradeResponse, UPGRADE_S)

    # --- models

    async def list_models(self) -> list[models_pb2.Model]:
        answer = await self._ask("Models/ListModels", models_pb2.ListModelsRequest(), models_pb2.ListModelsResponse)
        return list(answer.models)

    async def get_model(self, name: str) -> models_pb2.Model:
        request = models_pb2.GetModelRequest(name=name)
        return (await self._ask("Models/GetModel", request, models_pb2.GetModelResponse)).model

    async def fit_model(self, name: str) -> models_pb2.FitModelResponse:
        return await self._ask("Models/FitModel", models_pb2.FitModelRequest(name=name), models_pb2.FitModelResponse)

    async def pull_model(self, name: str) -> operations_pb2.Operation:
        request = models_pb2.PullModelRequest(name=name)
        return (await self._ask("Models/PullModel", request, models_pb2.PullModelResponse)).operation

    async def create_model(self, request: models_pb2.CreateModelRequest) -> operations_pb2.Operation:
        return (await self._ask("Models/CreateModel", request, models_pb2.CreateModelResponse)).operation

    async def copy_model(self, source: str, destination: str) -> models_pb2.Model:
        request = models_pb2.CopyModelRequest(source=source, destination=destination)
        return (await self._ask("Models/CopyModel", request, models_pb2.CopyModelResponse)).model

    async def delete_model(self, name: str, force: bool) -> int:
        """Remove a model and return the bytes that were freed."""
        request = models_pb2.DeleteModelRequest(name=name, force=force)
        return (await self._ask("Models/DeleteModel", request, models_pb2.DeleteModelResponse, DELETE_S)).freed_bytes

    # --- workers

    async def list_workers(self) -> list[workers_pb2.Worker]:
        request = workers_pb2.ListWorkersRequest()
        return list((await self._ask("Workers/ListWorkers", request, workers_pb2.ListWorkersResponse)).workers)

    async def start_worker(self, model: str, keep_alive_s: float | None) -> operations_pb2.Operation:
        request = workers_pb2.StartWorkerRequest(model=model, keep_alive=duration(keep_alive_s))
        return (await self._ask("Workers/StartWorker", request, workers_pb2.StartWorkerResponse)).operation

    async def stop_worker(self, model: str, force: bool) -> operations_pb2.Operation:
        request = workers_pb2.StopWorkerRequest(model=model, force=force)
        return (await self._ask("Workers/StopWorker", request, workers_pb2.StopWorkerResponse)).operation

    def stream_logs(
        self, model: str, tail_lines: int, follow: bool
    ) -> AsyncGenerator[workers_pb2.StreamLogsResponse, None]:
        request = workers_pb2.StreamLogsRequest(model=model, tail_lines=tail_lines, follow=follow)
        return self._stream("Workers/StreamLogs", request, workers_pb2.StreamLogsResponse)

    # --- operations

    async def watch_operation(self, name: str) -> AsyncGenerator[operations_pb2.Operation, None]:
        """Yield snapshots until the one with ``done``. While it is open it counts as interest."""
        request = operations_pb2.WatchOperationRequest(name=name)
        answers = self._stream("Operations/WatchOperation", request, operations_pb2.WatchOperationResponse)
        try:
            async for answer in answers:
                yield answer.operation
        finally:
            await answers.aclose()

    async def cancel_operation(self, name: str, only_if_unwatched: bool) -> operations_pb2.Operation:
        request = operations_pb2.CancelOperationRequest(name=name, only_if_unwatched=only_if_unwatched)
        return (
            await self._ask("Operations/CancelOperation", request, operations_pb2.CancelOperationResponse)
        ).operation

    # --- inference

    def chat(self, request: inference_pb2.ChatRequest) -> AsyncGenerator[inference_pb2.ChatResponse, None]:
        return self._stream("Inference/Chat", request, inference_pb2.ChatResponse)

    # --- the wire. Methods are called by their path: the generated stubs would add an import and have no types.

    async def _ask(self, method: str, request: Message, answer: type[M], timeout_s: float = ANSWER_S) -> M:
        ask = self._channel.unary_unary(
            f"/{_PACKAGE}.{method}", request_serializer=_serialize, response_deserializer=answer.FromString
        )
        call = ask(request, timeout=timeout_s, metadata=_hello())
        try:
            await self._learn_version(call)
            return await call
        except grpc.aio.AioRpcError as error:
            raise _failure(error, self.socket_path) from error

    async def _stream(self, method: str, request: Message, answer: type[M]) -> AsyncGenerator[M, None]:
        ask = self._channel.unary_stream(
            f"/{_PACKAGE}.{method}", request_serializer=_serialize, response_deserializer=answer.FromString
        )
        call = ask(request, metadata=_hello())
        try:
            await self._learn_version(call)
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as error:
            raise _failure(error, self.socket_path) from error
        finally:
            call.cancel()

    async def _learn_version(self, call: _Call) -> None:
        for key, value in await call.initial_metadata() or ():
            if key == DAEMON_VERSION_KEY:
                self.daemon_version = str(value)


def duration(seconds: float | None) -> Duration | None:
    """Return a span for the wire; None stays unset."""
    if seconds is None:
        return None
    whole = int(seconds)
    return Duration(seconds=whole, nanos=int((seconds - whole) * 1e9))


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def _hello() -> tuple[tuple[str, str], ...]:
    return ((CLIENT_VERSION_KEY, __version__),)


async def _find(sockets: Sequence[str], wait_s: float) -> str:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait_s
    while True:
        problems: dict[str, OSError] = {}
        for path in sockets:
            problem = _knock(path)
            if problem is None:
                return path
            problems[path] = problem
        for path, problem in problems.items():
            if problem.errno in {errno.EACCES, errno.EPERM}:
                raise CtlError(
                    "PERMISSION_DENIED",
                    f"cannot talk to the daemon: no permission to open {path}",
                    "add yourself to the group vllama: sudo usermod -aG vllama $USER; then log in again",
                    {"socket": path},
                )
        if loop.time() >= deadline:
            raise _unreachable(problems)
        await asyncio.sleep(0.05)


def _knock(path: str) -> OSError | None:
    # gRPC tells all of these apart only in English; a plain connect has the error number.
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except OSError as problem:
            return problem
    return None


def _unreachable(problems: dict[str, OSError]) -> CtlError:
    tried = ", ".join(f"{path} ({_why(problem)})" for path, problem in problems.items())
    hint = "start it: systemctl start vllamad, or vllamad as yourself; another place: --socket PATH or VLLAMA_SOCKET"
    return CtlError("DAEMON_UNREACHABLE", f"cannot reach the daemon: tried {tried}", hint, {"tried": tried})


def _why(problem: OSError) -> str:
    match problem.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return "not there"
        case errno.ECONNREFUSED:
            return "nobody listens"
        case None:
            return str(problem)
        case number:
            return os.strerror(number).lower()


def _failure(error: grpc.aio.AioRpcError, socket_path: str) -> CtlError:
    from vllama import errorinfo

    for key, value in error.trailing_metadata() or ():
        if key == errorinfo.METADATA_KEY and isinstance(value, bytes):
            info = errorinfo.decode(value)
            if info is not None:
                return CtlError(info.reason, info.message, info.hint, info.facts)
    details = error.details() or "no reason given"
    match error.code():
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED:
            # Cancelled by the other side: a daemon that stops ends its streams like this. (Our own cancelling raises
            # CancelledError.)
            return CtlError(
                "DAEMON_UNREACHABLE",
                f"the daemon behind {socket_path} went away",
                "see why: journalctl -u vllamad, or the terminal that it runs in",
            )
        case grpc.StatusCode.UNIMPLEMENTED:
            return CtlError("UNSUPPORTED", "the daemon does not know this request", "update it: vllamactl version")
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return CtlError("DEADLINE_EXCEEDED", "the daemon did not answer in time", "see what it does: its log")
        case code:
            return CtlError("INTERNAL", f"the daemon answered {code.name}: {details}", "see the daemon's log")
