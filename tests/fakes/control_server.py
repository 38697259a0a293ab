"""A control server with scripted answers: what vllamactl talks to in its tests.

It speaks the real protocol over a real Unix socket, in threads of its own, so that the client may run in the test's
process or in another one. Every wait ends when the server does.
"""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from vllama import errorinfo
from vllama.control.v1 import daemon_pb2, inference_pb2, models_pb2, operations_pb2, workers_pb2
from vllama.control.v1.daemon_pb2_grpc import DaemonServicer, add_DaemonServicer_to_server
from vllama.control.v1.inference_pb2_grpc import InferenceServicer, add_InferenceServicer_to_server
from vllama.control.v1.models_pb2_grpc import ModelsServicer, add_ModelsServicer_to_server
from vllama.control.v1.operations_pb2 import Failure, Operation, Progress
from vllama.control.v1.operations_pb2_grpc import OperationsServicer, add_OperationsServicer_to_server
from vllama.control.v1.workers_pb2_grpc import WorkersServicer, add_WorkersServicer_to_server
from vllama.reasons import ROWS, Reason

NOW = 1_790_000_000
DIGEST = "a80c4f17acd55265feec403c7aef86be0c25983ab279d83f3bcd3abbcb5b8b72"
DEADLINE_S = 10.0


def at(seconds: float) -> Timestamp:
    return Timestamp(seconds=int(seconds))


def model(name: str, size_bytes: int = 270_900_000, **fields: Any) -> models_pb2.Model:
    given: dict[str, Any] = {
        "digest": DIGEST,
        "modify_time": at(time.time() - 3 * 86400),
        "capabilities": ["completion"],
        "details": models_pb2.ModelDetails(
            format="safetensors", family="llama", parameter_size="134.52M", context_length=8192, embedding_length=576
        ),
        "source": "hub",
        "repository": "org/smol",
        "revision": "c0ffee" * 7,
        "path": f"/models/{name}",
    } | fields
    return models_pb2.Model(name=name, size_bytes=size_bytes, **given)


def worker(name: str, state: workers_pb2.Worker.State = workers_pb2.Worker.READY, **fields: Any) -> workers_pb2.Worker:
    given: dict[str, Any] = {
        "name": f"workers/{name}-1",
        "memory_bytes": 1_234_000_000,
        "device": "cpu",
        "context_length": 8192,
        "model_digest": DIGEST,
        "expire_time": at(time.time() + 290),
    } | fields
    return workers_pb2.Worker(model=name, state=state, **given)


def failure(reason: Reason, message: str, hint: str = "", **facts: str) -> Failure:
    return Failure(reason=reason, message=message, hint=hint, facts=facts)


@dataclass
class Script:
    """How an operation goes: its steps, then its end. ``holds``: it stays in the last step until it is cancelled or
    ``release`` is called."""

    steps: list[Progress] = field(default_factory=lambda: [Progress(phase="working")])
    failure: Failure | None = None
    holds: bool = False
    step_s: float = 0.0
    released: threading.Event = field(default_factory=threading.Event)
    cancelled: threading.Event = field(default_factory=threading.Event)
    watchers: int = 0
    strangers: int = 0
    """Watchers besides the client under test."""
    forgets_the_end: bool = False


@dataclass
class Answers:
    """What the server says. A test changes what it cares about."""

    models: list[models_pb2.Model] = field(default_factory=lambda: [model("smollm2:135m")])
    workers: list[workers_pb2.Worker] = field(default_factory=lambda: [worker("smollm2:135m")])
    status: daemon_pb2.GetStatusResponse = field(default_factory=daemon_pb2.GetStatusResponse)
    fit: models_pb2.FitModelResponse = field(default_factory=models_pb2.FitModelResponse)
    settings: list[daemon_pb2.Setting] = field(default_factory=list)
    logs: list[workers_pb2.StreamLogsResponse] = field(default_factory=list)
    chat: list[inference_pb2.ChatResponse] = field(default_factory=list)
    chat_holds_after: int | None = None
    """Events after which the answer stands still until its caller leaves."""
    errors: dict[str, Failure] = field(default_factory=dict)
    """Failures by method: "ListModels"."""
    script: Script = field(default_factory=Script)
    version: str = ""


class ControlServer(DaemonServicer, ModelsServicer, WorkersServicer, OperationsServicer, InferenceServicer):
    """The server. ``calls`` holds every request; ``left`` is set when a caller left a held answer."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.answers = Answers()
        self.calls: list[tuple[str, Any]] = []
        self.metadata: dict[str, Any] = {}
        self.left = threading.Event()
        self.held = threading.Event()
        self._operation = Operation()
        self._closing = threading.Event()
        self._server = grpc.server(ThreadPoolExecutor(8))
        for add in (
            add_DaemonServicer_to_server,
            add_ModelsServicer_to_server,
            add_WorkersServicer_to_server,
            add_OperationsServicer_to_server,
            add_InferenceServicer_to_server,
        ):
            add(self, self._server)
        self._server.add_insecure_port(f"unix:{socket}")

    def __enter__(self) -> "ControlServer":
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Break all connections and release whoever waits."""
        self._closing.set()
        self._server.stop(0).wait(DEADLINE_S)

    def requests(self, method: str) -> list[Any]:
        return [request for name, request in self.calls if name == method]

    # --- daemon

    def GetStatus(self, request: Message, context: grpc.ServicerContext) -> Any:
        self._note("GetStatus", request, context)
        return self.answers.status

    def GetConfig(self, request: Message, context: grpc.ServicerContext) -> Any:
        self._note("GetConfig", request, context)
        return daemon_pb2.GetConfigResponse(settings=self.answers.settings)

    # --- models

    def ListModels(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._note("ListModels", request, context)
        return models_pb2.ListModelsResponse(models=self.answers.models)

    def GetModel(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._note("GetModel", request, context)
        return models_pb2.GetModelResponse(model=self._find(request.name, context))

    def FitModel(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._note("FitModel", request, context)
        self._find(request.name, context)
        return self.answers.fit

    def CopyModel(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._note("CopyModel", request, context)
        self._find(request.source, context)
        return models_pb2.CopyModelResponse(model=model(request.destination))

    def DeleteModel(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._note("DeleteModel", request, context)
        found = self._find(request.name, context)
        if not request.force and any(worker.model == request.name for worker in self.answers.workers):
            text = f"cannot remove {request.name}: it is loaded"
            self._abort(context, failure(Reason.MODEL_IN_USE, text, f"unload it: vllamactl stop {request.name}"))
        return models_pb2.DeleteModelResponse(freed_bytes=found.size_bytes)

    def PullModel(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._note("PullModel", request, context)
        return models_pb2.PullModelResponse(operation=self._begin(Operation.PULL, request.name))

    def CreateModel(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._note("CreateModel", request, context)
        return models_pb2.CreateModelResponse(operation=self._begin(Operation.CREATE, request.name))

    # --- workers

    def ListWorkers(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._note("ListWorkers", request, context)
        return workers_pb2.ListWorkersResponse(workers=self.answers.workers)

    def StartWorker(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._note("StartWorker", request, context)
        return workers_pb2.StartWorkerResponse(operation=self._begin(Operation.START, request.model))

    def StopWorker(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._note("StopWorker", request, context)
        return workers_pb2.StopWorkerResponse(operation=self._begin(Operation.STOP, request.model))

    def StreamLogs(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._note("StreamLogs", request, context)
        yield from self.answers.logs
        if request.follow:
            self._hold_until_left(context)

    # --- operations

    def WatchOperation(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        self._note("WatchOperation", request, context)
        script = self.answers.script
        script.watchers += 1
        gone = self._when_left(context)
        try:
            for step in script.steps:
                self._operation.progress.CopyFrom(step)
                yield operations_pb2.WatchOperationResponse(operation=self._operation)
                if script.step_s:
                    gone.wait(script.step_s)
            if script.holds:
                self.held.set()
                self._wait(lambda: script.released.is_set() or script.cancelled.is_set() or gone.is_set())
            if gone.is_set():
                return
            if self._closing.is_set():
                context.abort(grpc.StatusCode.UNAVAILABLE, "the server is stopping")
            if script.forgets_the_end:
                return
            self._finish()
            yield operations_pb2.WatchOperationResponse(operation=self._operation)
        finally:
            script.watchers -= 1
            if gone.is_set():
                self.left.set()

    def CancelOperation(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._note("CancelOperation", request, context)
        script = self.answers.script
        if not (request.only_if_unwatched and script.watchers + script.strangers > 0):
            script.cancelled.set()
            self._finish()
        return operations_pb2.CancelOperationResponse(operation=self._operation)

    # --- inference

    def Chat(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        self._note("Chat", request, context)
        for number, event in enumerate(self.answers.chat):
            if number == self.answers.chat_holds_after:
                self._hold_until_left(context)
                return
            yield event

    # --- inside

    def _note(self, method: str, request: Any, context: grpc.ServicerContext) -> None:
        self.calls.append((method, request))
        self.metadata = dict(context.invocation_metadata())
        if self.answers.version:
            context.send_initial_metadata((("vllama-version", self.answers.version),))
        if method in self.answers.errors:
            self._abort(context, self.answers.errors[method])

    def _abort(self, context: grpc.ServicerContext, failed: Failure) -> None:
        code = grpc.StatusCode[ROWS[Reason(failed.reason)].grpc]
        packed = errorinfo.encode(failed.reason, failed.message, failed.hint, dict(failed.facts), code.value[0])
        context.set_trailing_metadata(((errorinfo.METADATA_KEY, packed),))
        context.abort(code, failed.message)

    def _find(self, name: str, context: grpc.ServicerContext) -> Any:
        for known in self.answers.models:
            if known.name == name:
                return known
        self._abort(
            context,
            failure(Reason.MODEL_NOT_FOUND, f"model '{name}' not found", f"pull it first: vllamactl pull {name}"),
        )
        return None

    def _begin(self, kind: Operation.Kind, name: str) -> Operation:
        self._operation = Operation(name="operations/7", kind=kind, model=name, create_time=at(NOW))
        self.answers.script.cancelled.clear()
        if kind == Operation.PULL and all(known.name != name for known in self.answers.models):
            self.answers.models.append(model(name))
        return self._operation

    def _finish(self) -> None:
        script = self.answers.script
        self._operation.done = True
        self._operation.end_time.CopyFrom(at(NOW + 12))
        if script.cancelled.is_set():
            self._operation.failure.CopyFrom(
                failure(Reason.CANCELLED, "pull was cancelled", "start it again to resume")
            )
        elif script.failure is not None:
            self._operation.failure.CopyFrom(script.failure)

    def _hold_until_left(self, context: grpc.ServicerContext) -> None:
        gone = self._when_left(context)
        self.held.set()
        self._wait(gone.is_set)
        self.left.set()

    def _when_left(self, context: grpc.ServicerContext) -> threading.Event:
        gone = threading.Event()
        if not context.add_callback(gone.set):
            gone.set()
        return gone

    def _wait(self, ends: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not ends() and not self._closing.is_set():
            assert time.monotonic() < deadline, "nobody released, cancelled or left the held answer"
            self._closing.wait(0.01)
