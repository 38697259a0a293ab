"""The Models service (floor 4)."""

# The generated base classes are untyped and synchronous.
# pyright: reportIncompatibleMethodOverride=false

import asyncio
from pathlib import Path

from vllama.control.v1 import models_pb2 as pb
from vllama.control.v1 import models_pb2_grpc as pb_grpc
from vllama.reasons import Reason
from vllamad.control import convert
from vllamad.control.interceptor import Context, unary
from vllamad.dialects import modelfile
from vllamad.dialects.recipes import adapter_of, changes_of, source_of
from vllamad.domain.creation import Creation, FromFolder, FromGguf, FromModel, Origin
from vllamad.domain.errors import VllamaError
from vllamad.domain.model import NO_RECIPE
from vllamad.models.catalog import Catalog
from vllamad.models.loading import Loading
from vllamad.models.sizing import Sizing


class ModelsService(pb_grpc.ModelsServicer):
    """The models on disk."""

    def __init__(self, catalog: Catalog, loading: Loading, sizing: Sizing) -> None:
        self._catalog = catalog
        self._loading = loading
        self._sizing = sizing

    @unary
    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=[convert.model(one) for one in self._catalog.list()])

    @unary
    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        model = self._catalog.resolve(request.name)
        return pb.GetModelResponse(model=convert.model(model, self._catalog.source_name(model)))

    @unary
    async def FitModel(self, request: pb.FitModelRequest, context: Context) -> pb.FitModelResponse:
        explained = await self._sizing.fit(self._catalog.resolve(request.name))
        return convert.fit(explained.fit, explained.devices, explained.footprints)

    @unary
    async def PullModel(self, request: pb.PullModelRequest, context: Context) -> pb.PullModelResponse:
        return pb.PullModelResponse(operation=convert.operation(self._catalog.pull(request.name)))

    @unary
    async def CreateModel(self, request: pb.CreateModelRequest, context: Context) -> pb.CreateModelResponse:
        made_of = await asyncio.to_thread(_creation, request)
        return pb.CreateModelResponse(operation=convert.operation(self._catalog.create(request.name, made_of)))

    @unary
    async def CopyModel(self, request: pb.CopyModelRequest, context: Context) -> pb.CopyModelResponse:
        copied = await self._catalog.copy(request.source, request.destination)
        return pb.CopyModelResponse(model=convert.model(copied))

    @unary
    async def DeleteModel(self, request: pb.DeleteModelRequest, context: Context) -> pb.DeleteModelResponse:
        return pb.DeleteModelResponse(freed_bytes=await self._loading.remove(request.name, request.force))


def _creation(request: pb.CreateModelRequest) -> Creation:
    """What is to be made of what; looks at the disk to tell a path from a name."""
    recipe = modelfile.parse(modelfile.decode(request.modelfile)) if request.modelfile else None
    changes = changes_of(recipe) if recipe else NO_RECIPE
    adapter: Path | None = None
    if recipe and (place := adapter_of(recipe)):
        adapter = _absolute(request.folder) / Path(place).expanduser()
    match request.WhichOneof("from"):
        case "from_model":
            return Creation(FromModel(request.from_model), changes, adapter)
        case "from_folder":
            return Creation(FromFolder(_absolute(request.from_folder)), changes, adapter)
        case "from_gguf":
            return Creation(FromGguf(_absolute(request.from_gguf)), changes, adapter)
        case _ if recipe:
            return Creation(_origin(source_of(recipe), _absolute(request.folder)), changes, adapter)
        case _:
            raise VllamaError(
                Reason.INVALID_REQUEST,
                f"cannot create {request.name}: nothing to make it from",
                "name a model, a folder of safetensors, a GGUF file, or send a Modelfile",
            )


def _origin(source: str, folder: Path) -> Origin:
    """A path where one is, or where only one can be meant; else a name."""
    path = folder / Path(source).expanduser()
    if path.is_dir():
        return FromFolder(path)
    if path.is_file() or source.startswith(("/", "./", "../", "~")) or source.lower().endswith(".gguf"):
        return FromGguf(path)
    return FromModel(source)


def _absolute(text: str) -> Path:
    path = Path(text)
    if not path.is_absolute():
        raise VllamaError(Reason.INVALID_REQUEST, f"cannot use {text!r}: the path is relative", "send an absolute path")
    return path
