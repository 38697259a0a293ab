"""The contents of models (floor 2): each file once as a blob, and folders in which the engine finds them by name.

Which contents are needed is not known here: the store says so, out of its manifests.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from vllamad.domain.model import ModelFile
from vllamad.hub.manifests import digest_of
from vllamad.hub.solid import FILE_MODE, link_or_copy, make_folder, remove_tree, sync_folder

log = logging.getLogger(__name__)

TEMPORARY = ".tmp-"

Files = tuple[ModelFile, ...]


class Contents:
    """``<folder>/blobs/sha256-<hex>`` and ``<folder>/folders/<digest>/<path>``. Not for several threads at once."""

    def __init__(self, folder: Path, on_step: Callable[[str], None]) -> None:
        self.blobs = folder / "blobs"
        self.folders = folder / "folders"
        self._on_step = on_step

    def take_over(self, contents: Iterable[tuple[ModelFile, Path]]) -> tuple[str, Files]:
        """Make blobs and a folder of files, which are linked where the disk can; returns the digest over them all,
        which names the folder."""
        contents = list(contents)
        files = tuple(sorted((file for file, _ in contents), key=lambda file: file.path))
        digest = digest_of(files)
        for file, source in contents:
            blob = self.blob(file.sha256)
            if not blob.exists() or blob.stat().st_size != file.size_bytes:
                link_or_copy(source, blob)
                blob.chmod(FILE_MODE)
        sync_folder(self.blobs)
        self._on_step("blobs")
        self.build_folder(digest, files)
        self._on_step("folder")
        return digest, files

    def blob(self, sha256: str) -> Path:
        """Where the file with this digest is, or would be."""
        return self.blobs / f"sha256-{sha256}"

    def sizes(self) -> dict[str, int]:
        """The blobs that are there, by their digests, and their sizes."""
        return {entry.name.removeprefix("sha256-"): entry.stat().st_size for entry in os.scandir(self.blobs)}

    def build_folder(self, digest: str, files: Files) -> None:
        """Make a folder of links, if it is not there or not whole."""
        final = self.folders / digest
        if final.exists():
            if all((final / file.path).exists() for file in files):
                return
            remove_tree(final)
        temporary = self.folders / f"{TEMPORARY}{os.getpid()}-{digest}"
        remove_tree(temporary)
        make_folder(temporary)
        for file in files:
            link = temporary / file.path
            depth = len(Path(file.path).parts) - 1
            for parent in reversed(Path(file.path).parents[:-1]):
                make_folder(temporary / parent)
            link.symlink_to(Path(*[".."] * (depth + 2), "blobs", f"sha256-{file.sha256}"))
        temporary.replace(final)
        sync_folder(self.folders)

    def remove_folders(self, digests: Iterable[str]) -> None:
        """Remove folders that no model needs any more."""
        for digest in digests:
            remove_tree(self.folders / digest)
            self._on_step("folder removed")

    def remove_blobs(self, digests: Iterable[str]) -> int:
        """Remove blobs that no model needs any more; returns the bytes that were freed."""
        freed = 0
        for sha256 in digests:
            blob = self.blob(sha256)
            with contextlib.suppress(FileNotFoundError):
                size = blob.stat().st_size
                blob.unlink()
                freed += size
        return freed

    def clean_up(self, folders: Mapping[str, Files], blobs: Collection[str], *, knows_all: bool) -> None:
        """Remove what a crash left, and put back folders that are missing. While ``knows_all`` is false, somebody may
        need what nobody seems to."""
        for entry in os.scandir(self.folders):
            if entry.name not in folders and (entry.name.startswith(TEMPORARY) or knows_all):
                remove_tree(Path(entry.path))
        for digest, files in folders.items():
            self.build_folder(digest, files)
        for entry in os.scandir(self.blobs):
            is_unfinished = entry.name.startswith(TEMPORARY)
            if is_unfinished or (knows_all and entry.name.removeprefix("sha256-") not in blobs):
                log.info("store.orphan blob=%s", entry.name)
                Path(entry.path).unlink(missing_ok=True)
