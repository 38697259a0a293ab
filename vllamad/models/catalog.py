"""The catalogue (floor 3): which models there are, under which names, and how they come and go.

The store's manifests are read once; from then on lookups are answered from memory, and every change goes through here:
first to disk (in a thread, atomically), then into the dictionary.
"""

import asyncio
import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import ParamSpec, TypeVar

from vllamad.domain.errors import ModelNotFound
from vllamad.domain.model import Model, Source, SourceKind
from vllamad.domain.names import HUB_HOSTS, ModelRef
from vllamad.domain.operation import Operation, OperationKind, Progress
from vllamad.domain.ports import Converter, Hub, HubSource, StagedModel, Store
from vllamad.operations.registry import Operations, Report

P = ParamSpec("P")
T = TypeVar("T")


class Catalog:
    """Names to models. It knows nothing of workers: whoever removes a model that is loaded asks ``Loading`` first."""

    def __init__(self, store: Store, hub: Hub, converter: Converter, operations: Operations) -> None:
        self._store = store
        self._hub = hub
        self._converter = converter
        self._operations = operations
        self._models: dict[str, Model] = {}
        # One thread: commits and removals of a store must not overlap, and a disk walk is no work for the loop.
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="disk")

    # --- reading -------------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Read the store; call once, before anything else. Raises STORAGE_FAILED."""
        self._models = {model.ref.key: model for model in await self._on_disk(self._store.load)}

    def list(self) -> list[Model]:
        """Every model, newest first."""
        return sorted(self._models.values(), key=lambda model: (-model.modified_time, model.name))

    def resolve(self, name: str) -> Model:
        """The model that a name means here. ``hf.co/org/repo`` and ``org/repo`` are the same repository and find each
        other. Raises INVALID_REQUEST (the name) or ModelNotFound (with the name as it was typed)."""
        ref = ModelRef.parse(name)
        model = self._models.get(ref.key)
        if model is None and ref.is_repository:
            others = [replace(ref, host=host) for host in ("", *sorted(HUB_HOSTS))]
            model = next((self._models[other.key] for other in others if other.key in self._models), None)
        if model is None:
            raise ModelNotFound(name.strip())
        return model

    def total_bytes(self) -> int:
        """Bytes on disk; files that several models share count once."""
        return sum({file.sha256: file.size_bytes for model in self._models.values() for file in model.files}.values())

    async def free_bytes(self) -> int:
        """Room on the disk of the store."""
        return await self._on_disk(self._store.free_bytes)

    # --- changing ------------------------------------------------------------------------------------------------

    def pull(self, name: str) -> Operation:
        """Start to fetch a model from the hub, or join the pull that is on. Raises INVALID_REQUEST, UNSUPPORTED,
        DRAINING; the rest of what can go wrong is in the operation."""
        ref = ModelRef.parse(name)
        source = self._hub.resolve(ref)

        async def work(report: Report) -> None:
            await self._pull(ref, source, report)

        return self._operations.start_or_join(OperationKind.PULL, str(ref), ref.key, work)

    def create_from_gguf(self, name: str, file: Path) -> Operation:
        """Start to make a model out of a GGUF file."""
        ref = ModelRef.parse(name)

        async def work(report: Report) -> None:
            key = _staging_key("gguf", str(file))
            await self._on_disk(self._store.discard, key)
            staging = await self._on_disk(self._store.staging, key)
            try:
                staged = await self._converter.convert_gguf(file, staging, report)
                await self._commit(ref, staged, None, report)
            finally:
                await self._on_disk(self._store.discard, key)

        return self._operations.start_or_join(OperationKind.CREATE, str(ref), ref.key, work)

    def create_from_folder(self, name: str, folder: Path) -> Operation:
        """Start to take over a folder of safetensors; the folder itself is left as it is."""
        ref = ModelRef.parse(name)

        async def work(report: Report) -> None:
            report(Progress("copying", str(folder)))
            self._put(
                await self._on_disk(self._store.commit, ref, StagedModel(folder, Source(SourceKind.FOLDER)), None)
            )

        return self._operations.start_or_join(OperationKind.CREATE, str(ref), ref.key, work)

    def create_from_model(self, name: str, base: str) -> Operation:
        """Start to give a model that is here another name (its files are shared)."""
        ref = ModelRef.parse(name)
        source = self.resolve(base)

        async def work(report: Report) -> None:
            report(Progress("writing manifest"))
            await self.copy(source.name, str(ref))

        return self._operations.start_or_join(OperationKind.CREATE, str(ref), ref.key, work)

    async def copy(self, source: str, destination: str) -> Model:
        """Give a model a second name; a model that had it before is replaced. Onto itself: no change."""
        model, ref = self.resolve(source), ModelRef.parse(destination)
        if ref.key == model.ref.key:
            return model
        return self._put(await self._on_disk(self._store.copy, model, ref))

    async def remove(self, name: str) -> int:
        """Remove a model's manifest and the files that no other names; returns the bytes freed."""
        model = self.resolve(name)
        freed = await self._on_disk(self._store.remove, model)
        self._models.pop(model.ref.key, None)
        return freed

    # --- inside --------------------------------------------------------------------------------------------------

    async def _pull(self, ref: ModelRef, source: HubSource, report: Report) -> None:
        key = _staging_key(source.repository, source.revision)
        report(Progress("resolving", source.repository))
        staging = await self._on_disk(self._store.staging, key)
        staged = await self._hub.fetch(source, staging, report)
        await self._commit(ref, staged, source, report)
        await self._on_disk(self._store.discard, key)

    async def _commit(self, ref: ModelRef, staged: StagedModel, hints: HubSource | None, report: Report) -> None:
        report(Progress("writing manifest"))
        self._put(await self._on_disk(self._store.commit, ref, staged, hints))

    def _put(self, model: Model) -> Model:
        self._models[model.ref.key] = model
        return model

    async def _on_disk(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run in the disk's thread. Cancelling waits for it: half a commit is not left to run on unseen."""
        future = asyncio.get_running_loop().run_in_executor(self._disk, lambda: work(*args, **kwargs))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            raise


def _staging_key(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]
