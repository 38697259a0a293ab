"""The Models service (floor 4)."""

# The generated base classes are untyped and synchronous.
# pyright: reportIncompatibleMethodOverride=false

from pathlib import Path

from vllama.control.v1 import models_pb2 as pb
from vllama.control.v1 import models_pb2_grpc as pb_grpc
from vllama.reasons import Reason
from vllamad.control import convert
from vllamad.control.interceptor import Context, unary
from vllamad.domain.errors import VllamaError
from vllamad.models.catalog import Catalog
from vllamad.models.loading import Loading


class ModelsService(pb_grpc.ModelsServicer):
    """The models on disk."""

    def __init__(self, catalog: Catalog, loading: Loading) -> None:
        self._catalog = catalog
        self._loading = loading

    @unary
    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=[convert.model(one) for one in self._catalog.list()])

    @unary
    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        return pb.GetModelResponse(model=convert.model(self._catalog.resolve(request.name)))

    @unary
    async def PullModel(self, request: pb.PullModelRequest, context: Context) -> pb.PullModelResponse:
        return pb.PullModelResponse(operation=convert.operation(self._catalog.pull(request.name)))

    @unary
    async def CreateModel(self, request: pb.CreateModelRequest, context: Context) -> pb.CreateModelResponse:
        match request.WhichOneof("from"):
            case "from_model":
                operation = self._catalog.create_from_model(request.name, request.from_model)
            case "from_folder":
                operation = self._catalog.create_from_folder(request.name, _absolute(request.from_folder))
            case "from_gguf":
                operation = self._catalog.create_from_gguf(request.name, _absolute(request.from_gguf))
            case _:
                raise VllamaError(
                    Reason.INVALID_REQUEST,
                    f"cannot create {request.name}: nothing to make it from",
                    "name a model, a folder of safetensors or a GGUF file",
                )
        return pb.CreateModelResponse(operation=convert.operation(operation))

    @unary
    async def CopyModel(self, request: pb.CopyModelRequest, context: Context) -> pb.CopyModelResponse:
        copied = await self._catalog.copy(request.source, request.destination)
        return pb.CopyModelResponse(model=convert.model(copied))

    @unary
    async def DeleteModel(self, request: pb.DeleteModelRequest, context: Context) -> pb.DeleteModelResponse:
        return pb.DeleteModelResponse(freed_bytes=await self._loading.remove(request.name, request.force))


def _absolute(text: str) -> Path:
    path = Path(text)
    if not path.is_absolute():
        raise VllamaError(Reason.INVALID_REQUEST, f"cannot use {text!r}: the path is relative", "send an absolute path")
    return path
