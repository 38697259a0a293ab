"""The Workers service (floor 4)."""

# The generated base classes are untyped and synchronous.
# pyright: reportIncompatibleMethodOverride=false

from collections.abc import AsyncGenerator

from google.protobuf.duration_pb2 import Duration

from vllama.control.v1 import workers_pb2 as pb
from vllama.control.v1 import workers_pb2_grpc as pb_grpc
from vllama.reasons import Reason
from vllamad.control import convert
from vllamad.control.interceptor import Context, streaming, unary
from vllamad.domain.errors import VllamaError
from vllamad.domain.ports import OutputRing
from vllamad.models.catalog import Catalog
from vllamad.models.loading import Loading
from vllamad.supervisor.supervisor import Supervisor

DEFAULT_TAIL = 100


def keep_alive_s(duration: Duration) -> float:
    """A Duration as the gate takes it: negative means for ever."""
    seconds = duration.ToNanoseconds() / 1e9
    return float("inf") if seconds < 0 else seconds


class WorkersService(pb_grpc.WorkersServicer):
    """Loaded models, and what their engines say."""

    def __init__(self, supervisor: Supervisor, loading: Loading, catalog: Catalog, own_lines: OutputRing) -> None:
        self._supervisor = supervisor
        self._loading = loading
        self._catalog = catalog
        self._own_lines = own_lines

    @unary
    async def ListWorkers(self, request: pb.ListWorkersRequest, context: Context) -> pb.ListWorkersResponse:
        return pb.ListWorkersResponse(workers=[convert.worker(view) for view in self._supervisor.views()])

    @unary
    async def GetWorker(self, request: pb.GetWorkerRequest, context: Context) -> pb.GetWorkerResponse:
        for view in self._supervisor.views():
            if view.name == request.name:
                return pb.GetWorkerResponse(worker=convert.worker(view))
        raise VllamaError(Reason.NOT_FOUND, f"there is no worker {request.name!r}", "see vllamactl ps")

    @unary
    async def StartWorker(self, request: pb.StartWorkerRequest, context: Context) -> pb.StartWorkerResponse:
        idle_s = keep_alive_s(request.keep_alive) if request.HasField("keep_alive") else None
        return pb.StartWorkerResponse(operation=convert.operation(self._loading.start(request.model, idle_s)))

    @unary
    async def StopWorker(self, request: pb.StopWorkerRequest, context: Context) -> pb.StopWorkerResponse:
        return pb.StopWorkerResponse(operation=convert.operation(self._loading.stop(request.model, request.force)))

    @streaming
    async def StreamLogs(
        self, request: pb.StreamLogsRequest, context: Context
    ) -> AsyncGenerator[pb.StreamLogsResponse, None]:
        if request.model:
            model = self._catalog.resolve(request.model)
            ring, origin = self._supervisor.ring(model), model.name
        else:
            ring, origin = self._own_lines, "vllamad"
        follower = ring.follow() if request.follow else None
        seen = 0
        for line in ring.tail(request.tail_lines or DEFAULT_TAIL):
            seen = line.number
            yield pb.StreamLogsResponse(line=convert.log_line(line, origin))
        if follower is None:
            return
        async for line in follower:
            if line.number <= seen:
                continue  # came in between asking for the tail and following
            missed = line.number - seen - 1 if seen else 0
            seen = line.number
            yield pb.StreamLogsResponse(line=convert.log_line(line, origin), missed=missed)
