"""A store, uploads and a converter in memory, under the real catalogue: what making and removing models needs."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from tests.fakes.clock import FakeClock
from vllama.reasons import Reason
from vllamad.dialects.recipes import capabilities_with
from vllamad.domain.errors import VllamaError
from vllamad.domain.model import NO_RECIPE, Adapter, Model, Recipe, Source, SourceKind
from vllamad.domain.names import ModelRef
from vllamad.domain.operation import Progress
from vllamad.domain.ports import HubSource, StagedModel
from vllamad.models.catalog import Catalog
from vllamad.operations.registry import Operations


class FakeStore:
    """Models in a dictionary; ``made`` is what the files of every new model turn out to be."""

    def __init__(self, models: list[Model], made: Model) -> None:
        self.models = {model.ref.key: model for model in models}
        self.made = made
        self.committed: list[StagedModel] = []

    def load(self) -> list[Model]:
        return list(self.models.values())

    def staging(self, key: str, *, is_resumable: bool = True) -> Path:
        return Path("/nowhere/staging") / key

    def discard(self, key: str) -> None:
        return None

    def commit(
        self,
        ref: ModelRef,
        staged: StagedModel,
        hints: HubSource | None = None,
        recipe: Recipe = NO_RECIPE,
        adapter: Adapter | None = None,
    ) -> Model:
        self.committed.append(staged)
        return self._keep(replace(self.made, ref=ref, source=staged.source, adapter=adapter), recipe)

    def adopt(self, folder: Path) -> Adapter:
        return Adapter("ad" * 32, (), str(folder), 8)

    def copy(self, source: Model, destination: ModelRef) -> Model:
        return self.derive(source, destination, source.recipe, source.adapter)

    def derive(self, source: Model, destination: ModelRef, recipe: Recipe, adapter: Adapter | None = None) -> Model:
        return self._keep(replace(source, ref=destination, adapter=adapter), recipe)

    def remove(self, model: Model) -> int:
        return self.models.pop(model.ref.key).size_bytes

    def free_bytes(self) -> int:
        return 1 << 40

    def _keep(self, model: Model, recipe: Recipe) -> Model:
        capabilities = capabilities_with(recipe, model.capabilities)
        digest = hashlib.sha256(repr((model.digest, recipe)).encode()).hexdigest()
        model = replace(model, recipe=recipe, capabilities=capabilities, digest=digest)
        self.models[model.ref.key] = model
        return model


class FakeUpload:
    """Bytes on their way into a dictionary."""

    def __init__(self, files: dict[str, bytes], sha256: str) -> None:
        self._files = files
        self._sha256 = sha256
        self._data = b""
        self.is_abandoned = False

    def write(self, data: bytes) -> None:
        self._data += data

    def finish(self) -> None:
        got = hashlib.sha256(self._data).hexdigest()
        if got != self._sha256:
            text = f'digest mismatch, expected "sha256:{self._sha256}", got "sha256:{got}"'
            raise VllamaError(Reason.INVALID_REQUEST, text)
        self._files[self._sha256] = self._data

    def abandon(self) -> None:
        self.is_abandoned = True


class FakeUploads:
    """Uploads in a dictionary of digests."""

    def __init__(self, files: Mapping[str, bytes] | None = None) -> None:
        self.files = dict(files or {})
        self.opened: list[FakeUpload] = []

    def find(self, sha256: str) -> Path | None:
        return Path("/nowhere/uploads") / f"sha256-{sha256}" if sha256 in self.files else None

    def begin(self, sha256: str, size_bytes: int) -> FakeUpload:
        self.opened.append(FakeUpload(self.files, sha256))
        return self.opened[-1]

    def discard(self, sha256: str) -> None:
        self.files.pop(sha256, None)

    def sweep(self, *, all_temporary: bool = False) -> None:
        return None


class FakeConverter:
    """Converts what ``uploads`` holds, if that begins as GGUF does."""

    def __init__(self, uploads: FakeUploads) -> None:
        self._uploads = uploads

    async def convert_gguf(self, file: Path, staging: Path, on_progress: Callable[[Progress], None]) -> StagedModel:
        data = self._uploads.files.get(file.name.removeprefix("sha256-"), b"GGUF")
        if not data.startswith(b"GGUF"):
            text = f"cannot convert {file.name}: supplied file was not in GGUF format"
            raise VllamaError(Reason.INVALID_REQUEST, text)
        return StagedModel(staging, Source(SourceKind.GGUF))


@asynccontextmanager
async def real_catalog(models: list[Model], uploads: FakeUploads) -> AsyncGenerator[tuple[Catalog, Operations], None]:
    """The real catalogue over these fakes, and the real operations, while the block runs. Every new model's files turn
    out to be those of the first of ``models``."""
    operations = Operations(FakeClock())
    store = FakeStore(models, made=models[0])
    catalog = Catalog(store, NoHub(), FakeConverter(uploads), uploads, operations, lambda: ("fp8",))
    await catalog.load()
    started = asyncio.Event()
    running = asyncio.create_task(operations.run(started))
    await started.wait()
    try:
        yield catalog, operations
    finally:
        await operations.close()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


class NoHub:
    """A hub that has nothing."""

    def resolve(self, ref: ModelRef) -> HubSource:
        return HubSource(f"library/{ref.model}")

    async def fetch(self, source: HubSource, staging: Path, on_progress: Callable[[Progress], None]) -> StagedModel:
        raise VllamaError(Reason.MODEL_NOT_FOUND, f"there is no {source.repository} on the hub")
