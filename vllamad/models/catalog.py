"""The catalogue (floor 3): which models there are, under which names, and how they come and go.

The store's manifests are read once; from then on lookups are answered from memory, and every change goes through here:
first to disk (in a thread, atomically), then into the dictionary.
"""

import asyncio
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import ParamSpec, TypeVar

from vllama.reasons import Reason
from vllamad.domain.creation import Creation, FromFolder, FromGguf, FromModel, FromUploads, inherit
from vllamad.domain.errors import ModelNotFound, VllamaError
from vllamad.domain.model import NO_RECIPE, Adapter, Model, Source, SourceKind
from vllamad.domain.names import HUB_HOSTS, ModelRef
from vllamad.domain.operation import Operation, OperationKind, Progress
from vllamad.domain.ports import Converter, Hub, HubSource, StagedModel, Store, Uploads
from vllamad.operations.registry import Operations, Report, Work

_UNQUANTIZED = frozenset({"F16", "BF16", "F32"})

P = ParamSpec("P")
T = TypeVar("T")


class Catalog:
    """Names to models. It knows nothing of workers: whoever removes a model that is loaded asks ``Loading`` first,
    which also hears of every change by ``on_change``."""

    def __init__(
        self,
        store: Store,
        hub: Hub,
        converter: Converter,
        uploads: Uploads,
        operations: Operations,
        quantizations: Callable[[], tuple[str, ...]],
        configured: Callable[[Model], Model] = lambda model: model,
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self._store = store
        self._hub = hub
        self._converter = converter
        self._uploads = uploads
        self._quantizations = quantizations
        self._configured = configured
        self._operations = operations
        self._aliases = _parsed(aliases or {})
        self._models: dict[str, Model] = {}
        self._ranks: dict[str, int] = {}
        self._newest: list[Model] | None = None
        """The models in the order of ``list``, until one comes or goes."""
        # One thread: commits and removals of a store must not overlap, and a disk walk is no work for the loop.
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="disk")

    # --- reading -------------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Read the store; call once, before anything else. Raises STORAGE_FAILED."""
        await asyncio.to_thread(self._uploads.sweep, all_temporary=True)
        self._models = {model.ref.key: model for model in await self._on_disk(self._store.load)}
        self._changed()

    def list(self) -> list[Model]:
        """Every model as it is configured, newest first."""
        if self._newest is None:
            self._newest = sorted(self._models.values(), key=lambda model: (-model.modified_time, model.name))
        return [self._configured(model) for model in self._newest]

    def resolve(self, name: str) -> Model:
        """The model that a name means here, as it is configured: its own name, or a configured alias.
        ``hf.co/org/repo`` and ``org/repo`` are the same repository and find each other. Raises INVALID_REQUEST (the
        name) or ModelNotFound (with the name as it was typed)."""
        ref = ModelRef.parse(name)
        model = self._find(ref)
        if model is None and ref.key in self._aliases:
            model = self._find(self._aliases[ref.key])
        if model is None:
            raise ModelNotFound(name.strip())
        return self._configured(model)

    async def find(self, name: str) -> Model:
        """The same, for faces: theirs may have to wait for the answer."""
        return self.resolve(name)

    def as_it_is(self, model: Model) -> Model:
        """The model of that name as it is now, and is configured; itself if there is none any more."""
        found = self._models.get(model.ref.key)
        return model if found is None else self._configured(found)

    def plain(self) -> Sequence[Model]:
        """Every model as it was made, whatever is configured; in no order."""
        return tuple(self._models.values())

    def use_aliases(self, aliases: Mapping[str, str]) -> None:
        """Go by other aliases."""
        self._aliases = _parsed(aliases)

    def resolve_own(self, name: str) -> Model:
        """The same without aliases: what is removed goes by its own name. Raises the same."""
        model = self._find(ModelRef.parse(name))
        if model is None:
            raise ModelNotFound(name.strip())
        return self._configured(model)

    def source_name(self, model: Model) -> str:
        """The name to make a model from again: that of the first one in its line, if it still has the same files."""
        first = self._models.get(ModelRef.parse(model.lineage[0]).key)
        return first.name if first is not None and first.path == model.path else model.name

    def adapter_rank(self, model: Model) -> int:
        """The largest rank among the adapters of all models that share a model's files; 0 if there are none."""
        return self._ranks.get(model.path, 0)

    def total_bytes(self) -> int:
        """Bytes on disk; files that several models share count once."""
        return sum(
            {file.sha256: file.size_bytes for model in self._models.values() for file in model.all_files}.values()
        )

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

    def create(self, name: str, creation: Creation) -> Operation:
        """Start to make a model. One of that name is replaced when the new one is complete, not before. Raises
        INVALID_REQUEST (the name, files that are no model), DRAINING; the rest is in the operation."""
        ref = ModelRef.parse(name)
        if creation.changes.quantize:
            self._check_quantization(ref, creation)
        work = self._work_of(ref, creation)
        return self._operations.start_or_join(OperationKind.CREATE, str(ref), f"{ref.key} {creation!r}", work)

    async def copy(self, source: str, destination: str) -> Model:
        """Give a model a second name; a model that had it before is replaced. Onto itself: no change."""
        model, ref = self.resolve(source), ModelRef.parse(destination)
        if ref.key == model.ref.key:
            return model
        return self._put(await self._on_disk(self._store.copy, model, ref))

    async def remove(self, name: str) -> int:
        """Remove a model's manifest and the files that no other names; returns the bytes freed."""
        model = self.resolve_own(name)
        freed = await self._on_disk(self._store.remove, model)
        self._models.pop(model.ref.key, None)
        self._changed()
        return freed

    # --- making --------------------------------------------------------------------------------------------------

    def _work_of(self, ref: ModelRef, creation: Creation) -> Work:
        match creation.origin:
            case FromModel(base):
                ModelRef.parse(base)
                return lambda report: self._make_from_model(ref, base, creation, report)
            case FromFolder(folder):
                return lambda report: self._make_from_folder(ref, folder, creation, report)
            case FromGguf(file):
                return lambda report: self._make_from_gguf(ref, file, creation, report)
            case FromUploads(files):
                return self._work_of_uploads(ref, files, creation)

    def _check_quantization(self, ref: ModelRef, creation: Creation) -> None:
        """What the engine cannot do at its load is refused when the model is made, not when it is asked."""
        wanted, known = creation.changes.quantize, self._quantizations()
        base = (
            self._models.get(ModelRef.parse(creation.origin.name).key)
            if isinstance(creation.origin, FromModel)
            else None
        )
        if base is not None and base.details.quantization_level not in _UNQUANTIZED:
            raise VllamaError(
                Reason.INVALID_REQUEST,
                "quantization is only supported for F16, BF16 and F32 models",
                f"{base.name} is {base.details.quantization_level} already; make it from the original",
                model=str(ref),
            )
        if wanted not in known:
            shown = ", ".join(each.upper() for each in known) or "none on this machine's engine"
            raise VllamaError(
                Reason.UNSUPPORTED,
                f"unsupported quantization type {wanted.upper()} - supported types are {shown}",
                "pull a repository that is quantised already (AWQ, GPTQ, FP8)",
                model=str(ref),
            )

    def _work_of_uploads(self, ref: ModelRef, files: Mapping[str, str], creation: Creation) -> Work:
        ggufs = [sha256 for path, sha256 in files.items() if path.lower().endswith(".gguf")]
        if len(ggufs) > 1:
            raise VllamaError(
                Reason.UNSUPPORTED,
                f"cannot create {ref}: it has {len(ggufs)} GGUF files",
                "merge the parts of a split model into one file, or use safetensors",
            )
        if ggufs:
            return lambda report: self._make_from_upload(ref, ggufs[0], creation, report)
        if any(path.lower().endswith(".safetensors") for path in files):
            return lambda report: self._make_from_uploads(ref, files, creation, report)
        raise VllamaError(
            Reason.INVALID_REQUEST, "unknown type", "send a GGUF file, or a folder's safetensors, config and tokenizer"
        )

    async def _make_from_model(self, ref: ModelRef, base: str, creation: Creation, report: Report) -> None:
        try:
            model = self.resolve(base)
        except ModelNotFound:
            base_ref = ModelRef.parse(base)
            await self._pull(base_ref, self._hub.resolve(base_ref), report)
            model = self.resolve(base)
        adapter = await self._adapter(creation, report) or model.adapter
        report(Progress("writing manifest"))
        recipe = inherit(model, creation.changes, has_adapter=creation.adapter is not None)
        self._put(await self._on_disk(self._store.derive, model, ref, recipe, adapter))

    async def _make_from_folder(self, ref: ModelRef, folder: Path, creation: Creation, report: Report) -> None:
        report(Progress("copying", str(folder)))
        await self._commit(ref, StagedModel(folder, Source(SourceKind.FOLDER)), None, report, creation)

    async def _make_from_gguf(self, ref: ModelRef, file: Path, creation: Creation, report: Report) -> None:
        key = _staging_key("gguf", ref.key, str(file))
        await self._on_disk(self._store.discard, key)
        staging = await self._on_disk(self._store.staging, key, is_resumable=False)
        try:
            staged = await self._converter.convert_gguf(file, staging, report)
            await self._commit(ref, staged, None, report, creation)
        finally:
            await self._on_disk(self._store.discard, key)

    async def _make_from_upload(self, ref: ModelRef, sha256: str, creation: Creation, report: Report) -> None:
        await self._make_from_gguf(ref, await self._uploaded(sha256), creation, report)
        await asyncio.to_thread(self._uploads.discard, sha256)

    async def _make_from_uploads(
        self, ref: ModelRef, files: Mapping[str, str], creation: Creation, report: Report
    ) -> None:
        report(Progress("converting model"))
        key = _staging_key("uploads", *(f"{path} {sha256}" for path, sha256 in sorted(files.items())))
        staging = await self._on_disk(self._store.staging, key, is_resumable=False)
        try:
            for path, sha256 in files.items():
                await self._on_disk(_link, await self._uploaded(sha256), staging / path)
            known = {path: sha256.lower() for path, sha256 in files.items()}
            await self._commit(ref, StagedModel(staging, Source(SourceKind.FOLDER), known), None, report, creation)
        finally:
            await self._on_disk(self._store.discard, key)
        for sha256 in files.values():
            await asyncio.to_thread(self._uploads.discard, sha256)

    async def _adapter(self, creation: Creation, report: Report) -> Adapter | None:
        """Take over the adapter that a creation brings, if it brings one."""
        match creation.adapter:
            case None:
                return None
            case FromUploads(files):
                report(Progress("converting adapter"))
                key = _staging_key("adapter", *(f"{path} {sha256}" for path, sha256 in sorted(files.items())))
                staging = await self._on_disk(self._store.staging, key, is_resumable=False)
                try:
                    for path, sha256 in files.items():
                        await self._on_disk(_link, await self._uploaded(sha256), staging / path)
                    return await self._on_disk(self._store.adopt, staging)
                finally:
                    await self._on_disk(self._store.discard, key)
            case folder:
                report(Progress("converting adapter", str(folder)))
                return await self._on_disk(self._store.adopt, folder)

    async def _uploaded(self, sha256: str) -> Path:
        found = await asyncio.to_thread(self._uploads.find, sha256)
        if found is None:
            raise VllamaError(
                Reason.INVALID_REQUEST,
                f'blob "sha256:{sha256}" not found',
                f"send it first: POST /api/blobs/sha256:{sha256}",
            )
        return found

    def _find(self, ref: ModelRef) -> Model | None:
        model = self._models.get(ref.key)
        if model is None and ref.is_repository:
            others = [replace(ref, host=host) for host in ("", *sorted(HUB_HOSTS))]
            model = next((self._models[other.key] for other in others if other.key in self._models), None)
        return model

    # --- inside --------------------------------------------------------------------------------------------------

    async def _pull(self, ref: ModelRef, source: HubSource, report: Report) -> None:
        key = _staging_key(source.repository, source.revision)
        report(Progress("resolving", source.repository))
        staging = await self._on_disk(self._store.staging, key)
        staged = await self._hub.fetch(source, staging, report)
        await self._commit(ref, staged, source, report)
        await self._on_disk(self._store.discard, key)

    async def _commit(
        self,
        ref: ModelRef,
        staged: StagedModel,
        hints: HubSource | None,
        report: Report,
        creation: Creation | None = None,
    ) -> None:
        adapter = await self._adapter(creation, report) if creation else None
        report(Progress("writing manifest"))
        recipe = creation.changes if creation else NO_RECIPE
        self._put(await self._on_disk(self._store.commit, ref, staged, hints, recipe, adapter))

    def _put(self, model: Model) -> Model:
        self._models[model.ref.key] = model
        self._changed()
        return model

    def _changed(self) -> None:
        ranks: dict[str, int] = {}
        for model in self._models.values():
            if model.adapter is not None:
                ranks[model.path] = max(ranks.get(model.path, 0), model.adapter.rank)
        self._ranks = ranks
        self._newest = None
        self.on_change()

    async def _on_disk(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run in the disk's thread. Cancelling waits for it: half a commit is not left to run on unseen."""
        future = asyncio.get_running_loop().run_in_executor(self._disk, lambda: work(*args, **kwargs))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            raise


def _parsed(aliases: Mapping[str, str]) -> dict[str, ModelRef]:
    return {ModelRef.parse(name).key: ModelRef.parse(meant) for name, meant in aliases.items()}


def _staging_key(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]


def _link(file: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    os.link(file, place)
