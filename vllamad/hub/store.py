"""The model store (floor 2, fills ``ports.Store``): content-addressed files, one manifest per name.

::

    <folder>/manifests/qwen3=0.6b.json     one per name, see manifests.py; the only truth about what there is
    <folder>/blobs/sha256-<hex>            each content once, however many models share it; 0644
    <folder>/folders/<digest>/<path>       what the engine loads: links into blobs/ under the files' own names; the
                                           digest is that of the files alone, so models that share them share it
    <folder>/staging/<key>/                downloads that are not complete; kept for resuming
    <folder>/staging/.tmp-<key>/           what cannot be resumed: conversions, uploads on their way into the store

A model exists from the moment its manifest is renamed into place, and is gone from the moment that is unlinked. What a
crash leaves on either side (blobs, folders, temporary files that no manifest names) is removed when the store is loaded
next. Staged files are linked into blobs/, not moved, so a crash before the manifest costs no download. Links in
folders/ are relative: the whole store can be moved or copied.

While a manifest cannot be read nobody knows which blobs it needs, so none is removed until it is repaired or deleted.
One process owns a store (the daemon's lock on its state folder sees to it); threads may share one ``ModelStore``.
"""

import contextlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from vllama.reasons import Reason
from vllamad.dialects.recipes import capabilities_with
from vllamad.domain.errors import ModelNotFound, VllamaError
from vllamad.domain.model import NO_RECIPE, Adapter, Model, ModelFile, Recipe
from vllamad.domain.names import ModelRef
from vllamad.domain.ports import HubSource, StagedModel
from vllamad.hub.adapters import FILES as ADAPTER_FILES
from vllamad.hub.adapters import read_rank
from vllamad.hub.contents import TEMPORARY, Contents, Files
from vllamad.hub.faults import no_room, storage_faults
from vllamad.hub.inspect import inspect_model
from vllamad.hub.manifests import BadManifest, digest_with, file_name, read_manifest, write_manifest
from vllamad.hub.selection import choose_files
from vllamad.hub.solid import (
    copy_file,
    hash_file,
    make_folder,
    remove_tree,
    sync_file,
    sync_folder,
    write_whole,
)

log = logging.getLogger(__name__)

STALE_STAGING_S = 14 * 24 * 3600.0  # nobody resumes a download after two weeks, and partial files are big


class ModelStore:
    """Models on disk under one folder, which is made if need be.

    ``on_step`` is called with the name of each step that has just become true on disk; tests crash there.
    """

    def __init__(
        self,
        folder: Path,
        *,
        now: Callable[[], float] = time.time,
        on_step: Callable[[str], None] = lambda _step: None,
    ) -> None:
        self._folder = folder
        self._manifests = folder / "manifests"
        self._staging = folder / "staging"
        self._now = now
        self._on_step = on_step
        self._contents = Contents(folder, on_step)
        # Held while manifests and blobs change: a commit must not meet the removal of a blob that it is about to name.
        self._lock = threading.Lock()
        self._models: dict[str, Model] | None = None
        self._unreadable: set[str] = set()

    @property
    def blobs(self) -> Path:
        """Where the contents lie, for a download that may reuse them: ``sha256-<hex>``, never changed in place."""
        return self._contents.blobs

    def load(self) -> list[Model]:
        """Read every manifest, newest first. Unreadable ones are logged once and left alone. The first call of a
        process also removes what a crash left behind. Raises STORAGE_FAILED if the folder cannot be read or made."""
        with self._lock, storage_faults("read the model store", self._folder):
            is_first = self._models is None
            if is_first:
                for folder in (
                    self._folder,
                    self._manifests,
                    self._contents.blobs,
                    self._contents.folders,
                    self._staging,
                ):
                    make_folder(folder)
            self._models = self._read_manifests()
            if is_first:
                self._clean_up(self._models)
            return sorted(self._models.values(), key=lambda model: model.modified_time, reverse=True)

    def staging(self, key: str, *, is_resumable: bool = True) -> Path:
        """The folder of the download or conversion ``key``, until discarded or committed; if it ``is_resumable``, it
        survives restarts."""
        folder = self._staging / (file_name(key) if is_resumable else _passing(key))
        with storage_faults("prepare a download", folder):
            for place in (self._folder, self._staging, folder):
                make_folder(place)
        return folder

    def discard(self, key: str) -> None:
        """Remove a staging folder; nothing happens if there is none."""
        for folder in (self._staging / file_name(key), self._staging / _passing(key)):
            with storage_faults("remove a partial download", folder):
                remove_tree(folder)

    def commit(
        self,
        ref: ModelRef,
        staged: StagedModel,
        hints: HubSource | None = None,
        recipe: Recipe = NO_RECIPE,
        adapter: Adapter | None = None,
    ) -> Model:
        """Take the staged files over and write the manifest of ``ref``.

        Files in a staging folder of this store are linked, and the staging folder goes when the model is there; a
        folder elsewhere is copied and stays as it is. A model of the same name (in any case; its spelling is kept) is
        replaced, and what only that one used is freed. Raises STORAGE_FULL, STORAGE_FAILED, UNSUPPORTED (the files are
        not a model).
        """
        known = self._known()
        doing = f"store {ref}"
        with storage_faults(doing, self._folder):
            is_ours = staged.folder.is_relative_to(self._staging)
            paths = _files_of(staged.folder) if is_ours else self._choose(doing, staged.folder)
            # Everything slow comes before the lock: hashing, copying, making the contents durable.
            seen = inspect_model(staged.folder, name=staged.source.repository or ref.model, hints=hints)
            contents: list[tuple[ModelFile, Path]] = []
            imported = self._staging / f"{TEMPORARY}{os.getpid()}-{threading.get_ident()}"
            try:
                for path in paths:
                    source = staged.folder / path
                    if is_ours:
                        sha256, size = staged.sha256.get(path) or hash_file(source), source.stat().st_size
                        sync_file(source)
                    else:
                        make_folder(imported)
                        source = imported / f"{len(contents)}"
                        sha256, size = copy_file(staged.folder / path, source)
                    contents.append((ModelFile(path, sha256, size), source))
                self._on_step("hashed")
                with self._lock:
                    digest, files = self._contents.take_over(contents)
                    model = Model(
                        ref=ref,
                        digest=digest_with(digest, recipe, adapter),
                        files=files,
                        path=os.fspath(self._contents.folders / digest),
                        modified_time=self._now(),
                        source=staged.source,
                        recipe=recipe,
                        adapter=adapter,
                    )
                    model = seen.apply(model)
                    model = replace(model, capabilities=capabilities_with(recipe, model.capabilities))
                    model = self._write(known, model)
            finally:
                remove_tree(imported)
            if is_ours:
                remove_tree(self._staging / staged.folder.relative_to(self._staging).parts[0])
            return model

    def copy(self, source: Model, destination: ModelRef) -> Model:
        """Give a model a second name; an existing one of that name is replaced. Onto itself: nothing changes."""
        return self.derive(source, destination, source.recipe, source.adapter)

    def adopt(self, folder: Path) -> Adapter:
        """Take a LoRA adapter over, for a model that is about to be made. Raises INVALID_REQUEST, UNSUPPORTED."""
        self._known()
        rank = read_rank(folder)
        with storage_faults("store an adapter", self._folder):
            imported = self._staging / f"{TEMPORARY}{os.getpid()}-{threading.get_ident()}-adapter"
            make_folder(imported)
            try:
                contents: list[tuple[ModelFile, Path]] = []
                for path in ADAPTER_FILES:
                    sha256, size = copy_file(folder / path, imported / path)
                    contents.append((ModelFile(path, sha256, size), imported / path))
                with self._lock:
                    digest, files = self._contents.take_over(contents)
            finally:
                remove_tree(imported)
            return Adapter(digest, files, os.fspath(self._contents.folders / digest), rank)

    def derive(self, source: Model, destination: ModelRef, recipe: Recipe, adapter: Adapter | None = None) -> Model:
        """Make another model of the same files; an existing one of that name is replaced. A model that would not
        differ from the one that has the name already is left as it is."""
        known = self._known()
        with self._lock, storage_faults(f"write {destination}", self._manifests):
            stored = known.get(source.ref.key)
            if stored is None:
                raise ModelNotFound(source.name)
            if destination.key == source.ref.key and (recipe, adapter) == (stored.recipe, stored.adapter):
                return stored
            model = replace(
                stored,
                ref=destination,
                modified_time=self._now(),
                recipe=recipe,
                adapter=adapter,
                digest=digest_with(_contents(stored), recipe, adapter),
                capabilities=capabilities_with(recipe, stored.capabilities),
            )
            return self._write(known, model)

    def remove(self, model: Model) -> int:
        """Remove a model's name and what no other model needs; returns the freed bytes. Removing it again frees 0."""
        known = self._known()
        with self._lock, storage_faults(f"remove {model.name}", self._folder):
            stored = known.get(model.ref.key)
            if stored is None:
                return 0
            self._manifest_path(stored.ref).unlink(missing_ok=True)
            del known[stored.ref.key]
            sync_folder(self._manifests)
            self._on_step("manifest removed")
            return self._free(known, stored)

    def free_bytes(self) -> int:
        """Room that an ordinary user has on the disk of the store."""
        with storage_faults("ask for free space", self._folder):
            place = self._folder
            while not place.exists() and place != place.parent:
                place = place.parent
            return shutil.disk_usage(place).free

    # --- inside ------------------------------------------------------------------------------------------------------

    def _known(self) -> dict[str, Model]:
        if self._models is None:
            self.load()
        assert self._models is not None
        return self._models

    def _manifest_path(self, ref: ModelRef) -> Path:
        return self._manifests / f"{file_name(ref.key)}.json"

    def _read_manifests(self) -> dict[str, Model]:
        sizes = self._contents.sizes()
        models: dict[str, Model] = {}
        unreadable: set[str] = set()
        for entry in os.scandir(self._manifests):
            if entry.name.startswith(TEMPORARY):
                continue
            try:
                model = read_manifest(Path(entry.path).read_bytes(), self._contents.folders)
                if self._manifest_path(model.ref).name != entry.name:
                    raise BadManifest(f"it names another model: {model.name}")
            except (OSError, BadManifest) as error:
                unreadable.add(entry.name)
                if entry.name not in self._unreadable:
                    log.error("store.unreadable manifest=%s why=%s", entry.path, error)
                continue
            missing = [file.path for file in model.all_files if sizes.get(file.sha256) != file.size_bytes]
            if missing:
                # It is left out of the list; its blobs stay, and pulling it again fetches what is missing.
                unreadable.add(entry.name)
                if entry.name not in self._unreadable:
                    log.error("store.damaged model=%s files=%s hint=pull it again", model.name, ",".join(missing[:5]))
                continue
            models[model.ref.key] = model
        self._unreadable = unreadable
        return models

    def _choose(self, doing: str, folder: Path) -> list[str]:
        """What to copy from a folder that is not ours; refused before the first byte if there is no room for it."""
        if not folder.is_dir():
            raise VllamaError(
                Reason.INVALID_REQUEST,
                f"cannot {doing}: {folder} is not a folder",
                "name a folder with config.json and safetensors files; the daemon's user must be able to read it",
            )
        paths = choose_files(_files_of(folder), f"the folder {folder}")
        needed, free = sum((folder / path).stat().st_size for path in paths), self.free_bytes()
        if needed > free:
            raise no_room(doing, self._folder, needed, free)
        return paths

    def _write(self, known: dict[str, Model], model: Model) -> Model:
        """Make ``model`` the holder of its name, atomically; then free what the holder before it used alone."""
        before = known.get(model.ref.key)
        if before is not None:
            model = replace(model, ref=before.ref)
        path = self._manifest_path(model.ref)
        temporary = self._manifests / f"{TEMPORARY}{os.getpid()}-{path.name}"
        try:
            write_whole(temporary, write_manifest(model))
            self._on_step("manifest written")
            temporary.replace(path)
        except OSError:
            with contextlib.suppress(OSError):  # the first error is the one to tell; loading removes what is left
                temporary.unlink(missing_ok=True)
            raise
        sync_folder(self._manifests)
        self._on_step("manifest")
        known[model.ref.key] = model
        self._unreadable.discard(path.name)
        if before is not None:
            self._free(known, before)
        return model

    def _free(self, known: dict[str, Model], gone: Model) -> int:
        folders, blobs = _needed(known.values())
        self._contents.remove_folders(_folders_of(gone).keys() - folders)
        if self._unreadable:
            log.warning("store.kept model=%s why=%d manifests cannot be read", gone.name, len(self._unreadable))
            return 0
        return self._contents.remove_blobs({file.sha256 for file in gone.all_files} - blobs)

    def _clean_up(self, known: dict[str, Model]) -> None:
        """Remove what a crash left, put back folders that are missing, and forget downloads that nobody resumed."""
        for entry in os.scandir(self._manifests):
            if entry.name.startswith(TEMPORARY):
                Path(entry.path).unlink(missing_ok=True)
        folders, blobs = _needed(known.values())
        self._contents.clean_up(folders, blobs, knows_all=not self._unreadable)
        for entry in os.scandir(self._staging):
            if entry.name.startswith(TEMPORARY):
                remove_tree(Path(entry.path))
            elif self._now() - _newest(Path(entry.path)) > STALE_STAGING_S:
                log.info("store.stale staging=%s", entry.name)
                remove_tree(Path(entry.path))


def _passing(key: str) -> str:
    """The name of a staging folder that is of no use to another daemon; no key's file name begins so."""
    return f"{TEMPORARY}{file_name(key)}"


def _needed(models: Iterable[Model]) -> tuple[dict[str, Files], set[str]]:
    """The folders that models need with what is linked there, and the digests of their blobs."""
    folders: dict[str, Files] = {}
    blobs: set[str] = set()
    for model in models:
        folders |= _folders_of(model)
        blobs |= {file.sha256 for file in model.all_files}
    return folders, blobs


def _contents(model: Model) -> str:
    """The digest of a model's files alone: the name of its folder."""
    return Path(model.path).name


def _folders_of(model: Model) -> dict[str, Files]:
    """The folders that a model needs, and what is linked in each."""
    folders = {_contents(model): model.files}
    if model.adapter is not None:
        folders[model.adapter.digest] = model.adapter.files
    return folders


def _files_of(folder: Path) -> list[str]:
    """Paths below a folder, two levels deep: a model has no more, and a folder that was named by mistake may."""
    found = [path for pattern in ("*", "*/*") for path in folder.glob(pattern) if path.is_file()]
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _newest(folder: Path) -> float:
    return max((path.lstat().st_mtime for path in (folder, *folder.rglob("*"))), default=0.0)
